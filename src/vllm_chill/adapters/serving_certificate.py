"""The certificate that a server shows: two files, read again when they change, or one that nobody vouches for.

The rule: a change that cannot be used changes nothing: the certificate before it is shown until there is a better one.
"""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from vllm_chill.adapters.followed_file import State, state_if_there
from vllm_chill.errors import SettingError

_VALID = datetime.timedelta(days=3650)
"""Longer than any process runs. Nobody verifies it, so nobody minds."""


def from_files(
    certificate: Path, key: Path, follow: Callable[[Callable[[], None]], None] = lambda _: None
) -> ssl.SSLContext:
    """A server's context with the certificate, and what it is signed with, that are in these files at a handshake.
    `follow` is told what reads them anew, whether they have changed or not.

    Raises SettingError, a sentence, if they cannot be used now.
    """
    files = _Files(certificate, key)
    follow(files.read_anew)
    return files.context


def self_signed(host: str) -> ssl.SSLContext:
    """A server's context with a new key, and a certificate for `host` and localhost that it signs itself.

    It keeps what is said from who listens; who talks is for the client to find out otherwise. The library that makes it
    is imported here, because a process that is given files needs none of it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    # A name has room for 64 characters, which a pod's name may exceed.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    names = x509.SubjectAlternativeName([x509.DNSName(each) for each in dict.fromkeys((host, "localhost"))])
    # An hour ago, for clients whose clock is late.
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _VALID)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = _context()
    # ssl reads files only. This one is in memory: a pod need not have a place to write, and no disk has the key.
    with os.fdopen(os.memfd_create("certificate"), "wb") as file:
        file.write(private + certificate.public_bytes(serialization.Encoding.PEM))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


class _Files:
    """Invariant: `_current` is the last of what was in the files that could be used, and `_seen` how they were when
    they were read last.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        try:
            self._seen = self._state()
            self._current = self._load()
        except (OSError, ValueError) as error:
            raise SettingError(self._problem(error)) from error
        self.context = _context()
        self.context.sni_callback = self._choose

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        """Show the certificate of now, at each handshake: that is when it matters, and they are few."""
        self._refresh()
        connection.context = self._current

    def _refresh(self) -> None:
        if self._state() != self._seen:
            self.read_anew()

    def read_anew(self) -> None:
        """Use what is in the files now, if it can be used."""
        log = structlog.get_logger("vllm_chill.certificate")
        self._seen = self._state()
        try:
            self._current = self._load()
        except (OSError, ValueError) as error:
            log.warning("the certificate before is shown yet", cause=self._problem(error))
        else:
            log.info("the certificate was read anew", file=str(self._certificate))

    def _load(self) -> ssl.SSLContext:
        for path in (self._certificate, self._key):
            path.open("rb").close()  # ssl does not tell which of the two cannot be read
        context = _context()
        # With no password it would ask whoever sits at the terminal for one.
        context.load_cert_chain(self._certificate, self._key, password="")
        return context

    def _state(self) -> tuple[State | None, State | None]:
        return state_if_there(self._certificate), state_if_there(self._key)

    def _problem(self, error: Exception) -> str:
        match error:
            case ssl.SSLError(reason="KEY_VALUES_MISMATCH"):
                why = "they do not belong together"
            case ssl.SSLError():
                why = "they are not a certificate and its key, in PEM and without a password"
            case OSError(filename=str() as file, errno=int() as errno):
                why = f"{file}: {os.strerror(errno)}"
            case _:
                why = str(error)
        return f"the certificate {self._certificate} and its key {self._key} cannot be used: {why}"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
