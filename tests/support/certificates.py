"""Certificates of a service, and of the CA that its clients trust."""

import ssl
from pathlib import Path

import trustme


class Files:
    """The files of one service, and a CA that its clients trust."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.client_ca = directory / "clients.pem"
        self.renew()

    def renew(self) -> None:
        issued = self.ca.issue_cert("localhost", "127.0.0.1")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())

    @property
    def settings(self) -> dict[str, Path]:
        return {"tls_cert": self.cert, "tls_key": self.key}

    def client_context(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context
