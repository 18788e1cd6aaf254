"""Authorities and certificates for tests, in files as programs want them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Authority:
    """One that signs certificates, with its own in a file."""

    ca: trustme.CA
    file: Path

    @classmethod
    def new(cls, folder: Path) -> Authority:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.crt"))
        return cls(ca, folder / "ca.crt")

    def issue(self, folder: Path, *names: str, part: str = "client") -> tuple[Path, Path]:
        """A new certificate for these names, with its key: PART.crt and PART.key."""
        leaf = self.ca.issue_cert(*names)
        certificate, key = folder / f"{part}.crt", folder / f"{part}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        return certificate, key
