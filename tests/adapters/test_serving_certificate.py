"""The certificate that a server shows, by whoever connects to it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from tests.certificates import Authority, write
from vllm_chill.adapters.serving_certificate import from_files, self_signed
from vllm_chill.errors import SettingError


@asynccontextmanager
async def serving(tls: ssl.SSLContext) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


def client(**options: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in options.items():
        setattr(context, name, value)
    return context


async def shown(port: int, context: ssl.SSLContext | None = None, name: str | None = None) -> x509.Certificate:
    """The certificate that is shown; `name` is the one that is asked for, if one is."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context or client(), server_hostname=name or "")
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(found)


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return list(found.value.get_values_for_type(x509.DNSName))


async def test_without_files_one_is_made_for_this_host() -> None:
    async with serving(self_signed("a-pod")) as port:
        certificate = await shown(port)
    assert names(certificate) == ["a-pod", "localhost"]
    assert certificate.issuer == certificate.subject
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 3650


async def test_two_processes_do_not_have_the_same_key() -> None:
    async with serving(self_signed("a")) as one, serving(self_signed("a" * 100)) as another:
        assert (await shown(one)).public_key() != (await shown(another)).public_key()


def test_making_one_leaves_no_file(tmp_path: Path) -> None:
    # A read-only file system with no place for files is what a careful pod has.
    code = "import vllm_chill.adapters.serving_certificate as s, sys; assert 'cryptography' not in sys.modules; "
    code += "s.self_signed('a')"
    environment = {"TMPDIR": str(tmp_path / "nowhere"), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd="/")


async def test_what_is_older_than_tls_1_2_is_refused() -> None:
    context = self_signed("a")
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    async with serving(context) as port:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            await shown(port, client(maximum_version=version))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old = client(maximum_version=ssl.TLSVersion.TLSv1_1, minimum_version=ssl.TLSVersion.TLSv1_1)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shown(port, old)


async def test_files_that_change_are_read_anew_by_the_next_to_connect(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = write(tmp_path, *authority.issue("first"))
    with capture_logs() as logs:
        async with serving(from_files(certificate, key)) as port:
            assert names(await shown(port)) == ["first"]
            assert not logs
            write(tmp_path, *authority.issue("second"))
            for name in (None, "second"):
                assert names(await shown(port, name=name)) == ["second"]
    assert [log["event"] for log in logs] == ["the certificate was read anew"]


async def test_a_secret_that_is_exchanged_as_the_kubelet_does_it_is_read_anew(tmp_path: Path) -> None:
    authority = Authority()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, *authority.issue(name))
    (tmp_path / "..data").symlink_to("first")
    for file in ("tls.crt", "tls.key"):
        (tmp_path / file).symlink_to(Path("..data") / file)
    async with serving(from_files(tmp_path / "tls.crt", tmp_path / "tls.key")) as port:
        assert names(await shown(port)) == ["first"]
        (tmp_path / "..new").symlink_to("second")
        (tmp_path / "..new").rename(tmp_path / "..data")
        assert names(await shown(port)) == ["second"]


async def test_what_cannot_be_used_is_told_once_and_the_one_before_is_shown_until_it_can(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = write(tmp_path, *authority.issue("first"))
    with capture_logs() as logs:
        async with serving(from_files(certificate, key)) as port:
            others, _ = authority.issue("half")
            certificate.write_bytes(others)
            assert [names(await shown(port)) for _ in range(3)] == [["first"]] * 3
            key.unlink()
            assert [names(await shown(port)) for _ in range(3)] == [["first"]] * 3
            write(tmp_path, *authority.issue("second"))
            assert names(await shown(port)) == ["second"]
    causes = [log["cause"] for log in logs if log["log_level"] == "warning"]
    assert [cause.partition("cannot be used: ")[2] for cause in causes] == [
        "they do not belong together",
        f"{key}: No such file or directory",
    ]


def test_files_that_are_not_there_or_no_certificate_are_told_at_the_start(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    with pytest.raises(SettingError, match=r"tls.crt and its key .*tls.key cannot be used: .*tls.crt: No such file"):
        from_files(certificate, key)
    certificate.write_text("nothing")
    key.write_text("nothing")
    with pytest.raises(SettingError, match="they are not a certificate and its key, in PEM and without a password"):
        from_files(certificate, key)


def test_a_key_with_a_password_does_not_ask_for_it(tmp_path: Path) -> None:
    certificate, key = write(tmp_path, *Authority().issue("a"))
    secret = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    key.write_bytes(secret)
    with pytest.raises(SettingError, match="without a password"):
        from_files(certificate, key)
