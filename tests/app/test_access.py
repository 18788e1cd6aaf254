"""What settings of access mean together, and what they are refused for."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from tests.certificates import Authority, write
from tests.serving import serving
from vllm_chill.app.access import Access
from vllm_chill.app.plan import Plan
from vllm_chill.core.keys import hashed
from vllm_chill.errors import SettingError
from vllm_chill.settings.serve import load_settings

KEYS = f"keys: [{{name: root, admin: true, key: '{hashed('secret')}'}}]"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"admin_auth": "keys"}, "--admin-auth keys needs --api-keys-file; `vllm-chill keys new NAME` makes a key"),
        ({"status_readers": "keys"}, "--status-readers keys needs --api-keys-file"),
        ({"metrics_readers": "admin"}, "--metrics-readers admin lets those read whom --admin-auth lets operate"),
        ({"tls_cert": "a"}, "a certificate and its key belong together; give --tls-key too"),
        ({"tls_key": "a"}, "a certificate and its key belong together; give --tls-cert too"),
        ({"upstream_ca_file": "a"}, "--upstream-ca-file is of no use without --upstream-tls on"),
        ({"upstream_server_name": "a"}, "--upstream-server-name is of no use without --upstream-tls on"),
        (
            {"backend": "process", "admin_auth": "kubernetes"},
            "--admin-auth kubernetes asks a cluster, and with --backend process there is none; give keys or none",
        ),
        ({"cors_origins": "ui.example"}, '--cors-origins: "ui.example" is not accepted; give origins with commas'),
        ({"cors_origins": "https://a,https://b/path"}, "is not accepted"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(flags: dict[str, str], sentence: str) -> None:
    command = ("engine", "{port}") if flags.get("backend") == "process" else ()
    with pytest.raises(SettingError, match=re.escape(sentence)):
        Plan(load_settings(flags), command)


async def access(**flags: str) -> Access:
    return Access(Plan(load_settings(flags)).settings)


async def test_by_default_nobody_is_asked_and_nothing_is_replaced() -> None:
    found = await access()
    assert found.gate is None
    assert found.doorkeeper(lambda: None) is None
    assert found.engines.authorization is None
    assert (found.tls, found.engines.tls, found.cors) == (None, None, None)
    await asyncio.wait_for(found.follow(), 1)  # there is nothing to follow, so no timer runs


async def test_with_keys_the_clients_are_dropped_and_open_operations_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    found = await access(api_keys_file=str(tmp_path / "keys"))
    assert found.engines.authorization == b""
    with capture_logs() as logs:
        assert found.doorkeeper(lambda: None) is not None
    [line] = logs
    assert line["event"] == "the operations under /proxy/ are open to everybody who reaches this port"
    for flags in ({"admin_auth": "keys"}, {"admin_port": "0"}):
        closed = await access(api_keys_file=str(tmp_path / "keys"), **flags)
        with capture_logs() as logs:
            closed.doorkeeper(lambda: None)
        assert not logs


async def test_the_engines_key_alone_replaces_what_clients_say(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("engine")
    found = await access(upstream_api_key_file=str(tmp_path / "key"))
    assert found.engines.authorization == b"Bearer engine"
    assert found.doorkeeper(lambda: None) is None


@pytest.mark.parametrize("content", [None, "no PEM"])
async def test_an_authority_that_cannot_be_used_is_told_of(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ca").write_text(content)
    with pytest.raises(SettingError, match=r"^--upstream-ca-file .*: it cannot be used: .*; give a PEM file$"):
        await access(upstream_tls="on", upstream_ca_file=str(tmp_path / "ca"))


async def test_a_proxy_with_tls_keys_and_an_admin_port(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = write(tmp_path, *authority.issue("proxy.test"))
    (tmp_path / "keys").write_text(KEYS)
    flags = (
        *("--tls-cert", str(certificate), "--tls-key", str(key), "--api-keys-file", str(tmp_path / "keys")),
        *("--admin-port", "0", "--admin-auth", "keys"),
    )
    tls = ssl.create_default_context(cadata=authority.certificate.decode())
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    async with serving(*flags, command=("engine", "{port}")) as proxy, aiohttp.ClientSession() as session:
        apart = await proxy.until_logged("listening for operators")
        main, admin = proxy.url.replace("http:", "https:"), f"https://{apart['host']}:{apart['port']}"
        said = {"Authorization": "Bearer secret"}
        asked = [
            ("GET", f"{main}/health", {}, 200),
            ("GET", f"{main}/v1/models", {}, 401),
            ("GET", f"{main}/v1/models", said, 200),
            ("GET", f"{main}/proxy/status", said, 404),
            ("GET", f"{admin}/proxy/status", {}, 200),
            ("POST", f"{admin}/proxy/operations/stop", {}, 401),
            ("POST", f"{admin}/proxy/operations/stop", said, 200),
        ]
        for method, url, headers, status in asked:
            async with session.request(method, url, headers=headers, ssl=tls) as response:
                assert response.status == status, url
