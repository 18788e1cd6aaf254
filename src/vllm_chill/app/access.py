"""Who may do what with a proxy, and how it speaks to engines: by the settings and the files that they name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from vllm_chill.adapters.engine_access import EngineAccess
from vllm_chill.adapters.mask import Mask
from vllm_chill.core.access import Operators, Readers
from vllm_chill.core.keys import Keys
from vllm_chill.errors import SettingError
from vllm_chill.ports import Authorizer
from vllm_chill.proxy.gate import Gate
from vllm_chill.settings.plain import parse_origins
from vllm_chill.web.cors import Cors
from vllm_chill.web.doorkeeper import Doorkeeper

if TYPE_CHECKING:
    from vllm_chill.settings.serve import Settings

LOOK_SECONDS = 1.0
"""How often files are looked at: a key that is withdrawn, or new, counts that late. It is one system call for each."""


class Access:
    """What the settings say of keys, rights and TLS. Raises SettingError for files that cannot be used.

    `engines` is how engines are spoken to; `tls` how clients are, None for plain HTTP. `mask` hides the engines' key.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files: list[Any] = []
        self._certificates: list[Callable[[], None]] = []
        self.gate: Gate | None = None
        self.engines = EngineAccess()
        self.mask = Mask()
        self.tls = _listening_tls(settings, self._certificates.append)
        if settings.upstream_tls == "on":
            self.engines.tls = _engines_tls(settings.upstream_ca_file)
            self.engines.server_name = settings.upstream_server_name
        if settings.api_keys_file is not None or settings.upstream_api_key_file is not None:
            self._follow_files(settings.api_keys_file, settings.upstream_api_key_file)

    def _follow_files(self, keys: str | None, upstream: str | None) -> None:
        # Imported by who has such files, as they need YAML.
        from vllm_chill.adapters.secret_files import keys_file, upstream_key_file

        if keys is not None:
            self.gate = Gate(Keys(), asyncio.get_running_loop().time)
            self.engines.authorization = b""
            self._files.append(keys_file(Path(keys), self.gate.replace))
        if upstream is not None:
            self._files.append(upstream_key_file(Path(upstream), self._use_upstream_key))

    def _use_upstream_key(self, authorization: bytes) -> None:
        self.engines.authorization = authorization
        self.mask.add(authorization.removeprefix(b"Bearer ").decode("latin-1"))

    def doorkeeper(self, authorizer: Callable[[], Authorizer | None]) -> Doorkeeper | None:
        """Who lets requests in; None if nobody is to be asked for anything. `authorizer` is that of the cluster."""
        settings = self._settings
        operators = Operators(settings.admin_auth)
        metrics, status = Readers(settings.metrics_readers), Readers(settings.status_readers)
        if self.gate is None and operators is Operators.ALL:
            return None
        if self.gate is not None and operators is Operators.ALL and settings.admin_port is None:
            structlog.get_logger("vllm_chill").warning(
                "the operations under /proxy/ are open to everybody who reaches this port",
                hint="give --admin-auth keys, or move them with --admin-port",
            )
        reviews = authorizer() if operators is Operators.KUBERNETES else None
        return Doorkeeper(self.gate, operators=operators, metrics=metrics, status=status, authorizer=reviews)

    @property
    def cors(self) -> Cors | None:
        """Which pages of other origins may ask; None leaves that to the engine."""
        return Cors(parse_origins(self._settings.cors_origins)) if self._settings.cors_origins else None

    def read_anew(self) -> None:
        """Use what is in the files now, whether they have changed or not."""
        for file in self._files:
            file.read_anew()
        for read in self._certificates:
            read()

    async def follow(self) -> None:
        """Keep to what is in the files, until cancelled."""
        while self._files:
            await asyncio.sleep(LOOK_SECONDS)
            for file in self._files:
                file.look()


def _listening_tls(settings: Settings, follow: Callable[[Callable[[], None]], None]) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    from vllm_chill.adapters.serving_certificate import from_files

    return from_files(Path(settings.tls_cert), Path(settings.tls_key), follow)


def _engines_tls(authority: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise SettingError(f"--upstream-ca-file {authority}: it cannot be used: {why}; give a PEM file") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 asks for extensions that authorities of clusters often lack, and that no other client asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    return context
