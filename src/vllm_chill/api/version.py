"""What `GET /proxy/version` answers: which build this is."""

from __future__ import annotations

from msgspec import Struct


class Build(Struct, frozen=True, kw_only=True):
    """A build of vllm-chill; "unknown" for what whoever built it did not say."""

    version: str
    commit: str = "unknown"
    build_date: str = "unknown"
