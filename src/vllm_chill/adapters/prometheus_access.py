"""How a Prometheus is reached, and by what right; what is in files is read anew when they change.

The rule: nothing but the files is looked at, so what is true of them now is used for the next question, without a
restart. What a person is to do about a TLS that fails is said here too, as it hangs on what is in the files.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from vllm_chill.adapters.followed_file import State, state_of
from vllm_chill.errors import BackendUnavailable, SettingError


@dataclass(frozen=True, slots=True)
class PrometheusAccess:
    """The address of a Prometheus, and what it wants of who asks. Raises SettingError for what cannot be used.

    `token` is the bearer token, or `token_file` holds it; the token counts if there are both. `ca_file` are the
    authorities that may have signed its certificate, None for those of this machine; `server_name` is the name that the
    certificate is for, if that is another than in the address. `certificate_file` and `key_file` are the client's own,
    and may be one file. All files are PEM. With `insecure_skip_verify` any certificate will do.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False

    def __post_init__(self) -> None:
        try:
            url = URL(self.url)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or url.host is None:
            raise SettingError(f'"{self.url}" is no address of a Prometheus; give one such as http://prometheus:9090')
        if self.key_file is not None and self.certificate_file is None:
            raise SettingError(f"the key {self.key_file} is of no use alone; give the client's certificate with it")

    @property
    def name(self) -> str:
        """The address for people: without a password."""
        return str(URL(self.url).with_user(None)).rstrip("/")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a question is sent with. `problem` says why the files could not be read anew, if they could not."""

    headers: dict[str, str]
    tls: ssl.SSLContext | None
    problem: str | None = None


class CredentialFiles:
    """The files of one access. Invariant: `_tls` is what they held when they were as in `_stamps`.

    `read` blocks for as long as the files' disk does.
    """

    def __init__(self, access: PrometheusAccess) -> None:
        self._access = access
        self._secure = URL(access.url).scheme == "https"
        self._tls: ssl.SSLContext | None = None
        self._stamps: tuple[object, ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is anything to read."""
        return self._secure or self._access.token_file is not None

    def read(self) -> Credentials:
        """What they hold now. Raises BackendUnavailable: one that is needed cannot be read."""
        token = self._access.token if self._access.token is not None else self._token()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if not self._secure:
            return Credentials(headers, None)
        problem = None
        try:
            self._refresh()
        except BackendUnavailable as error:
            # A certificate and its key are mostly not replaced in one step: the ones before do until both are there.
            if self._tls is None:
                raise
            problem = error.message
        return Credentials(headers, self._tls, problem)

    def _token(self) -> str | None:
        if self._access.token_file is None:
            return None
        try:
            return self._access.token_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"the token for {self._access.name} cannot be read: {error}") from None

    def _refresh(self) -> None:
        files = (self._access.ca_file, self._access.certificate_file, self._access.key_file)
        stamps = tuple(None if file is None else _stamp(file) for file in files)
        # A new context means a new connection, so the one for the same files is kept.
        if self._tls is None or stamps != self._stamps:
            self._tls = self._context()
            self._stamps = stamps

    def _context(self) -> ssl.SSLContext:
        access = self._access
        try:
            context = ssl.create_default_context(cafile=access.ca_file)
        except OSError as error:
            raise BackendUnavailable(
                f"{access.ca_file} holds no authority's certificate: {_cause(error)}; give a PEM file"
            ) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python 3.13 asks for extensions that authorities of older clusters lack, and that no other client asks for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if access.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if access.certificate_file is not None:
            self._identify(context, access.certificate_file)
        return context

    def _identify(self, context: ssl.SSLContext, certificate: Path) -> None:
        key = self._access.key_file
        try:
            # For want of a password OpenSSL would ask a terminal for one.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except OSError as error:
            files = certificate if key is None else f"{certificate} with {key}"
            raise BackendUnavailable(
                f"{files} is no client's certificate with its key: {_cause(error)}; "
                "give PEM files that belong together, the key without a password"
            ) from None


def tls_failure(access: PrometheusAccess, error: ssl.SSLError) -> str:
    """Why TLS with it fails, whose certificate it is about, and what to do: a sentence without a full stop."""
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {access.name} is not trusted: {error.verify_message}; {_mend(access, error)}"
    if reason in _NO_TLS:
        return f"{access.name} does not speak TLS; see whether its address begins with http://"
    if "VERSION" in reason or "PROTOCOL" in reason:
        return f"{access.name} does not speak TLS 1.2 or newer ({reason}); let it, or give the address of what does"
    if "ALERT" not in reason:
        return f"TLS with {access.name} fails: {reason}; see whether it is set up for TLS"
    if access.certificate_file is None:
        return f"{access.name} wants a client's certificate ({reason}); give one with its key"
    return (
        f"{access.name} refuses the client's certificate in {access.certificate_file} ({reason}); "
        "see whether it is still valid, and signed by an authority that it knows"
    )


_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")

# X509_V_ERR_*: as OpenSSL numbers them.
_EXPIRED, _OTHER_NAMES = 10, (62, 64)


def _mend(access: PrometheusAccess, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OTHER_NAMES:
        return "give the name that it is for as the server name"
    if error.verify_code == _EXPIRED:
        return "have it renewed"
    if access.ca_file is None:
        return "give the file of the authority that signed it"
    return f"see whether {access.ca_file} has the authority that signed it"


def _stamp(file: Path) -> State:
    try:
        return state_of(file)
    except OSError as error:
        raise BackendUnavailable(f"{file} cannot be read: {_cause(error)}; give a PEM file") from None


def _cause(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)
