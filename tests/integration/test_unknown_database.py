"""A client that names another database than the pooler's is refused before it can log in.

PgBouncer up to 1.26.0 let a user's password in as another user where it does not know the database
(CVE-2026-107350). The access file names the one database there is, so that SCRAM never begins.
"""

import os
import shlex
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from benchmarks.cost.logins import OLD_VERSION
from lambda_pg_cdk.layer.cache import cache_dir
from lambda_pg_cdk.local.install.pgbouncer_discovery import (
    PgBouncerBinary,
    PgBouncerNotFoundError,
    find_pgbouncer,
    unpacked,
)
from tests.support.servers import DATABASE, PoolerFixture

TLS, PROTOCOL = 80877103, 196608
SASL = 10
"""What stands in an Authentication message that begins SCRAM."""

OTHERS = {
    "a name": {"database": "unknown"},
    "PostgreSQL's own": {"database": "postgres"},
    "the console": {"database": "pgbouncer"},
    "another case": {"database": DATABASE.upper()},
    "a longer name": {"database": f"{DATABASE} "},
    "a keyword of the access file": {"database": "all"},
    "another keyword": {"database": "sameuser"},
    "a pattern": {"database": "*"},
    "the user's, by default": {},
    "no database, for replication": {"database": "replication", "replication": "true"},
}
"""Startup parameters besides the user."""

WITHOUT_ROUNDS = 'grep -v scram_iterations "$0" > "$0.old" && exec "$@" "$0.old"'
"""The script that starts an older PgBouncer, which does not know this parameter; $0 is the file."""


def found_binaries() -> Iterator[PgBouncerBinary]:
    """Find every PgBouncer that this machine has for the project, without fetching older ones."""
    for way in ("installed", "debian"):
        try:
            yield find_pgbouncer(environment={**os.environ, "LAMBDA_PG_PGBOUNCER": way})
        except PgBouncerNotFoundError:
            continue
    old = cache_dir() / f"baseline-pgbouncer-{OLD_VERSION}"
    if (old / "version").exists():
        command, version = unpacked(old, fetch=lambda _: "", report=print)
        script = WITHOUT_ROUNDS.replace('"$@"', shlex.join(command))
        yield PgBouncerBinary(("sh", "-c", script), version, "debian")


def first_messages(
    pooler: PoolerFixture, user: str, parameters: dict[str, str]
) -> list[tuple[bytes, bytes]]:
    """Begin a login, and return what comes before the client would have to answer."""
    context = ssl.create_default_context(cafile=pooler.ca_file)
    with socket.create_connection(("127.0.0.1", pooler.port), 20) as plain:
        plain.sendall(struct.pack("!ii", 8, TLS))
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            words = [word for pair in {"user": user, **parameters}.items() for word in pair]
            body = "".join(f"{word}\0" for word in words).encode() + b"\0"
            connection.sendall(struct.pack("!ii", len(body) + 8, PROTOCOL) + body)
            return list(messages(connection))


def messages(connection: ssl.SSLSocket) -> Iterator[tuple[bytes, bytes]]:
    """Read messages up to one that begins an exchange, or to the end."""
    with connection.makefile("rb") as stream:
        while head := stream.read(5):
            kind, size = struct.unpack("!ci", head)
            body = stream.read(size - 4)
            yield kind, body
            if kind == b"R":
                return


@pytest.fixture(params=range(3), ids="PgBouncer {}".format)
def pooler(request: pytest.FixtureRequest, new_pooler: PoolerFixture) -> PoolerFixture:
    """The pooler with each PgBouncer that there is."""
    binaries = list(found_binaries())
    if request.param >= len(binaries):
        pytest.skip(f"this machine has {len(binaries)} PgBouncer")
    new_pooler.binary = binaries[request.param]
    return new_pooler.start()


def test_an_unknown_database_never_gets_as_far_as_scram(pooler: PoolerFixture) -> None:
    """The first answer is the refusal, for every user and whatever else the client names."""
    for user in (pooler.login.name, "nobody"):
        for name, parameters in OTHERS.items():
            answers = first_messages(pooler, user, parameters)
            assert [kind for kind, _ in answers] == [b"E"], (name, user, answers)
        (begun,) = first_messages(pooler, user, {"database": DATABASE})
        assert (begun[0], begun[1][:4]) == (b"R", struct.pack("!i", SASL))
