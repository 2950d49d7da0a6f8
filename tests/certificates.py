"""
Certificates for tests, made anew: an authority, and what it signs for this machine.
"""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID


class Certificate(NamedTuple):
    """
    Paths of a certificate and of its key.
    """

    cert: Path
    key: Path


class Authority:
    """
    An authority of its own; `ca` is the path of its certificate.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, _named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = self._begun(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(self._signed(made))

    def issued(self, name: str) -> Certificate:
        """
        A certificate for 127.0.0.1 and localhost.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        places = [
            x509.IPAddress(ip_address("127.0.0.1")),
            x509.DNSName("localhost"),
        ]
        made = (
            self._begun(_named(name), key)
            .add_extension(x509.SubjectAlternativeName(places), critical=False)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    self._key.public_key()
                ),
                critical=False,
            )
        )
        paths = Certificate(
            self._folder / f"{name}.cert.pem", self._folder / f"{name}.key.pem"
        )
        paths.cert.write_bytes(self._signed(made))
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        paths.key.write_bytes(key.private_bytes(*form))

        return paths

    def _begun(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                critical=False,
            )
        )

    def _signed(self, made: x509.CertificateBuilder) -> bytes:
        return made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
