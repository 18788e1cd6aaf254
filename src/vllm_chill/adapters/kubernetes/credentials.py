"""Where the API server is and how to speak to it: a named kubeconfig, a pod's service account, or the usual file.

The rule: what a pod needs is read here without kubernetes_asyncio, because importing it costs 38 MB of the 128 MiB
that the proxy is given; it is imported for a kubeconfig, whose many ways to log in it knows.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vllm_chill.errors import NoCredentials, SettingError

_LOGIN_SECONDS = 60.0
_WAYS_ON = "to try it without a cluster run `vllm-chill demo`, or let it run a local command with `--backend process`"


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach one API server. `server` has no trailing slash; `authorization` is the header's whole value."""

    server: str
    tls: ssl.SSLContext | bool = True
    authorization: str | None = None
    server_name: str | None = None
    proxy: str | None = None


class Credentials(Protocol):
    """A source of access that can be asked again, because tokens and certificates expire."""

    fresh_seconds: float | None
    """How long an access may be used before it is asked for again; None: until it is refused."""

    async def load(self) -> Access:
        """Read the access as it is now. Raises SettingError."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where credentials are looked for, besides a kubeconfig that was named."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    service_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    kubeconfig: Path = field(default_factory=lambda: Path.home() / ".kube" / "config")


def find(kubeconfig: str | None, places: Places | None = None) -> Credentials:
    """The credentials to use: `kubeconfig` if it is named, else a pod's, else the usual file.

    Raises NoCredentials if there are none, SettingError if the named file does not exist.
    """
    places = places or Places()
    if kubeconfig:
        if not any(Path(path).expanduser().is_file() for path in kubeconfig.split(os.pathsep) if path):
            raise SettingError(f"kubeconfig {kubeconfig!r} does not exist: correct --kubeconfig or KUBECONFIG")
        return Kubeconfig(kubeconfig)
    pod = InCluster(places.environ, places.service_account)
    if (lacking := pod.lacking()) is None:
        return pod
    if places.kubeconfig.is_file():
        return Kubeconfig(str(places.kubeconfig))
    raise NoCredentials(
        "no way to a Kubernetes API server was found: --kubeconfig and KUBECONFIG are not set, "
        f"{lacking}, and {places.kubeconfig} does not exist; set --kubeconfig; {_WAYS_ON}"
    )


class InCluster:
    """A pod's service account. Its token is rotated by the kubelet, so the file is read again every minute."""

    fresh_seconds: float | None = 60.0

    def __init__(self, environ: Mapping[str, str], service_account: Path) -> None:
        self._host = environ.get("KUBERNETES_SERVICE_HOST", "")
        self._port = environ.get("KUBERNETES_SERVICE_PORT", "")
        self._token = service_account / "token"
        self._authority = service_account / "ca.crt"
        self._tls: tuple[str, ssl.SSLContext] | None = None

    def lacking(self) -> str | None:
        """What of a pod's surroundings is not there, or None if this is a pod."""
        if not self._host or not self._port:
            return "this is not a pod (KUBERNETES_SERVICE_HOST is not set)"
        for file in (self._token, self._authority):
            if not file.is_file():
                return f"this pod has no service account token ({file} does not exist)"
        return None

    async def load(self) -> Access:
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            token, authority = self._token.read_text().strip(), self._authority.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"the service account cannot be read: {error}") from error
        if not token.isprintable() or not token:
            raise SettingError(f"the service account cannot be read: there is no token in {self._token}")
        return Access(f"https://{host}:{self._port}", self._context(authority), f"Bearer {token}")

    def _context(self, authority: str) -> ssl.SSLContext:
        # A new context would mean a new connection, so the one for the same authority is kept.
        if self._tls is None or self._tls[0] != authority:
            try:
                self._tls = (authority, _lenient(ssl.create_default_context(cadata=authority)))
            except ssl.SSLError as error:
                raise SettingError(f"{self._authority} is not a certificate: {error}") from error
        return self._tls[1]


class Kubeconfig:
    """A kubeconfig, or several joined by the path separator. Logging in anew is reading it again."""

    fresh_seconds: float | None = None

    def __init__(self, path: str) -> None:
        self._path = path

    async def load(self) -> Access:
        try:
            async with asyncio.timeout(_LOGIN_SECONDS):
                return await self._load()
        except TimeoutError as error:
            cause = f"its login command did not answer within {_LOGIN_SECONDS:g} s"
            raise SettingError(f"kubeconfig {self._path!r} cannot be used: {cause}") from error
        except SettingError:
            raise
        except Exception as error:  # whatever a malformed file makes the library trip over
            raise SettingError(f"kubeconfig {self._path!r} cannot be used: {_cause(error)}") from error

    async def _load(self) -> Access:
        from kubernetes_asyncio.client import Configuration
        from kubernetes_asyncio.config import load_kube_config

        config = Configuration()
        unset = config.host
        await load_kube_config(config_file=self._path, client_configuration=config)
        if not config.host or config.host == unset:
            raise SettingError(f"kubeconfig {self._path!r} cannot be used: its current cluster has no server")
        tls = _lenient(ssl.create_default_context(cafile=config.ssl_ca_cert))
        if config.cert_file:
            tls.load_cert_chain(config.cert_file, config.key_file)
        if not config.verify_ssl:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        token = config.api_key.get("BearerToken")
        return Access(config.host, tls, token, config.tls_server_name, config.proxy)


def _lenient(context: ssl.SSLContext) -> ssl.SSLContext:
    # Python 3.13 asks for extensions that the authorities of older clusters lack, and that no other client asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _cause(error: Exception) -> str:
    from kubernetes_asyncio.config import ConfigException

    line = " ".join(str(error).split())
    if isinstance(error, ConfigException | OSError):
        return line
    return f"it does not have the form of a kubeconfig ({line or type(error).__name__})"
