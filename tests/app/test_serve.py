from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from tests.adapters.kubernetes.stub_api import StubApi
from tests.serving import clean_environment

# `vllm-chill serve` with a pod's light credentials, until the policies that there are have been looked at.
_SERVE = """
import json, os, signal, sys
from vllm_chill.adapters.kubernetes import client, credentials
from vllm_chill.app.scaling import ProxyTargets
from vllm_chill.__main__ import main

server = sys.argv.pop()

class Fixed:
    fresh_seconds = None

    async def load(self):
        return credentials.Access(server)

def own_policy(self, name):
    try:
        return found(self, name)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

client.find = lambda *_: Fixed()
found, ProxyTargets.own_policy = ProxyTargets.own_policy, own_policy
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""

_PUT_OFF = {
    "click": "the command line",
    "difflib": "a mistake in an object",
    "kubernetes_asyncio": "a kubeconfig",
    "opentelemetry": "traces",
    "pydantic": "settings, which another process has read, and the objects of a cluster",
    "pynvml": "GPU statistics",
    "vllm_chill.adapters.models_file": "--models",
    "vllm_chill.adapters.process": "--backend process",
    "vllm_chill.api.crd": "vllm-chill crd",
    "vllm_chill.api.held": "GET /proxy/requests",
    "vllm_chill.api.model_spec": "models",
    "vllm_chill.api.resource": "models and policies",
    "vllm_chill.api.scaling_answers": "what operators ask of autoscalers",
    "vllm_chill.api.scaling_policy": "policies",
    "vllm_chill.api.scaling_spec": "policies",
    "vllm_chill.api.spec_parts": "models and policies",
    "vllm_chill.api.vllm_model": "models",
    "vllm_chill.api.wake_history": "GET /proxy/starts",
    "vllm_chill.api.workload": "models",
    "vllm_chill.control.models": "models",
    "vllm_chill.proxy.traced": "traces",
    "vllm_chill.telemetry.spans": "traces",
    "vllm_chill.telemetry.tracing": "traces",
    "vllm_chill.web.dashboard": "GET /proxy/",
    "vllm_chill.web.feed": "GET /proxy/events",
    "vllm_chill.web.held": "GET /proxy/requests",
    "vllm_chill.web.openapi": "GET /proxy/openapi.json",
    "vllm_chill.web.wake_history": "GET /proxy/starts",
    "yaml": "files, and what the command line prints",
}
"""Modules that a proxy in front of one Deployment has no use for while nothing happens, each with what needs it."""


class Granting(StubApi):
    """An API server that grants every right."""

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/selfsubjectaccessreviews"):
            return web.json_response({"status": {"allowed": True}}, status=201)
        return await super()._serve(request)


@pytest.fixture
async def server() -> AsyncIterator[Granting]:
    server = Granting()
    await server.start()
    template = {"metadata": {"labels": {"app": "vllm"}}, "spec": {"containers": [{"name": "vllm"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "vllm"}}, "template": template}
    metadata = {"name": "vllm", "namespace": "ai-apps", "uid": "1", "generation": 1}
    await server.put({"kind": "Deployment", "metadata": metadata, "spec": spec})
    yield server
    await server.stop()


async def test_a_proxy_that_waits_has_nothing_in_memory_that_something_else_needs(server: Granting) -> None:
    flags = ("serve", "--host", "127.0.0.1", "--port", "0", "--shutdown-delay", "0", "--log-level", "error")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVE, *flags, server.url, stdout=asyncio.subprocess.PIPE, env=clean_environment()
    )
    try:
        async with asyncio.timeout(20):
            told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    there = set(json.loads(told))
    assert "vllm_chill.control.policies" in there
    assert {name: why for name, why in _PUT_OFF.items() if name in there} == {}
