"""The whole program put together: settings in, a running proxy out."""

from vllm_chill.app.plan import Plan, is_service_of
from vllm_chill.app.serve import VERSION, build, run, serve
from vllm_chill.app.targets import Record, hold_desk

__all__ = ["VERSION", "Plan", "Record", "build", "hold_desk", "is_service_of", "run", "serve"]
