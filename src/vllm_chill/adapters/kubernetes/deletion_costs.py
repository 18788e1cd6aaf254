"""Which pods go first when there are to be fewer, said by an annotation that ReplicaSets look at (Kubernetes 1.21 on).

The rule: it is a wish. It is written before the number of replicas is, it never keeps that from being written, and
what cannot be written is said once and not again before it has succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

import structlog

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Unreachable
from vllm_chill.core.objects import annotations_of

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
COST = "-2147483648"
"""The lowest there is: below whatever anybody else gives, and so recognised as ours."""
_SECONDS = 3.0
_EVENT = "Kubernetes chooses which replicas go, as those with the fewest requests could not be marked"


def is_doomed(pod: Mapping[str, Any]) -> bool:
    """Whether a pod was marked as one of the first to go."""
    return annotations_of(pod).get(ANNOTATION) == COST


class DeletionCosts:
    """Marks pods as the first to go, and takes marks back."""

    def __init__(self, api: ApiClient, *, seconds: float = _SECONDS) -> None:
        self._api = api
        self._seconds = seconds
        self._log = structlog.get_logger("vllm_chill.kubernetes")
        self._said = False

    async def mark(self, namespace: str, doomed: Collection[str], marked: Collection[str]) -> None:
        """Have the doomed be marked, and of those that are `marked` no others. It returns whatever comes of it."""
        costs: dict[str, str | None] = {name: None for name in marked if name not in doomed}
        costs |= {name: COST for name in doomed if name not in marked}
        if not costs:
            return
        try:
            async with asyncio.timeout(self._seconds):
                causes = await asyncio.gather(*(self._write(namespace, pod, cost) for pod, cost in costs.items()))
        except TimeoutError:
            causes = [f"the API server did not answer within {self._seconds:g} s"]
        cause = next(filter(None, causes), None)
        if cause is not None and not self._said:
            self._log.warning(_EVENT, namespace=namespace, cause=cause)
        self._said = cause is not None

    async def _write(self, namespace: str, pod: str, cost: str | None) -> str | None:
        """Why the cost of a pod could not be written, if it could not."""
        path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}"
        try:
            await self._api.call("PATCH", path, body={"metadata": {"annotations": {ANNOTATION: cost}}})
        except ApiError as error:
            said = error.message.rstrip(".")
            if error.status == 404:
                return None
            if error.status == 403:
                return f'{said}; grant the verb "patch" on "pods" (deploy/rbac.yaml has it)'
            return said
        except Unreachable as error:
            return str(error)
        return None
