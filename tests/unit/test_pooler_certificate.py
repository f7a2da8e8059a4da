"""When a certificate ends, by the supervisor's own reading of it."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.pgbouncer.certificate import end_of

BEGIN = datetime(2026, 11, 30, 8, 0, 0, tzinfo=UTC)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def issued(end: datetime, key: Key, name: str = "pooler", filling: int = 0) -> str:
    """Write a certificate that ends at a time."""
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)] * 3)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(subject)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(BEGIN, end - timedelta(days=1)))
        .not_valid_after(end)
    )
    if filling:
        private = x509.ObjectIdentifier("1.3.6.1.4.1.32473.1")  # of RFC 5612, for examples
        extension = x509.UnrecognizedExtension(private, bytes(filling))
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "end",
    [
        datetime(2027, 2, 28, 23, 59, 59, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),
        datetime(1999, 5, 6, 7, 8, 9, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_the_end_is_the_one_that_cryptography_reads(end: datetime) -> None:
    """Both ways to write a time, on both sides of their borders."""
    assert end_of(issued(end, ec.generate_private_key(ec.SECP256R1()))) == end


def test_long_certificates_are_read_too() -> None:
    """Their lengths take two and three bytes more; another algorithm has another length, too."""
    end = BEGIN + timedelta(days=90)
    key = rsa.generate_private_key(65537, 2048)
    for filling in (0, 70_000):
        assert end_of(issued(end, key, "n" * 64, filling)) == end


def test_the_first_certificate_of_a_chain_counts() -> None:
    """It is the pooler's own; text around it is none."""
    authority = Authority.create("CA")
    own = authority.issue(["pooler"]).chain
    (read, _) = x509.load_pem_x509_certificates((own + authority.pem).encode())
    assert end_of(f"# a comment\n{own}{issued(BEGIN, authority.key)}") == read.not_valid_after_utc


def test_a_chain_without_a_certificate_is_refused() -> None:
    """OpenSSL would not have loaded it."""
    with pytest.raises(ValueError, match="no certificate"):
        end_of("nothing")
