"""An authority of our own, for tests of TLS: what it signs, and the files that people have of it."""

import ssl
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


class Authority:
    """`ca` is the file that trusts it."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def server(self, *names: str, wants_certificate: bool = False) -> ssl.SSLContext:
        """What a server of these names uses; it may want to know its clients by certificates of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        if wants_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self._authority.configure_trust(context)
        return context

    def files(self, name: str, password: str | None = None) -> tuple[Path, Path]:
        """A certificate and its key (PKCS 8, encrypted where there is a password)."""
        issued = self._authority.issue_cert(name)
        certificate, path = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        secret = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
        return certificate, path
