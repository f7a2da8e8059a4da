"""What kind of server an endpoint is, and what follows from that. Nothing here connects.

A profile is named by LAMBDA_PG_PROFILE or follows from host and port. docs/pooling.md explains the
values, with sources; a test compares both.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

ProfileName = Literal["direct", "pgbouncer", "rds-proxy", "supabase", "neon"]
Reset = Literal["discard", "flight", "close"]

_CERTS: Final = Path(__file__).parent / "certs"
AWS_ROOTS: Final = _CERTS / "aws.pem"
"""All known roots of AWS, for a host whose name does not show which of them signed for it: the
private CAs of RDS, three for each region, and Amazon's public roots.

libpq reads the file at each connect, so `roots_for` takes a smaller one where it can: the 92 roots
cost a connect 2.2 ms, three of them less than can be measured."""

AMAZON_ROOTS: Final = _CERTS / "amazon.pem"
"""Amazon's public roots, which the certificates of RDS Proxy chain to."""

_RDS_ROOTS: Final = _CERTS / "rds"
"""A file for each region with the private CAs that sign for its databases."""

SUPABASE_ROOTS: Final = _CERTS / "supabase.pem"
"""Supabase's own root, which no public trust store holds."""

LETSENCRYPT_ROOTS: Final = _CERTS / "letsencrypt.pem"
"""ISRG's roots: Let's Encrypt signs the certificates of Neon."""

FLOW_IDLE: Final = 340.0
"""Network Load Balancers, NAT gateways and interface endpoints forget a TCP flow that was idle
for 350 s, as does the connection tracking of Nitro v6 instances (AWS documentation): 10 s less."""

RDS_PROXY_IDLE: Final = 1740.0
"""RDS Proxy closes a client connection idle for 1800 s (IdleClientTimeout's default): 60 s less."""

NEON_IDLE: Final = 290.0
"""A Neon compute without a query for 300 s is suspended, which ends its connections (default of
"scale to zero"): 10 s less."""

FOLLOW: Final = 600.0
"""A client connection stays with the pooler it was opened to. A fleet that renews its connections
every ten minutes spreads over added poolers. For 2000 environments these are 3.3 logins a second;
one PgBouncer can do 450 (measured)."""

RENEW: Final = 1800.0
"""A server connection outlives a change of its password and of its DNS name (failover, blue/green
switch): half an hour bounds how long it is used with the old ones. RDS Proxy allows 24 hours; there
this also bounds how long an accidental pin holds a server connection."""


@dataclass(frozen=True)
class Profile:
    """What the layer may do at an endpoint; durations are seconds.

    session: the server connection belongs to this client alone, so SET, LISTEN, temporary tables
        and the like work.
    cancel: a cancel request reaches the running statement.
    prepared: a caller may prepare statements (psycopg's `prepare=True`); the layer never does.
    startup_options: `options=` may be sent on connecting.
    max_lifetime: age at which a connection is replaced at its next checkout.
    max_idle: idle time after which it is replaced without a check.
    reset: how `Database.run_text` ends what statements leave in the session: by DISCARD ALL after
        COMMIT, by statements in a transaction of the same flight, or by closing a connection whose
        statements are not plainly harmless.
    roots: file of the TLS roots that are trusted where neither a setting names others nor the
        host shows which of them are enough (`roots_for`).
    """

    name: ProfileName
    session: bool
    cancel: bool
    prepared: bool
    startup_options: bool
    max_lifetime: float
    max_idle: float
    reset: Reset
    roots: Path


DIRECT: Final = Profile(
    name="direct",
    session=True,
    cancel=True,
    prepared=True,
    startup_options=True,
    max_lifetime=RENEW,
    max_idle=FLOW_IDLE,
    reset="discard",
    roots=AWS_ROOTS,
)
PGBOUNCER: Final = Profile(
    name="pgbouncer",
    session=False,
    cancel=True,
    prepared=True,
    startup_options=False,
    max_lifetime=FOLLOW,
    max_idle=FLOW_IDLE,
    reset="flight",
    roots=AWS_ROOTS,
)
RDS_PROXY: Final = Profile(
    name="rds-proxy",
    session=False,
    cancel=False,
    prepared=False,
    startup_options=False,
    max_lifetime=RENEW,
    max_idle=RDS_PROXY_IDLE,
    reset="close",
    roots=AMAZON_ROOTS,
)
SUPABASE_DIRECT: Final = replace(DIRECT, name="supabase", roots=SUPABASE_ROOTS)
SUPABASE_SESSION: Final = replace(
    SUPABASE_DIRECT, startup_options=False, max_lifetime=FOLLOW, roots=SUPABASE_ROOTS
)
SUPABASE_TRANSACTION: Final = replace(
    SUPABASE_SESSION, session=False, prepared=False, reset="flight"
)
NEON_DIRECT: Final = replace(DIRECT, name="neon", max_idle=NEON_IDLE, roots=LETSENCRYPT_ROOTS)
NEON_POOLED: Final = replace(
    NEON_DIRECT, session=False, startup_options=False, max_lifetime=FOLLOW, reset="flight"
)

_RDS_HOST: Final = re.compile(
    r".+\.(?:([0-9a-z-]+)\.rds\.amazonaws\.com|rds\.([0-9a-z-]+)\.amazonaws\.com\.cn)"
)
"""The only pattern for hosts, compiled at import: at first use it would be a request's time."""

_RDS_PROXY: Final = ".proxy-"
"""A part of the name of an RDS Proxy."""

_SUPABASE_SUFFIXES: Final = (".supabase.co", ".supabase.com")
_TRANSACTION_PORT: Final = 6543


def profile_for(name: ProfileName | None, host: str, port: int) -> Profile:
    """Choose the profile of an endpoint, by its `name` if there is one, else by host and port.

    Supabase and Neon have poolers in two modes and a direct URL: host and port decide which. Where
    they do not, the endpoint counts as a pooler in transaction mode, which allows less.
    """
    host = host.lower().rstrip(".")
    match name or _detect(host):
        case "pgbouncer":
            return PGBOUNCER
        case "rds-proxy":
            return RDS_PROXY
        case "supabase":
            return _supabase(host, port)
        case "neon":
            return _neon(host)
        case _:
            return DIRECT


def region_of(host: str) -> str | None:
    """Read the region out of the name of an RDS endpoint; None for any other host."""
    match = _RDS_HOST.fullmatch(host.lower().rstrip("."))
    return (match[1] or match[2]) if match else None


def roots_for(profile: Profile, host: str) -> Path:
    """Choose the file of roots for a host: only those that may have signed for its name.

    A region without a file, which AWS opened later, gets all of AWS's roots.
    """
    region = region_of(host)
    if region is None:
        return profile.roots
    if _RDS_PROXY in host.lower():
        return AMAZON_ROOTS
    file = _RDS_ROOTS / f"{region}.pem"
    return file if file.exists() else AWS_ROOTS


def options_refused(profile: Profile) -> str:
    """Return why `options` cannot be sent to this profile's endpoint, and what to do instead."""
    return (
        f"the profile {profile.name} refuses startup options: put them on the database or the "
        "role (ALTER DATABASE … SET …), or use the direct URL"
    )


def _detect(host: str) -> ProfileName:
    if _RDS_PROXY in host and region_of(host) is not None:
        return "rds-proxy"
    if host.endswith(_SUPABASE_SUFFIXES):
        return "supabase"
    if host.endswith(".neon.tech"):
        return "neon"
    return "direct"


def _supabase(host: str, port: int) -> Profile:
    """Distinguish Supavisor's two ports and the direct URL, whose port 6543 is a PgBouncer."""
    if port == _TRANSACTION_PORT:
        return SUPABASE_TRANSACTION
    if host.endswith(".pooler.supabase.com"):
        return SUPABASE_SESSION
    return SUPABASE_DIRECT if host.endswith(_SUPABASE_SUFFIXES) else SUPABASE_TRANSACTION


def _neon(host: str) -> Profile:
    first = host.partition(".")[0]
    direct = host.endswith(".neon.tech") and not first.endswith("-pooler")
    return NEON_DIRECT if direct else NEON_POOLED
