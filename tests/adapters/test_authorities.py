"""Whom a proxy trusts that was imported without any authority."""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

import pytest
from aiohttp import web

from tests.adapters.certificates import Authority
from tests.serving import clean_environment

_ASKS = """
import asyncio, os, ssl, sys
from vllm_chill.adapters.authorities import without_authorities
before = dict(os.environ)
with without_authorities():
    import aiohttp
assert os.environ == before
from aiohttp import connector
for name, one in vars(connector).items():
    assert not isinstance(one, ssl.SSLContext) or one.cert_store_stats()["x509"] == 0, name
from vllm_chill.adapters.page import page
from vllm_chill.errors import BackendUnavailable
try:
    print(asyncio.run(page(sys.argv[1], 5, 100)).decode())
except BackendUnavailable as error:
    print(error.message)
"""


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "unknown"])
async def test_a_page_is_taken_from_whom_this_machine_trusts_and_from_nobody_else(
    tmp_path: Path, trusted: bool
) -> None:
    ours = Authority.new(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.ca.issue_cert("127.0.0.1").configure_cert(context)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="gpu 1")

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    environment = clean_environment(**({"SSL_CERT_FILE": str(ours.file)} if trusted else {}))
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _ASKS, f"https://127.0.0.1:{runner.addresses[0][1]}/metrics"),
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    finally:
        await runner.cleanup()
    assert process.returncode == 0
    assert ("gpu 1" if trusted else "CERTIFICATE_VERIFY_FAILED") in said.decode()
