"""The history of a target's starts, kept in an annotation of the target itself, mostly a Deployment.

The rule: only the target's own metadata is written, never its pod template, so nothing is rolled out; its
generation grows by one all the same, as with every change of an annotation. Keeping it is optional: it needs the right
to patch the target, and without it each proxy learns anew.
"""

from __future__ import annotations

from urllib.parse import quote

import structlog

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Unreachable, items_of
from vllm_chill.adapters.kubernetes.objects import collection_of
from vllm_chill.core.target import TargetRef

ANNOTATION = "vllm-chill.io/start-history"
_NOT_READ = "the history of starts could not be read"
_NOT_KEPT = "the history of starts is not kept"


class DeploymentHistory:
    """ports.StartHistory on an annotation. What fails is said once, and not again before it has succeeded."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._log = structlog.get_logger("vllm_chill.kubernetes")
        self._said: set[str] = set()

    async def load(self, ref: TargetRef) -> str | None:
        # A list, because the right to get it would be one more.
        query = {"fieldSelector": f"metadata.name={ref.name}"}
        try:
            found = items_of(await self._api.call("GET", collection_of(ref), query=query))
        except (ApiError, Unreachable) as error:
            self._failed(ref, _NOT_READ, error)
            return None
        self._said.discard(_NOT_READ)
        annotations = [(item.get("metadata") or {}).get("annotations") or {} for item in found]
        return next((str(kept[ANNOTATION]) for kept in annotations if ANNOTATION in kept), None)

    async def save(self, ref: TargetRef, text: str) -> None:
        body = {"metadata": {"annotations": {ANNOTATION: text}}}
        try:
            await self._api.call("PATCH", f"{collection_of(ref)}/{quote(ref.name)}", body=body)
        except (ApiError, Unreachable) as error:
            self._failed(ref, _NOT_KEPT, error)
        else:
            self._said.discard(_NOT_KEPT)

    def _failed(self, ref: TargetRef, event: str, error: ApiError | Unreachable) -> None:
        if event not in self._said:
            self._said.add(event)
            self._log.info(event, target=str(ref), cause=error.message if isinstance(error, ApiError) else str(error))
