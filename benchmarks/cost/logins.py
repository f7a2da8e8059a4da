"""What a login costs PgBouncer and its client: with one hash round, 4,096, and PgBouncer 1.24.

Measured is the processor time of each process. PgBouncer 1.24.1 is the control.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.machine import machine, packages
from benchmarks.servers import DATABASE, START_SECONDS, USER, Servers, cores, on_core, running
from benchmarks.storm.accounting import seconds_of
from lambda_pg_cdk.layer.cache import cache_dir
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install import debian_packages
from lambda_pg_cdk.local.install.debian_packages import DebianPackagesError
from lambda_pg_cdk.local.install.pgbouncer_discovery import (
    LIBRARIES,
    STABLE,
    find_pgbouncer,
    unpacked,
)
from lambda_pg_cdk.local.paths import shareable
from lambda_pg_cdk.local.servers import certificates
from lambda_pg_cdk.local.servers.passwords import machine_made_password
from lambda_pg_cdk.pgbouncer.configuration import SCRAM_ITERATIONS, User
from lambda_pg_cdk.pgbouncer.files import Folder
from lambda_pg_cdk.pgbouncer.secret_store import Certificate, Content
from lambda_pg_cdk.pgbouncer.settings import Settings

MEASURED: Final = "1 round"
ROUNDS: Final = "4,096 rounds"
OLD: Final = "PgBouncer 1.24.1"
DIRECT: Final = "direct, 1 round"
DIRECT_ROUNDS: Final = "direct, 4,096 rounds"
OLD_VERSION: Final = "1.24.1-1+deb13u2"

GOALS: Final = {"pooler": (OLD, 0.30), "client": (ROUNDS, 0.55)}
"""Whose processor time → the row it is compared with, and the highest ratio."""

METHOD: Final = (
    "A client connects with psycopg (TLS, verify-full) and disconnects. "
    "Each of {rounds} rounds measures every variant {logins} times, in random order. "
    "Times are processor milliseconds per login; client and PgBouncer have different cores where "
    "there are two. "
    "Ratios are medians over the rounds, to the base in the same round."
)
CAVEATS: Final = (
    "PgBouncer runs without its supervisor, which takes no part in logins",
    "PgBouncer 1.26 hashes a password only once, so the rounds cost only the client",
    "the client's time includes that of Python and psycopg",
)

Times = dict[str, dict[str, list[float]]]
"""Whose time → variant → milliseconds per login in each round."""


@dataclass(frozen=True)
class Variant:
    """Where clients log in, and the process id of the pooler; None for a direct login."""

    dsn: str
    pid: int | None


def old_pgbouncer() -> tuple[tuple[str, ...], str]:
    """Fetch PgBouncer 1.24.1, for this measurement only."""
    root = cache_dir() / f"baseline-pgbouncer-{OLD_VERSION}"

    def fetch(tree: Path) -> str:
        return debian_packages.fetch(STABLE, ("pgbouncer", *LIBRARIES), tree)["pgbouncer"]

    return unpacked(root, fetch, print)


@contextmanager
def pgbouncer(
    command: tuple[str, ...],
    servers: Servers,
    login: User,
    rounds: int | None,
    issued: certificates.Certificate,
) -> Iterator[tuple[int, int]]:
    """Run a PgBouncer with the supervisor's files; yield its port and process id.

    `rounds` is None for a version without the setting `scram_iterations`.
    """
    account = processes.service_account()
    folder = shareable(Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp")))
    run_dir = processes.make_private_folder(folder / "run", account)
    settings = settings_of(servers, run_dir, account.name if account else "")
    ini = write_files(settings, Content((login,), Certificate(issued.private_key, issued.chain)))
    set_rounds(ini, rounds)
    process = processes.start(
        [*processes.launcher(account, signal.SIGKILL), *command, str(ini)],
        log=folder / "pgbouncer.log",
        environment=processes.base_environment(),
        folder=folder,
    )
    try:
        processes.wait_until(settings.socket.exists, START_SECONDS, "PgBouncer")
        yield settings.listen_port, process.pid
    finally:
        processes.stop(process, signal.SIGKILL, 5)


def settings_of(servers: Servers, run_dir: Path, account: str) -> Settings:
    """Return the settings of a PgBouncer on a free port; no secret is fetched."""
    return Settings.from_env(
        {
            "LISTEN_ADDR": "127.0.0.1",
            "LISTEN_PORT": str(processes.free_port()),
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(servers.postgres.port),
            "DATABASE_NAME": DATABASE,
            "USER_SECRET_ARNS": "none",
            "CERTIFICATE_SECRET_ARN": "none",
            "SERVER_TLS_CA_FILE": str(servers.postgres.ca_file),
            "MAX_CLIENT_CONN": "200",
            "DEFAULT_POOL_SIZE": "10",
            "MAX_DB_CONNECTIONS": "20",
            "RUN_DIR": str(run_dir),
            "PGBOUNCER_USER": account,
        }
    )


def write_files(settings: Settings, content: Content) -> Path:
    """Write PgBouncer's files as the supervisor does; return the path of pgbouncer.ini."""
    folder = Folder(settings)
    folder.update(content)
    return folder.files.ini


def set_rounds(ini: Path, rounds: int | None) -> None:
    """Replace `scram_iterations`, or remove it."""
    lines = [line for line in ini.read_text().splitlines() if "scram_iterations" not in line]
    if rounds is not None:
        lines.append(f"scram_iterations = {rounds}")
    ini.write_text("\n".join(lines) + "\n")


def client(dsn: str, logins: int) -> None:
    """Log in and disconnect repeatedly; print the processor seconds."""
    began = time.process_time()
    for _ in range(logins):
        psycopg.connect(dsn).close()
    print(time.process_time() - began)


def one_round(variants: Mapping[str, Variant], logins: int, times: Times) -> None:
    """Measure every variant once, in random order."""
    for name in random.sample(list(variants), len(variants)):
        variant = variants[name]
        before = seconds_of(variant.pid) if variant.pid else 0.0
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.cost.logins", "--client", str(logins)],
            input=variant.dsn,
            capture_output=True,
            text=True,
            check=True,
        )
        times["client"].setdefault(name, []).append(float(done.stdout) / logins * 1000)
        if variant.pid:
            spent = seconds_of(variant.pid) - before
            times["pooler"].setdefault(name, []).append(spent / logins * 1000)


def create_user(servers: Servers, name: str, rounds: int) -> User:
    """Create a user whose SCRAM verifier has that many rounds."""
    user = User(name, machine_made_password())
    with psycopg.connect(servers.postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("SET scram_iterations = {}").format(rounds))
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), user.password)
        )
    return user


def dsn_of(user: User, port: int, ca_file: Path) -> str:
    """Build the connection string of a login, with TLS verified in full."""
    return psycopg.conninfo.make_conninfo(
        host="127.0.0.1",
        port=port,
        dbname=DATABASE,
        user=user.name,
        password=user.password,
        sslmode="verify-full",
        sslrootcert=str(ca_file),
    )


Command = tuple[tuple[str, ...], int | None]
"""How to start a PgBouncer, and its hash rounds."""


def commands() -> tuple[dict[str, Command], list[str]]:
    """Return how to start each PgBouncer, and caveats; the old one is absent if not available."""
    found = find_pgbouncer()
    starts: dict[str, Command] = {
        MEASURED: (found.command, 1),
        ROUNDS: (found.command, SCRAM_ITERATIONS),
    }
    try:
        old, version = old_pgbouncer()
    except DebianPackagesError as error:
        return starts, [f"PgBouncer 1.24.1 could not be fetched, so it has no row: {error}"]
    caveats = [] if version.startswith("1.24.1") else [f"the old PgBouncer is {version}"]
    return starts | {OLD: (old, None)}, caveats


def variants_of(
    servers: Servers, stack: ExitStack, starts: Mapping[str, Command]
) -> dict[str, Variant]:
    """Start each PgBouncer and make the logins of all variants."""
    authority = certificates.Authority.create("logins CA")
    ca_file = servers.postgres.ca_file.parent / "logins.pem"
    ca_file.write_text(authority.pem)
    issued = authority.issue(("127.0.0.1",))
    login = User(USER, servers.direct.password)
    variants = {}
    for name, (command, rounds) in starts.items():
        port, pid = stack.enter_context(pgbouncer(command, servers, login, rounds, issued))
        variants[name] = Variant(dsn_of(login, port, ca_file), pid)
    for name, rounds in ((DIRECT, 1), (DIRECT_ROUNDS, SCRAM_ITERATIONS)):
        user = create_user(servers, f"rounds_{rounds}", rounds)
        dsn = dsn_of(user, servers.postgres.port, servers.postgres.ca_file)
        variants[name] = Variant(dsn, None)
    return variants


def run(servers: Servers, stack: ExitStack, rounds: int, logins: int) -> dict[str, Any]:
    """Measure all variants and return the rows and caveats."""
    starts, caveats = commands()
    variants = variants_of(servers, stack, starts)
    times: Times = {"pooler": {}, "client": {}}
    with on_core(cores()[0]):
        for number in range(rounds):
            one_round(variants, logins, times)
            print(f"round {number + 1} of {rounds}", flush=True)
    rows = [
        {**row, "whose": whose, "base": base}
        for whose, (base, _) in GOALS.items()
        if base in times[whose]
        for row in ratios.rows(base, [times[whose]], "ms")
    ]
    return {"caveats": [*CAVEATS, *caveats], "rows": rows}


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    broken = []
    for row in result["rows"]:
        base, goal = GOALS[row["whose"]]
        if row["name"] == MEASURED and row["ratio"] > goal:
            broken.append(
                f"a login took {row['ratio']} of the {row['whose']}'s time with {base}; the limit "
                f"is {goal}"
            )
        if row["whose"] == "client" and row["name"] == OLD and row["ratio"] <= goal:
            broken.append(
                f"with PgBouncer 1.24.1 a login took only {row['ratio']} of the client's time with "
                f"{base}: a control that is not slower proves nothing"
            )
    return broken


def main() -> int:
    """Measure; exit code 0 only if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--logins", type=int, default=40, help="of each variant in a round")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client(sys.stdin.read(), arguments.client)
        return 0
    with running(core=cores()[1]) as servers, ExitStack() as stack:
        with on_core(cores()[1]):
            measured = run(servers, stack, arguments.rounds, arguments.logins)
        result = {
            "machine": machine(),
            "versions": {**packages("psycopg"), **servers.versions},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make bench",
            "method": METHOD.format(logins=arguments.logins, rounds=arguments.rounds),
            "goals": {whose: goal for whose, (_, goal) in GOALS.items()},
            **measured,
        }
    for row in result["rows"]:
        print(f"{row['whose']:7} {row['name']:22} {row['median_ms']:7.2f} ms {row['ratio']:7.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
