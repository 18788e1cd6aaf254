"""Nothing secret comes out: unique words are planted wherever a secret goes, and looked for in all that is said."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from tests.serving import Serving, serving
from vllm_chill.core.keys import hashed

CHAT = "/v1/chat/completions"
CLIENT, LIMITED, ADMIN = "chill-CLIENTSECRET", "chill-LIMITEDSECRET", "chill-ADMINSECRET"
WRONG, PLAIN = "chill-WRONGSECRET", "chill-PLAINSECRET"
UPSTREAM, BROKEN_UPSTREAM = "UPSTREAMSECRET", "BROKENSECRET two"
ENVIRONMENT, PROMETHEUS, KUBECONFIG, COOKIE = "ENVSECRET", "PROMETHEUSSECRET", "KUBECONFIGSECRET", "COOKIESECRET"

ENGINE = f'''
import os, sys
from aiohttp import web

async def answer(request):
    body = await request.text()
    if request.headers.get("Authorization") != "Bearer {UPSTREAM}":
        return web.Response(status=401)
    if "die" in body:
        print("the engine dies", flush=True)
        os._exit(3)
    if "reset" in body:
        request.transport.abort()
    if request.path == "/v1/models":
        return web.json_response({{"object": "list", "data": [{{"id": "m", "object": "model", "owned_by": "vllm"}}]}})
    if request.path == "/metrics":
        return web.Response(text="vllm:num_requests_running 0\\nvllm:num_requests_waiting 0\\n")
    return web.json_response({{"ok": True}})

assert os.environ["HF_TOKEN"] == "{ENVIRONMENT}"
if os.path.exists(sys.argv[2]):
    sys.exit("the engine cannot start")
app = web.Application()
app.router.add_route("*", "/{{path:.*}}", answer)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
'''


class Heard:
    """All that has come out, with where from."""

    def __init__(self, proxy: Serving) -> None:
        self._proxy = proxy
        self.said: list[tuple[str, str]] = []

    async def ask(self, method: str, path: str, *, key: str | None = None, **more: Any) -> int:
        headers = {"Cookie": f"a={COOKIE}", **more.pop("headers", {})}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        timeout = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, self._proxy.url + path, headers=headers, **more) as response,
        ):
            text = (await response.read()).decode("utf-8", "replace")
            self.said.append((f"{method} {path} {response.status}", f"{dict(response.headers)}\n{text}"))
            return response.status

    async def read_everything(self) -> None:
        for path in ("status", "metrics", "version", "models/available", "models/running", "stats", "openapi.json"):
            await self.ask("GET", f"/proxy/{path}")
        for path in ("scaling/metrics", "scaling/policy", "nothing", "status?view=page", "requests", "starts", ""):
            await self.ask("GET", f"/proxy/{path}")
        for path in ("/metrics", "/v1/models", "/health", "/readyz"):
            await self.ask("GET", path, key=ADMIN)

    def check(self) -> None:
        log = [("log", json.dumps(line)) for line in self._proxy.log]
        assert len(log) > 3, "it says something at all"
        for where, text in (*self.said, *log):
            for name, secret in SECRETS.items():
                assert secret not in text, f"the secret of {name} is in {where}: {text[:500]}"


SECRETS = {
    "a client": CLIENT,
    "a limited client": LIMITED,
    "an operator": ADMIN,
    "a guess": WRONG,
    "a key in the clear": PLAIN,
    "the engine": UPSTREAM,
    "a broken file": "BROKENSECRET",
    "the engine's environment": ENVIRONMENT,
    "a Prometheus": PROMETHEUS,
    "a kubeconfig": KUBECONFIG,
    "a cookie": COOKIE,
    "a hash": hashed(CLIENT).partition(":")[2],
}


def keys_text() -> str:
    return yaml.safe_dump(
        {
            "keys": [
                {"name": "client", "key": hashed(CLIENT)},
                {"name": "limited", "key": hashed(LIMITED), "models": ["other"], "requestsPerMinute": 1},
                {"name": "root", "key": hashed(ADMIN), "admin": True},
            ]
        }
    )


@pytest.mark.parametrize("lane", ["on", pytest.param("off", marks=pytest.mark.slow)])
async def test_a_proxy_in_trouble_tells_nobody(tmp_path: Path, lane: str) -> None:
    keys, upstream, engine, broken = (tmp_path / name for name in ("keys.yaml", "upstream", "engine.py", "broken"))
    keys.write_text(keys_text())
    upstream.write_text(UPSTREAM)
    engine.write_text(ENGINE)
    flags = (
        *("--log-level", "debug", "--fast-lane", lane, "--api-keys-file", str(keys)),
        *("--upstream-api-key-file", str(upstream), "--admin-auth", "keys", "--start-timeout", "20s"),
    )
    command = (sys.executable, str(engine), "{port}", str(broken))
    environment = {"HF_TOKEN": ENVIRONMENT, "PRIORITY_KEYS": CLIENT}
    async with serving(*flags, command=command, environment=environment) as proxy:
        heard = Heard(proxy)
        await heard.read_everything()
        ok = {"model": "m"}
        assert await heard.ask("POST", CHAT, json=ok) == 401
        assert await heard.ask("POST", CHAT, json=ok, key=WRONG) == 401
        assert await heard.ask("POST", CHAT, json=ok, headers={"Authorization": f"Basic {WRONG}"}) == 401
        assert await heard.ask("POST", CHAT, json=ok, headers={"X-Api-Key": WRONG}) == 401
        assert await heard.ask("POST", CHAT, json=ok, key=LIMITED) == 403
        assert await heard.ask("POST", CHAT, json=ok, key=LIMITED) == 429
        assert await heard.ask("POST", "/proxy/operations/stop", key=CLIENT) == 403
        assert await heard.ask("POST", "/proxy/operations/stop", key=WRONG) == 401
        assert await heard.ask("POST", "/v1/load_lora_adapter", key=CLIENT) == 403
        assert await heard.ask("POST", CHAT, json=ok, key=CLIENT, headers={"X-Priority": "high"}) == 200
        assert await heard.ask("POST", CHAT, data=b"{", key=CLIENT, headers={"Content-Type": "application/json"}) == 200
        await heard.read_everything()
        assert await heard.ask("POST", CHAT, json=ok | {"x": "reset"}, key=CLIENT) == 502
        broken.touch()
        assert await heard.ask("POST", CHAT, json=ok | {"x": "die"}, key=CLIENT) == 503
        keys.write_text(f"keys: [{{name: client, key: {PLAIN}}}]")
        upstream.write_text(BROKEN_UPSTREAM)
        await proxy.until_logged("what was in the file before counts yet", 2)
        assert await heard.ask("POST", CHAT, json=ok, key=CLIENT) == 503, "what was in the files before counts"
        keys.write_text(keys_text().replace("name: client", "name: another"))
        await proxy.until_logged("the file was read anew")
        await heard.read_everything()
        await proxy.stop(signal.SIGINT)
        heard.check()


async def test_a_proxy_whose_cluster_refuses_it_tells_nobody(tmp_path: Path) -> None:
    seen: set[str] = set()

    async def api_server(request: web.BaseRequest) -> web.StreamResponse:
        seen.add(request.headers.get("Authorization", ""))
        status = {"kind": "Status", "message": "no", "reason": "Forbidden", "code": 403}
        return web.json_response(status, status=500 if "watch" in request.query_string else 403)

    runner = web.ServerRunner(web.Server(api_server, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    [(host, port)] = runner.addresses
    token, kubeconfig = tmp_path / "token", tmp_path / "kubeconfig"
    token.write_text(PROMETHEUS)
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://{host}:{port}"}}],
                "users": [{"name": "u", "user": {"token": KUBECONFIG}}],
                "contexts": [context],
                "current-context": "c",
            }
        )
    )
    flags = (
        *("--log-level", "debug", "--kubeconfig", str(kubeconfig), "--admin-auth", "kubernetes"),
        *("--prometheus-url", f"http://{host}:{port}", "--prometheus-token-file", str(token)),
    )
    async with serving(*flags) as proxy:
        heard = Heard(proxy)
        await proxy.until(lambda status: status["cause"] is not None)
        assert await heard.ask("POST", CHAT, json={}, headers={"Prefer": "wait=0"}, key=CLIENT) == 503
        assert await heard.ask("POST", "/proxy/operations/start", key=WRONG) == 500
        await heard.read_everything()
        await proxy.stop(signal.SIGINT)
        heard.check()
    await runner.cleanup()
    assert f"Bearer {KUBECONFIG}" in seen, "it was used"
