"""What `GET /proxy/version` answers: which build this is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Build(BaseModel):
    """A build of vllm-chill; "unknown" for what whoever built it did not say."""

    model_config = ConfigDict(frozen=True)

    version: str
    commit: str = "unknown"
    build_date: str = "unknown"
