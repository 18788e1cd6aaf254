"""A Prometheus behind TLS, over real sockets with real certificates, and files that are replaced while it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from tests.adapters.certificates import Authority
from vllm_chill.adapters.prometheus import Prometheus
from vllm_chill.adapters.prometheus_access import CredentialFiles, PrometheusAccess
from vllm_chill.errors import BackendUnavailable, SettingError

ANSWER = json.dumps({"status": "success", "data": {"resultType": "scalar", "result": [1, "42"]}})


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("theirs"))


@contextlib.asynccontextmanager
async def front(leaf: trustme.LeafCert, clients: trustme.CA | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """The address of one with this certificate, that wants one of its clients which this authority has signed; and to
    whom it has answered.
    """
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        known = request.transport.get_extra_info("peercert") or {}
        asked.append(":".join(name for _, name in known.get("subjectAltName", ())))
        return web.Response(text=ANSWER)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def ask(access: PrometheusAccess) -> float | None:
    async with Prometheus(access, pauses=()) as prometheus:
        return await prometheus.value("up")


async def test_a_certificate_is_trusted_that_a_given_authority_has_signed(ours: Authority) -> None:
    async with front(ours.ca.issue_cert("127.0.0.1")) as (url, _):
        assert await ask(PrometheusAccess(url, ca_file=ours.file)) == 42


async def test_it_may_be_for_another_name_that_is_given(ours: Authority) -> None:
    async with front(ours.ca.issue_cert("prometheus.example")) as (url, _):
        assert await ask(PrometheusAccess(url, ca_file=ours.file, server_name="prometheus.example")) == 42
        with pytest.raises(BackendUnavailable, match=r"is not trusted: IP address mismatch.*as the server name$"):
            await ask(PrometheusAccess(url, ca_file=ours.file))
        with pytest.raises(BackendUnavailable, match=r"is not trusted: Hostname mismatch"):
            await ask(PrometheusAccess(url, ca_file=ours.file, server_name="other.example"))


async def test_any_certificate_will_do_if_it_is_said_so(theirs: Authority) -> None:
    async with front(theirs.ca.issue_cert("other.example")) as (url, _):
        assert await ask(PrometheusAccess(url, insecure_skip_verify=True)) == 42


async def test_one_that_nobody_known_has_signed_is_told_with_what_to_give(ours: Authority, theirs: Authority) -> None:
    async with front(theirs.ca.issue_cert("127.0.0.1")) as (url, asked):
        with pytest.raises(
            BackendUnavailable, match=r"not trusted: .*issuer.*; see whether .*ca.crt has the authority"
        ):
            await ask(PrometheusAccess(url, ca_file=ours.file))
        with pytest.raises(
            BackendUnavailable, match=r"the certificate of https://127.* give the file of the authority"
        ):
            await ask(PrometheusAccess(url))
        assert asked == []


async def test_one_that_has_expired_is_told(ours: Authority) -> None:
    leaf = ours.ca.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    async with front(leaf) as (url, _):
        with pytest.raises(BackendUnavailable, match=r"not trusted: certificate has expired; have it renewed$"):
            await ask(PrometheusAccess(url, ca_file=ours.file))


async def test_who_speaks_no_tls_is_told_of() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=ANSWER)

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with pytest.raises(BackendUnavailable, match="does not speak TLS; see whether its address begins with http://"):
        await ask(PrometheusAccess(f"https://127.0.0.1:{runner.addresses[0][1]}"))
    await runner.cleanup()


async def test_who_speaks_tls_only_is_told_of(ours: Authority) -> None:
    async with front(ours.ca.issue_cert("127.0.0.1")) as (url, _):
        with pytest.raises(
            BackendUnavailable, match="it closes the connection; see whether its address begins with https"
        ):
            await ask(PrometheusAccess(url.replace("https", "http")))


async def test_a_client_shows_its_certificate(ours: Authority, theirs: Authority, tmp_path: Path) -> None:
    certificate, key = ours.issue(tmp_path, "client.example")
    async with front(ours.ca.issue_cert("127.0.0.1"), ours.ca) as (url, asked):
        access = PrometheusAccess(url, ca_file=ours.file, certificate_file=certificate, key_file=key)
        assert await ask(access) == 42
        assert asked == ["client.example"]
        both = tmp_path / "both.pem"
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        assert await ask(PrometheusAccess(url, ca_file=ours.file, certificate_file=both)) == 42
        # This server just hangs up. One that says why is in test_prometheus_loads.
        with pytest.raises(BackendUnavailable, match=r"it closes the connection; see whether it wants another cert"):
            await ask(PrometheusAccess(url, ca_file=ours.file))
        theirs.issue(tmp_path, "client.example")
        with pytest.raises(BackendUnavailable, match=r"it closes the connection; see whether it wants another cert"):
            await ask(access)


async def test_a_certificate_that_is_replaced_is_shown_without_a_restart(ours: Authority, tmp_path: Path) -> None:
    certificate, key = ours.issue(tmp_path, "first.example")
    async with front(ours.ca.issue_cert("127.0.0.1"), ours.ca) as (url, asked):
        access = PrometheusAccess(url, ca_file=ours.file, certificate_file=certificate, key_file=key)
        async with Prometheus(access, pauses=()) as prometheus:
            await prometheus.value("up")
            await prometheus.value("up")
            # The certificate is there before its key: until both are, the ones before are shown.
            second = ours.ca.issue_cert("second.example")
            certificate.write_bytes(second.cert_chain_pems[0].bytes())
            await prometheus.value("up")
            key.write_bytes(second.private_key_pem.bytes())
            await prometheus.value("up")
        assert asked == ["first.example"] * 3 + ["second.example"]


async def test_an_authority_that_is_replaced_counts_without_a_restart(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    # As a kubelet replaces what is in a volume: by another folder behind a link.
    for folder, signer in (("old", theirs), ("new", ours)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ca.crt").write_bytes(signer.file.read_bytes())
    (tmp_path / "data").symlink_to("old")
    async with front(ours.ca.issue_cert("127.0.0.1")) as (url, _):
        access = PrometheusAccess(url, ca_file=tmp_path / "data" / "ca.crt")
        async with Prometheus(access, pauses=()) as prometheus:
            with pytest.raises(BackendUnavailable, match="not trusted"):
                await prometheus.value("up")
            (tmp_path / "link").symlink_to("new")
            (tmp_path / "link").replace(tmp_path / "data")
            assert await prometheus.value("up") == 42


def test_what_is_read_is_kept_until_a_file_is_another(ours: Authority, tmp_path: Path) -> None:
    certificate, key = ours.issue(tmp_path, "client.example")
    access = PrometheusAccess("https://p", ca_file=ours.file, certificate_file=certificate, key_file=key)
    files = CredentialFiles(access)
    first = files.read()
    assert files.read().tls is first.tls
    assert first.tls is not None
    assert first.tls.minimum_version is ssl.TLSVersion.TLSv1_2
    os.utime(key, (1, 1))
    second = files.read()
    assert second.tls is not first.tls
    key.unlink()
    third = files.read()
    assert third.tls is second.tls
    assert third.problem is not None
    assert "client.key cannot be read: No such file or directory" in third.problem


def spoil(file: Path) -> None:
    file.write_text("nonsense")


def lock(key: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    read = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(read.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))


@pytest.mark.parametrize(
    ("file", "harm", "says"),
    [
        pytest.param("ca.crt", Path.unlink, r"ca\.crt cannot be read: No such file", id="no authority"),
        pytest.param("ca.crt", spoil, r"ca\.crt holds no authority's certificate: .*; give a PEM file", id="nonsense"),
        pytest.param("client.crt", Path.unlink, r"client\.crt cannot be read: No such file", id="no certificate"),
        pytest.param("client.crt", spoil, r"client\.crt with .*key is no client's certificate", id="no such thing"),
        pytest.param("client.key", spoil, r"client's certificate with its key", id="no key"),
        pytest.param("client.key", lock, r"the key without a password$", id="a locked key"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    file: str, harm: Callable[[Path], None], says: str, ours: Authority, tmp_path: Path
) -> None:
    certificate, key = ours.issue(tmp_path, "client.example")
    (tmp_path / "ca.crt").write_bytes(ours.file.read_bytes())
    harm(tmp_path / file)
    access = PrometheusAccess("https://p", ca_file=tmp_path / "ca.crt", certificate_file=certificate, key_file=key)
    with pytest.raises(BackendUnavailable, match=says):
        CredentialFiles(access).read()


def test_a_key_alone_is_a_setting_to_mend() -> None:
    with pytest.raises(SettingError, match=r"key\.pem is of no use alone; give the client's certificate with it"):
        PrometheusAccess("https://p", key_file=Path("key.pem"))
