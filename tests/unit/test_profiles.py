"""Profiles: which endpoint is which, and the roots that each of them trusts."""

import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from lambda_pg import _profiles
from lambda_pg._profiles import (
    LETSENCRYPT_ROOTS,
    SUPABASE_ROOTS,
    Profile,
    ProfileName,
    profile_for,
    region_of,
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
    """Startup options would change a shared session, so they go with a session of one's own."""
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


PINNED = {
    # Three public projects pin the same fingerprint; Supabase publishes the file itself.
    "Supabase Root 2021 CA": "807025ad50d4ed219d2c9c7d299c004f824eb00cf7f65afef607d07b72e6cafa",
    # As in the bundle of Mozilla's roots that certifi distributes.
    "ISRG Root X1": "96bcec06264976f37460779acf28c5a7cfe8a3c0aae11a8ffcee05c0bddf08c6",
    "ISRG Root X2": "69729b8e15a86efc177a57afb7171dfc64add28c2fca8cf1507e34453ccb1470",
}


def certificates(file: Path) -> list[x509.Certificate]:
    """Read a file of roots."""
    blocks = re.findall(r"-----BEGIN.*?-----END CERTIFICATE-----", file.read_text(), re.DOTALL)
    return [x509.load_pem_x509_certificate(block.encode()) for block in blocks]


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        ("supabase_direct", ["Supabase Root 2021 CA"]),
        ("neon_direct", ["ISRG Root X1", "ISRG Root X2"]),
    ],
)
def test_the_roots_are_the_pinned_ones(profile: str, names: list[str]) -> None:
    """Each file of roots holds exactly the certificates with the pinned fingerprints."""
    found = {
        str(
            certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        ): certificate.fingerprint(hashes.SHA256()).hex()
        for certificate in certificates(PROFILES[profile].roots)
    }
    assert found == {name: PINNED[name] for name in names}


@pytest.mark.parametrize("file", [SUPABASE_ROOTS, LETSENCRYPT_ROOTS])
def test_each_root_says_until_when(file: Path) -> None:
    """Whoever opens the file sees when a root has to be replaced."""
    for certificate in certificates(file):
        assert f"(until {certificate.not_valid_after_utc:%Y-%m-%d})" in file.read_text()
