"""The whole program put together: settings in, a running proxy out."""

from vllm_chill.app.plan import Plan, is_service_of
from vllm_chill.app.serve import run, serve
from vllm_chill.app.targets import Record, hold_desk

__all__ = ["Plan", "Record", "hold_desk", "is_service_of", "run", "serve"]
