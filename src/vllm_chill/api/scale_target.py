"""What is scaled, as a resource of ours refers to it: an object of the same namespace, by apiVersion, kind and name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from vllm_chill.api.resource import Checked, Conflict
from vllm_chill.api.spec_parts import OBJECT, declared
from vllm_chill.api.spec_types import ObjectName

KindName = Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z][-A-Za-z0-9]*$")]
ApiVersion = Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9][-.a-z0-9]*/)?[a-z0-9]+$")]

KIND = "a kind, such as Deployment"
API_VERSION = "a group and a version, such as apps/v1"
APPS = dict.fromkeys(("Deployment", "StatefulSet", "ReplicaSet"), "apps/v1")


class ScaleTargetRef(Checked):
    """A reference as Kubernetes' CrossVersionObjectReference has it."""

    STAND_INS: ClassVar = {"kind": "Deployment", "name": "unknown"}
    KNOWN: ClassVar[Mapping[str, str]] = APPS
    """The kinds whose apiVersion may be left out, with what it is then."""

    kind: KindName = declared(..., KIND, "Deployment, StatefulSet, or anything that has a scale subresource.")
    name: ObjectName = declared(..., OBJECT, "Name of the object, in the same namespace.")
    api_version: ApiVersion | None = declared(
        None, API_VERSION, "Group and version of the kind. Not set: apps/v1; kinds that are not in it need it.",
    )  # fmt: skip

    def conflicts(self) -> Iterator[Conflict]:
        """What no field can know by itself."""
        if self.api_version is None and self.kind not in self.KNOWN:
            yield Conflict(
                "apiVersion",
                f"it is missing, and {self.kind} is none of {', '.join(self.KNOWN)}; give its group and version",
                ("apiVersion", "kind"),
            )

    @property
    def full_api_version(self) -> str:
        """Group and version of the kind, given or not."""
        return self.api_version or self.KNOWN[self.kind]
