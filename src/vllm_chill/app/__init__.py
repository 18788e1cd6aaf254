"""The whole program put together: settings in, a running proxy out."""

from vllm_chill.app.plan import Plan, is_service_of
from vllm_chill.app.serve import Record, hold_desk, run, serve
from vllm_chill.app.world import World, open_world

__all__ = ["Plan", "Record", "World", "hold_desk", "is_service_of", "open_world", "run", "serve"]
