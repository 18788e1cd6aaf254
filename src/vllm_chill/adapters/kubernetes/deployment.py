"""An existing Deployment, StatefulSet, or whatever else has a scale, as a scale target.

The rule: what is known comes from watches (`view`), what is done is one write, to the scale subresource; nothing is
read on the way of a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import (
    CALL_SECONDS,
    ApiClient,
    ApiError,
    Json,
    Unreachable,
    is_object,
    metadata_of,
    not_logged_in,
)
from vllm_chill.adapters.kubernetes.deletion_costs import DeletionCosts
from vllm_chill.adapters.kubernetes.objects import MANAGER, collection_of
from vllm_chill.adapters.kubernetes.pod_output import PodOutput
from vllm_chill.adapters.kubernetes.view import View
from vllm_chill.adapters.kubernetes.watch import Pace, cause_of
from vllm_chill.adapters.mask import Mask
from vllm_chill.core.startup import UNSCHEDULABLE_SECONDS, Terms, missing
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Endpoint, TargetRef
from vllm_chill.errors import BackendError, BackendRefused, BackendUnavailable
from vllm_chill.ports import Observer

SEEN_SECONDS = 10.0
_NUDGE_SECONDS = 2.0
_TRIES = 4
_WRITE_SECONDS = CALL_SECONDS + 1  # so that a call that is never answered is told as such
_ANOTHER_SECONDS = 1.0


class KubernetesBackend:
    """Whatever has a scale and pods as targets, whose Service is `endpoint`; for the Deployment of the settings
    credentials need only what deploy/rbac.yaml grants.

    `unschedulable_seconds` is how long a pod may find no node; `pace` is that of the watches; `seen_seconds` how long
    a write may take to come back through the watch. Without `explains` nothing is looked for that does no more than
    explain a start: events of pods, and logs. What `mask` hides is not told of logs.
    """

    def __init__(
        self,
        api: ApiClient,
        endpoint: Endpoint,
        *,
        unschedulable_seconds: float = UNSCHEDULABLE_SECONDS,
        pace: Pace | None = None,
        seen_seconds: float = SEEN_SECONDS,
        explains: bool = True,
        mask: Mask | None = None,
    ) -> None:
        self._mask = mask
        self._api = api
        self._endpoint = endpoint
        self._unschedulable_seconds = unschedulable_seconds
        self._pace = pace or Pace()
        self._seen_seconds = seen_seconds
        self._explains = explains
        self._views: dict[TargetRef, View] = {}
        self._costs = DeletionCosts(api)

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        terms = Terms(ref, self._endpoint, self._unschedulable_seconds)
        view = View(self._api, terms, self._pace, observer, explains=self._explains, mask=self._mask)
        self._views[ref] = view
        try:
            await view.follow()
        finally:
            del self._views[ref]

    def served(self, ref: TargetRef) -> tuple[tuple[str, ...], str] | None:
        """What the target's next pod runs, and the name of its template; None while that is not seen."""
        view = self._views.get(ref)
        return None if view is None else view.served

    def gpus(self, ref: TargetRef) -> int | None:
        """The GPUs that the target's next pod asks for; None if it names none, or while that is not seen."""
        view = self._views.get(ref)
        return None if view is None else view.gpus

    def output(self, ref: TargetRef) -> PodOutput:
        """What the target's pods write."""
        return PodOutput(self._api, ref.namespace, lambda: self._views.get(ref), self._mask)

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        await self._mark(ref, replicas, doomed)
        view = self._views.get(ref)
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                answer = await self._compare_and_set(ref, replicas, view)
            version = int(metadata_of(answer)["resourceVersion"])
        except ApiError as error:
            refusal = _refusal(ref, error)
            if error.status in (403, 404) and view is not None and not view.steady:
                raise BackendUnavailable(refusal.message) from error
            raise refusal from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error
        except TimeoutError as error:
            late = f"the number of replicas of {ref.named} was not written within {_WRITE_SECONDS:g} s"
            raise BackendUnavailable(late) from error
        if view is not None:
            await self._seen(view, version, f"{ref.named} took the write, and it was")

    async def catch_up(self, ref: TargetRef) -> None:
        view = self._views.get(ref)
        if view is None:
            return
        try:
            version = await view.newest()
        except (ApiError, Unreachable) as error:
            raise BackendUnavailable(
                f"no replica of {ref.named} is taken away while it is not known how it is: {cause_of(error)}",
                retry_after_seconds=error.retry_after_seconds if isinstance(error, ApiError) else 0.0,
            ) from error
        await self._seen(view, version, f"{ref.named} was changed, and that was")

    async def _compare_and_set(self, ref: TargetRef, replicas: int, view: View | None) -> Json:
        """Write the number over the one that was seen: of two who change the same one, one does.

        The object changes for other reasons too, such as its status; then it is tried again with what is seen by then.
        All of that takes hardly longer than one call may: for so long others let nobody in while zero is written.
        """
        before = view.replicas if view is not None else None
        for left in reversed(range(_TRIES)):
            version = view.object_version if view is not None else ""
            try:
                return await self._patch(ref, replicas, version)
            except ApiError as error:
                if error.status != 409 or not left or view is None:
                    raise
                await _another(view, version)
                if view.replicas != before:
                    raise
        raise AssertionError("the loop above returns or raises")

    async def _patch(self, ref: TargetRef, replicas: int, version: str) -> Json:
        path = f"{collection_of(ref)}/{quote(ref.name)}/scale"
        body: Json = {"spec": {"replicas": replicas}}
        if version:
            body["metadata"] = {"resourceVersion": version}
        answer = await self._api.call("PATCH", path, query={"fieldManager": MANAGER}, body=body)
        # The number is written only if this says so.
        if not is_object(answer, ref.name) or ((answer.get("spec") or {}).get("replicas") or 0) != replicas:
            raise Unreachable(f"the API server answered with something that is not the scale of {ref.named}")
        return answer

    async def _mark(self, ref: TargetRef, replicas: int, doomed: Sequence[str]) -> None:
        """Have the pods that should go be the first that do."""
        # A StatefulSet takes its pods away by their numbers, and of all none is first.
        if not replicas or ref.resource == STATEFUL_SETS:
            return
        view = self._views.get(ref)
        before = view.replicas if view is not None else None
        fewer = before is None or replicas < before
        await self._costs.mark(ref.namespace, doomed if fewer else (), view.doomed if view is not None else ())

    async def _seen(self, view: View, version: int, what_was: str) -> None:
        try:
            async with asyncio.timeout(self._seen_seconds):
                try:
                    async with asyncio.timeout(min(_NUDGE_SECONDS, self._seen_seconds / 2)):
                        await view.until(version)
                except TimeoutError:
                    # Calls go through and the watch is silent: its connection may be dead without a word.
                    view.relist()
                    await view.until(version)
        except TimeoutError as error:
            raise BackendUnavailable(f"{what_was} not seen in the watch within {self._seen_seconds:g} s") from error


async def _another(view: View, version: str) -> None:
    """Return once another version of the object than this is seen, or after a while."""
    try:
        async with asyncio.timeout(_ANOTHER_SECONDS):
            await view.beyond(version)
    except TimeoutError:
        view.relist()


def _refusal(ref: TargetRef, error: ApiError) -> BackendError:
    said = error.message.rstrip(".")
    match error.status:
        case 401:
            return not_logged_in(error)
        case 403:
            return BackendRefused(
                f"{ref.named} may not be scaled: {said}; "
                f'grant the verb "patch" on "{ref.resource.plural}/scale" ({_where(ref)} has the Role)'
            )
        case 404:
            return BackendRefused(missing(ref))
        case 409 | 408 | 429:
            return BackendUnavailable(
                f"{ref.named} could not be scaled just now: {said}; try again",
                retry_after_seconds=error.retry_after_seconds,
            )
        case status if status >= 500:
            return BackendUnavailable(
                f"the API server could not scale {ref.named} ({status}): {said}; try again",
                retry_after_seconds=error.retry_after_seconds,
            )
        case status:
            return BackendRefused(f"the API server refuses to scale {ref.named} ({status}): {said}")


def _where(ref: TargetRef) -> str:
    return "deploy/rbac.yaml" if ref.resource == DEPLOYMENTS else "deploy/policies/rbac.yaml"
