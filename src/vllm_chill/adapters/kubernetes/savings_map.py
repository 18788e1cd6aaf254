"""What was saved in a cluster, in a ConfigMap of its own: ports.SavingsStore for proxies of the same targets.

The rule: every write is of the ConfigMap as it was read, its resource version with it, so that of two who write only
one does. What is in it besides, such as somebody's labels, stays. Keeping it is optional: without the right to, it is
counted while the proxy runs.
"""

from __future__ import annotations

from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Unreachable, is_object, not_logged_in
from vllm_chill.core.savings_ledger import KeptText
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable

KEY = "savings.json"
_METHODS = {"get": "GET", "create": "POST", "update": "PATCH"}


def map_name(lease_name: str) -> str:
    """The ConfigMap of the proxies that share this Lease."""
    return f"{lease_name}-savings"


class SavingsMap:
    """The ConfigMap of this name in this namespace, which is made when there is something to keep. Each call has the
    client's deadline.
    """

    def __init__(self, api: ApiClient, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name

    async def read(self) -> KeptText | None:
        item = await self._call("get", quote(self._name))
        if item is None:
            return None
        return KeptText(_text(item), str(item["metadata"]["resourceVersion"]))

    async def write(self, text: str, before: KeptText | None) -> None:
        if before is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}
            written = await self._call("create", "", whole)
        else:
            change = {"metadata": {"resourceVersion": before.version}, "data": {KEY: text}}
            written = await self._call("update", quote(self._name), change)
        if written is None:
            raise BackendConflict(f"{self._what} is gone")
        if _text(written) != text:
            raise self._not_it()

    async def _call(self, verb: str, name: str, body: Json | None = None) -> Json | None:
        path = f"/api/v1/namespaces/{quote(self._namespace)}/configmaps" + (f"/{name}" if name else "")
        try:
            answer = await self._api.call(_METHODS[verb], path, body=body)
        except ApiError as error:
            if error.status == 404 and name:
                return None
            raise self._refusal(verb, error) from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error
        if not is_object(answer, self._name):
            raise self._not_it()
        return answer

    def _not_it(self) -> BackendUnavailable:
        return BackendUnavailable(
            f"the API server answered with something that is not {self._what}: is it a Kubernetes API server?"
        )

    @property
    def _what(self) -> str:
        return f"the ConfigMap {self._namespace}/{self._name}"

    def _refusal(self, verb: str, error: ApiError) -> BackendError:
        said = error.message.rstrip(".")
        match error.status:
            case 401:
                return not_logged_in(error)
            case 403:
                return BackendRefused(
                    f'{self._what} cannot be used: {said}; grant "get", "create" and "patch" on configmaps in the '
                    f"namespace {self._namespace} (deploy/rbac.yaml has them)"
                )
            case 409:
                return BackendConflict(f"{self._what} is another by now: {said}")
            case status if error.passing:
                return BackendUnavailable(f"the API server does not {verb} {self._what} ({status}): {said}")
            case status:
                return BackendRefused(f"the API server does not {verb} {self._what} ({status}): {said}")


def _text(item: Json) -> str:
    return str((item.get("data") or {}).get(KEY) or "")
