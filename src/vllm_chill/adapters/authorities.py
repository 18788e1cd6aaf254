"""The authorities that this machine trusts: some 140 certificates, which are read when a server needs one's word.

aiohttp reads them twice as it is imported, for contexts of its own, and they take 1.5 MB. The rule: whoever is imported
`without_authorities` is given a context with each request that may go to an https URL.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_WHERE = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""The variables that tell OpenSSL where they are."""


@cache
def trusting() -> ssl.SSLContext:
    """A context that trusts them."""
    return ssl.create_default_context()


@contextmanager
def without_authorities() -> Iterator[None]:
    """Within it this process finds none."""
    before = {name: os.environ.get(name) for name in _WHERE}
    os.environ.update(dict.fromkeys(_WHERE, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
