"""Who may do what with ours, by the API server: a TokenReview says who asks, a SubjectAccessReview what they may.

The rule: a token is sent to the API server and nowhere else. It is not kept (its hash is, for as long as an answer
counts), and no message has it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Unreachable
from vllm_chill.core.access import Access, Denied, Granted, Unauthenticated
from vllm_chill.errors import BackendRefused, BackendUnavailable

GRANTED_SECONDS = 60.0
"""For how long a right counts once it was found: what is taken away, or has expired, is noticed that late."""
REFUSED_SECONDS = 10.0
"""For how long a refusal counts: a right that is granted is noticed that late."""
_MOST_ANSWERS = 256
_MOST_TOKEN_CHARACTERS = 16 * 1024
_AT_A_TIME = 4
"""How many tokens are asked about at a time, so that whoever sends many cannot have the API server flooded."""

_TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
_RIGHTS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class KubernetesReviews:
    """ports.Authorizer. Invariant: an answer that is kept was true at most `GRANTED_SECONDS` ago."""

    def __init__(
        self,
        api: ApiClient,
        *,
        granted_seconds: float = GRANTED_SECONDS,
        refused_seconds: float = REFUSED_SECONDS,
        now: Callable[[], float] | None = None,
    ) -> None:
        """`now` is a steady clock in seconds; the loop's by default."""
        self._api = api
        now = now or asyncio.get_running_loop().time
        # Apart, so that tokens made up by somebody cannot push out those of whoever may read.
        self._granted = _Answers(granted_seconds, now)
        self._refused = _Answers(refused_seconds, now)
        self._asking = asyncio.Semaphore(_AT_A_TIME)

    async def may(self, token: str, verb: str, path: str) -> Access:
        if len(token) > _MOST_TOKEN_CHARACTERS:
            return Unauthenticated()
        key = hashlib.sha256(f"{verb}\0{path}\0{token}".encode()).digest()
        if (kept := self._kept(key)) is not None:
            return kept
        async with self._asking:
            # Somebody with the same token may have asked meanwhile.
            if (kept := self._kept(key)) is not None:
                return kept
            access = await self._ask(token, verb, path)
        (self._granted if isinstance(access, Granted) else self._refused).keep(key, access)
        return access

    def _kept(self, key: bytes) -> Access | None:
        return self._granted.get(key) or self._refused.get(key)

    async def _ask(self, token: str, verb: str, path: str) -> Access:
        token_review = _review("authentication.k8s.io/v1", "TokenReview", {"token": token})
        status = await self._review(_TOKENS, token_review, "tokenreviews of authentication.k8s.io", token)
        user: dict[str, Any] = status.get("user") or {}
        if not status.get("authenticated") or not user.get("username"):
            return Unauthenticated()
        about = {
            "user": user["username"],
            "uid": user.get("uid") or "",
            "groups": user.get("groups") or [],
            "extra": user.get("extra") or {},
            "nonResourceAttributes": {"path": path, "verb": verb},
        }
        right_review = _review("authorization.k8s.io/v1", "SubjectAccessReview", about)
        status = await self._review(_RIGHTS, right_review, "subjectaccessreviews of authorization.k8s.io", token)
        return Granted() if status.get("allowed") else Denied(str(user["username"]))

    async def _review(self, path: str, review: Json, what: str, token: str) -> Json:
        """The status of a review. Raises BackendUnavailable or BackendRefused."""
        try:
            return (await self._api.call("POST", path, body=review)).get("status") or {}
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error
        except ApiError as error:
            # Whatever the server says of what it was sent, that must not go on.
            said = error.message.replace(token, "…").rstrip(".")
            cause = f"the API server does not answer {what} ({error.status}): {said}"
            if error.passing:
                # Without the cause: its message is the server's own.
                raise BackendUnavailable(cause) from None
            if error.status == 403:
                cause += '; grant "create" on it to its ServiceAccount'
            raise BackendRefused(cause) from None


class _Answers:
    """Answers by key, each for so many seconds, of which the oldest goes where there would be too many."""

    def __init__(self, seconds: float, now: Callable[[], float]) -> None:
        self._seconds = seconds
        self._now = now
        self._kept: dict[bytes, tuple[float, Access]] = {}

    def get(self, key: bytes) -> Access | None:
        found = self._kept.get(key)
        return found[1] if found is not None and self._now() < found[0] else None

    def keep(self, key: bytes, access: Access) -> None:
        self._kept.pop(key, None)
        self._kept[key] = (self._now() + self._seconds, access)
        while len(self._kept) > _MOST_ANSWERS:
            del self._kept[next(iter(self._kept))]


def _review(api_version: str, kind: str, spec: Json) -> Json:
    return {"apiVersion": api_version, "kind": kind, "metadata": {}, "spec": spec}
