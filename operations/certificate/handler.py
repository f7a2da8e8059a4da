"""Issue and renew the pooler's certificate, with a private CA of the stack.

Runs at deployment as a custom resource and every week by schedule; each run does only what is
due. Private keys are nowhere but in Secrets Manager, the CA's in a secret that only this function
may read.

A CA lasts ten years. When a third of that is left its successor is made and published beside it;
certificates are signed by the successor a year later, so that every deployment in that year takes
the new CA to the functions before they need it.
"""

import hashlib
import ipaddress
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=90)
OVERLAP = timedelta(days=365)
CLOCK_SKEW = timedelta(minutes=5)

logger = logging.getLogger("certificate")
logger.setLevel(logging.INFO)


@dataclass(frozen=True)
class Signed:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def parse(cls, private_key: str, certificate: str) -> "Signed":
        """Read both from PEM."""
        key = serialization.load_pem_private_key(private_key.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"the key is {type(key).__name__}, not an elliptic curve's")
        return cls(key, x509.load_pem_x509_certificate(certificate.encode()))

    @property
    def private_pem(self) -> str:
        """The key as PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def is_due(self, now: datetime) -> bool:
        """Tell whether less than a third of its time is left."""
        end = self.certificate.not_valid_after_utc
        return end - now < (end - self.certificate.not_valid_before_utc) / 3

    def has_signed(self, leaf: "Signed") -> bool:
        """Tell whether this authority has signed `leaf`."""
        try:
            leaf.certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, InvalidSignature):
            return False
        return True


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Handle events of CloudFormation and of the schedule."""
    if event.get("RequestType") == "Delete":
        return {"PhysicalResourceId": event["PhysicalResourceId"]}
    bundle = renew(os.environ["CERTIFICATE_NAMES"].split(","), datetime.now(UTC))
    if "RequestType" not in event:
        publish(bundle)
    return {"PhysicalResourceId": "pooler-certificate", "Data": {"CaCertificate": bundle}}


def renew(names: Sequence[str], now: datetime) -> str:
    """Create or renew what is due; return the CA certificates that clients have to trust."""
    authorities = renew_authorities(now)
    signer = signer_among(authorities, now)
    bundle = bundle_of(authorities)
    stored = read_secret("CERTIFICATE_SECRET_ARN")
    if stored.get("ca_certificate") != bundle or is_leaf_due(stored, signer, names, now):
        leaf = sign(names, now, LEAF_LIFETIME, signer)
        write_secret(
            "CERTIFICATE_SECRET_ARN",
            {
                "private_key": leaf.private_pem,
                "certificate_chain": leaf.pem,
                "ca_certificate": bundle,
            },
        )
        end = leaf.certificate.not_valid_after_utc
        logger.info("issued a certificate for %s until %s", ", ".join(names), end)
    return bundle


def bundle_of(authorities: Sequence[Signed]) -> str:
    """Return the CAs as one PEM text, whose first line is a comment with a hash of the CAs.

    CloudFormation can read that line from the text, and publishes a new version of a function if
    the line has changed.
    """
    pem = "".join(authority.pem for authority in authorities)
    return f"# pooler CA {hashlib.sha256(pem.encode()).hexdigest()[:16]}\n{pem}"


def renew_authorities(now: datetime) -> list[Signed]:
    """Return the CAs in use, oldest first; create the first or the next one if it is due."""
    stored = read_secret("AUTHORITY_SECRET_ARN").get("authorities", [])
    known = [Signed.parse(entry["private_key"], entry["certificate"]) for entry in stored]
    authorities = [one for one in known if one.certificate.not_valid_after_utc > now]
    if not authorities or authorities[-1].is_due(now):
        authorities.append(sign([f"lambda-pg pooler CA {now:%Y-%m-%d}"], now, AUTHORITY_LIFETIME))
        logger.warning("made a CA: deploy within a year, so that the functions trust it")
    if authorities != known:
        write_secret("AUTHORITY_SECRET_ARN", {"authorities": [_stored(a) for a in authorities]})
    return authorities


def signer_among(authorities: Sequence[Signed], now: datetime) -> Signed:
    """Choose the newest CA that has been published long enough, or else the oldest CA."""
    published = [
        one for one in authorities if one.certificate.not_valid_before_utc + OVERLAP <= now
    ]
    return published[-1] if published else authorities[0]


def is_leaf_due(
    stored: dict[str, Any], signer: Signed, names: Sequence[str], now: datetime
) -> bool:
    """Tell whether the certificate is missing, old, for other names or from another CA."""
    if "private_key" not in stored:
        return True
    leaf = Signed.parse(stored["private_key"], stored["certificate_chain"])
    carried = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    same_names = list(carried.value) == [alternative(name) for name in names]
    return leaf.is_due(now) or not same_names or not signer.has_signed(leaf)


def sign(
    names: Sequence[str], now: datetime, lifetime: timedelta, signer: Signed | None = None
) -> Signed:
    """Create a key and its certificate: a server's, signed by `signer`, or a self-signed CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    end = now + lifetime
    if signer is not None:
        end = min(end, signer.certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
    )
    for extension, critical in extensions(key, names, signer):
        builder = builder.add_extension(extension, critical=critical)
    return Signed(key, builder.sign(signer.key if signer else key, hashes.SHA256()))


def extensions(
    key: ec.EllipticCurvePrivateKey, names: Sequence[str], signer: Signed | None
) -> Iterable[tuple[x509.ExtensionType, bool]]:
    """Yield the extensions of a CA's or a server's certificate."""
    authority = signer is None
    yield x509.BasicConstraints(ca=authority, path_length=0 if authority else None), True
    yield key_usage(authority=authority), True
    yield x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
    if signer is not None:
        public = signer.key.public_key()
        yield x509.AuthorityKeyIdentifier.from_issuer_public_key(public), False
        yield x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False
        yield x509.SubjectAlternativeName([alternative(name) for name in names]), False


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """Return the key usage: a CA signs certificates, a server signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def alternative(name: str) -> x509.GeneralName:
    """Return a DNS name or an IP address, two kinds of name in a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def publish(bundle: str) -> None:
    """Publish a renewed CA for the next deployment."""
    ssm, name = boto3.client("ssm"), os.environ["CA_PARAMETER"]
    if ssm.get_parameter(Name=name)["Parameter"]["Value"] != bundle:
        ssm.put_parameter(Name=name, Value=bundle, Type="String", Overwrite=True)


def read_secret(variable: str) -> dict[str, Any]:
    """Read a secret as JSON; return {} for a new one, as CloudFormation creates it."""
    secrets, arn = boto3.client("secretsmanager"), os.environ[variable]
    text = secrets.get_secret_value(SecretId=arn)["SecretString"]
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def write_secret(variable: str, value: dict[str, Any]) -> None:
    """Write a secret as JSON."""
    boto3.client("secretsmanager").put_secret_value(
        SecretId=os.environ[variable], SecretString=json.dumps(value)
    )


def _stored(authority: Signed) -> dict[str, str]:
    return {"private_key": authority.private_pem, "certificate": authority.pem}
