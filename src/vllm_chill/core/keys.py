"""API keys: whose one is, and what it may do. Pure.

The rule: no key is kept, only its SHA-256. That is enough, and needs no salt and no slow hash, as a key has 256 random
bits: nobody finds one by trying.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm_chill.core.admission import Priority
from vllm_chill.core.phrases import listed
from vllm_chill.core.rate import RateLimit

HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+) *")
_SHOWN_MODELS = 20
_WILD = "*"
_NOTHING = r"(?!)"


def hashed(secret: str) -> str:
    """A key as the file of keys has it."""
    return f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"


def bearer_token(authorization: bytes) -> bytes | None:
    """The token in the value of an Authorization field; None if it has none."""
    found = _BEARER.fullmatch(authorization)
    return None if found is None else found[1]


def said_by(authorization: str | None, api_key: str | None) -> bytes | None:
    """The value of the field Authorization by which a request is let in, from what it says there and in X-Api-Key.

    The second counts where there is none of the first: Anthropic's clients, whose API vLLM has too, say their key
    there, or one in each.
    """
    if authorization is None and api_key is not None:
        authorization = f"Bearer {api_key}"
    return None if authorization is None else authorization.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `digest` is its SHA-256. `models` are the models that it may use, by name or as patterns in which `*` is
    any text; None for all. Its requests wait with `priority`, and come no faster than `rate`. `admin`: it may operate
    the proxy too.
    """

    name: str
    digest: bytes = field(repr=False)
    models: tuple[str, ...] | None = None
    priority: Priority = Priority.NORMAL
    rate: RateLimit | None = None
    admin: bool = False
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.models is not None:
            patterns = "|".join(".*".join(map(re.escape, model.split(_WILD))) for model in self.models)
            object.__setattr__(self, "_pattern", re.compile(patterns if self.models else _NOTHING, re.DOTALL))

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether it may use a model that has these names."""
        pattern = self._pattern
        return pattern is None or any(pattern.fullmatch(name) for name in names)

    @property
    def usable(self) -> str:
        """The models that it may use, for a sentence."""
        return "all" if self.models is None else listed(self.models, _SHOWN_MODELS) or "none"


class Keys:
    """All keys there are. No two have a name or a digest in common."""

    __slots__ = ("_by_digest", "_by_name")

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._by_name = {key.name: key for key in keys}
        self._by_digest = {key.digest: key for key in self._by_name.values()}

    def __len__(self) -> int:
        return len(self._by_digest)

    def named(self, name: str) -> Key | None:
        """The key of this name."""
        return self._by_name.get(name)

    def find(self, secret: bytes) -> Key | None:
        """Whose key this is.

        To look it up by its hash tells nothing in the time that it takes: who guesses cannot choose the hash of a guess
        byte by byte. What is found is compared in constant time all the same, so that nothing rests on how a dict does.
        """
        digest = hashlib.sha256(secret).digest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None
