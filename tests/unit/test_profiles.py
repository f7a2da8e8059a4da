"""Profiles: which endpoint is which, and the roots that each of them trusts."""

import hashlib
import re
import ssl
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lambda_pg import _profiles
from lambda_pg._profiles import (
    AMAZON_ROOTS,
    AWS_ROOTS,
    LETSENCRYPT_ROOTS,
    SUPABASE_ROOTS,
    Profile,
    ProfileName,
    profile_for,
    region_of,
    roots_for,
)

PROFILES = {
    name.lower(): value for name, value in vars(_profiles).items() if isinstance(value, Profile)
}


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("127.0.0.1", 5432, "direct"),
        ("app.c9akciq32.eu-west-1.rds.amazonaws.com", 5432, "direct"),
        ("app.cluster-c9akciq32.eu-west-1.rds.amazonaws.com", 5432, "direct"),
        ("app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com", 5432, "rds_proxy"),
        ("APP.proxy-c9akciq32.eu-west-1.rds.amazonaws.com.", 5432, "rds_proxy"),
        ("ro.endpoint.proxy-c9akciq32.eu-west-1.rds.amazonaws.com", 5432, "rds_proxy"),
        ("app.proxy-c9akciq32.rds.cn-north-1.amazonaws.com.cn", 5432, "rds_proxy"),
        ("app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com.example.com", 5432, "direct"),
        ("my-proxy-for-rds.example.com", 5432, "direct"),
        ("aws-0-eu-central-1.pooler.supabase.com", 5432, "supabase_session"),
        ("aws-0-eu-central-1.pooler.supabase.com", 6543, "supabase_transaction"),
        ("db.abcdefghij.supabase.co", 5432, "supabase_direct"),
        ("db.abcdefghij.supabase.co", 6543, "supabase_transaction"),
        ("ep-cool-darkness-123456.us-east-2.aws.neon.tech", 5432, "neon_direct"),
        ("ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech", 5432, "neon_pooled"),
        ("ep-a-pooler-b-123456.us-east-2.aws.neon.tech", 5432, "neon_direct"),
        ("neon.tech.example.com", 5432, "direct"),
    ],
)
def test_host_and_port_tell_the_profile(host: str, port: int, expected: str) -> None:
    """Hosts of RDS Proxy, Supabase and Neon are known; everything else is a database."""
    assert profile_for(None, host, port) == PROFILES[expected]


@pytest.mark.parametrize(
    ("name", "host", "port", "expected"),
    [
        ("pgbouncer", "127.0.0.1", 6432, "pgbouncer"),
        ("rds-proxy", "proxy.example.com", 5432, "rds_proxy"),
        ("direct", "app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com", 5432, "direct"),
        ("supabase", "pool.example.com", 5432, "supabase_transaction"),
        ("neon", "pool.example.com", 5432, "neon_pooled"),
        ("supabase", "db.abcdefghij.supabase.co", 5432, "supabase_direct"),
        ("neon", "ep-cool-darkness-123456.us-east-2.aws.neon.tech", 5432, "neon_direct"),
    ],
)
def test_a_name_beats_the_host(name: ProfileName, host: str, port: int, expected: str) -> None:
    """A named profile is taken; where its mode cannot be told, the one that allows less."""
    assert profile_for(name, host, port) == PROFILES[expected]


def test_a_pooler_in_transaction_mode_has_no_session() -> None:
    """Startup options would change a shared session, so they need a session that is not shared."""
    assert {name for name, profile in PROFILES.items() if not profile.session} == {
        "pgbouncer",
        "rds_proxy",
        "supabase_transaction",
        "neon_pooled",
    }
    assert all(profile.session for profile in PROFILES.values() if profile.startup_options)


def test_no_connection_outlives_what_lies_between() -> None:
    """Idle connections are given up before the flow is forgotten, old ones before a day is over."""
    for name, profile in PROFILES.items():
        limit = 1800 if name == "rds_proxy" else 300 if profile.name == "neon" else 350
        assert profile.max_idle < limit
        assert profile.max_idle < profile.max_lifetime < 86400


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("app.c9akciq32.eu-west-1.rds.amazonaws.com", "eu-west-1"),
        ("app.proxy-c9akciq32.us-gov-west-1.rds.amazonaws.com", "us-gov-west-1"),
        ("app.c9akciq32.rds.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("db.internal", None),
    ],
)
def test_the_region_is_read_from_an_rds_endpoint(host: str, region: str | None) -> None:
    """Only a name that AWS gave says where the database is."""
    assert region_of(host) == region


@pytest.mark.parametrize(
    ("name", "host", "file"),
    [
        (None, "app.c9akciq32.eu-west-1.rds.amazonaws.com", "rds/eu-west-1.pem"),
        (None, "APP.cluster-ro-c9akciq32.us-east-2.rds.amazonaws.com.", "rds/us-east-2.pem"),
        (None, "app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com", "amazon.pem"),
        (None, "app.proxy-c9akciq32.xy-new-1.rds.amazonaws.com", "amazon.pem"),
        (None, "app.proxy-c9akciq32.rds.cn-north-1.amazonaws.com.cn", "amazon.pem"),
        ("direct", "app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com", "amazon.pem"),
        ("rds-proxy", "proxy.example.com", "amazon.pem"),
        ("rds-proxy", "app.c9akciq32.eu-west-1.rds.amazonaws.com", "rds/eu-west-1.pem"),
        (None, "app.c9akciq32.xy-new-1.rds.amazonaws.com", "aws.pem"),
        ("rds-proxy", "app.c9akciq32.xy-new-1.rds.amazonaws.com", "aws.pem"),
        (None, "app.c9akciq32.us-gov-west-1.rds.amazonaws.com", "aws.pem"),
        (None, "app.c9akciq32.rds.cn-north-1.amazonaws.com.cn", "aws.pem"),
        (None, "app.c9akciq32.us-east-2.rds-preview.amazonaws.com", "aws.pem"),
        (None, "database.lambda-pg.internal", "aws.pem"),
        (None, "10.0.0.5", "aws.pem"),
        (None, "eu-west-1.rds.amazonaws.com.example.com", "aws.pem"),
        ("pgbouncer", "pooler.lambda-pg.internal", "aws.pem"),
        (None, "db.abcdefghij.supabase.co", "supabase.pem"),
        (None, "ep-cool-darkness-123456.us-east-2.aws.neon.tech", "letsencrypt.pem"),
    ],
)
def test_the_host_tells_the_roots(name: ProfileName | None, host: str, file: str) -> None:
    """A name that RDS gave needs few roots; one that does not tell gets all of AWS's."""
    roots = roots_for(profile_for(name, host, 5432), host)
    assert roots == AWS_ROOTS.parent / file
    assert roots.exists()


PINNED = {
    # Three public projects pin the same fingerprint; Supabase publishes the file itself.
    "Supabase Root 2021 CA": "807025ad50d4ed219d2c9c7d299c004f824eb00cf7f65afef607d07b72e6cafa",
    # As in the bundle of Mozilla's roots that certifi distributes.
    "ISRG Root X1": "96bcec06264976f37460779acf28c5a7cfe8a3c0aae11a8ffcee05c0bddf08c6",
    "ISRG Root X2": "69729b8e15a86efc177a57afb7171dfc64add28c2fca8cf1507e34453ccb1470",
    # As there, and in botocore's.
    "Amazon Root CA 1": "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
    "Amazon Root CA 2": "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
    "Amazon Root CA 3": "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
    "Amazon Root CA 4": "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
    "Starfield Services Root Certificate Authority - G2": (
        "568d6905a2c88708a4b3025190edcfedb1974a606a13c6e5290fcb2ae63edab5"
    ),
}
ALL_OF_AWS = "c0efac6a22ab3c1f127d5ca14865a9c08ebb458c4611166f6c7628e2bad84ded"
"""SHA-256 of the sorted fingerprints of aws.pem."""

FILES = sorted(AWS_ROOTS.parent.rglob("*.pem"))
REGIONS = [file for file in FILES if file.parent.name == "rds"]


@dataclass(frozen=True)
class Root:
    """A root's certificate, as OpenSSL reads it."""

    name: str
    fingerprint: str
    begins: datetime
    ends: datetime

    @classmethod
    def read(cls, pem: str) -> "Root":
        """Read one certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem)
        certificate: dict[str, Any] = dict(context.get_ca_certs()[0])
        begins, ends = (
            datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate[key]), UTC)
            for key in ("notBefore", "notAfter")
        )
        subject = dict(field for (field,) in certificate["subject"])
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        return cls(subject["commonName"], digest, begins, ends)


def roots_in(file: Path) -> list[Root]:
    """Read a file of roots."""
    blocks = re.findall(r"-----BEGIN.*?-----END CERTIFICATE-----", file.read_text(), re.DOTALL)
    return [Root.read(block) for block in blocks]


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (SUPABASE_ROOTS, ["Supabase Root 2021 CA"]),
        (LETSENCRYPT_ROOTS, ["ISRG Root X1", "ISRG Root X2"]),
        (AMAZON_ROOTS, [pinned for pinned in PINNED if pinned.startswith(("Amazon", "Starfield"))]),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_the_public_roots_are_the_pinned_ones(file: Path, names: list[str]) -> None:
    """Each file of roots holds exactly the certificates with the pinned fingerprints."""
    found = {root.name: root.fingerprint for root in roots_in(file)}
    assert found == {name: PINNED[name] for name in names}


def test_all_roots_of_aws_are_the_pinned_ones() -> None:
    """Not one of them came, went or changed unnoticed."""
    found = sorted(root.fingerprint for root in roots_in(AWS_ROOTS))
    assert len(found) == len(set(found)) == 92
    assert hashlib.sha256("".join(found).encode()).hexdigest() == ALL_OF_AWS


def test_the_parts_are_the_whole() -> None:
    """Each root of AWS is in one part, but for those of regions that nobody else can use."""
    whole = roots_in(AWS_ROOTS)
    rest = [
        root for root in whole if root.name.startswith(("Amazon RDS Beta", "Amazon RDS Preview"))
    ]
    parts = [root for file in [AMAZON_ROOTS, *REGIONS] for root in roots_in(file)]
    assert len(rest) == 6
    assert Counter([*parts, *rest]) == Counter(whole)


@pytest.mark.parametrize("file", REGIONS, ids=lambda file: file.stem)
def test_a_region_has_its_own_three_roots(file: Path) -> None:
    """Whatever key a database's certificate was signed with, its region's file has the root."""
    kinds = ["ECC384", "RSA2048", "RSA4096"]
    expected = [f"Amazon RDS {file.stem} Root CA {kind} G1" for kind in kinds]
    assert sorted(root.name for root in roots_in(file)) == expected


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_root_is_valid_and_says_until_when(file: Path) -> None:
    """A reader of the file sees when a root has to be replaced; none is overdue."""
    roots = roots_in(file)
    assert roots
    for root in roots:
        assert root.begins < datetime.now(UTC) < root.ends
        assert f"# {root.name} (until {root.ends:%Y-%m-%d})\n-----BEGIN" in file.read_text()
