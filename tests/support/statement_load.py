"""A steady load on the pooler through the layer, and the outcome of each statement.

Four kinds: reads, idempotent writes, units of work, and plain writes in autocommit. A
plain write whose answer is lost must not be repeated, so it is counted as unknown, in a separate
column. Afterwards the table shows what really happened.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from lambda_pg import Database, DatabaseUnavailableError, Settings
from psycopg import Connection

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.state import credentials

CLIENTS = 8
REST = 0.02
"""Seconds between two rounds of a client: a load, and no storm."""
KINDS = ("read", "idempotent write", "unit of work", "plain write")


@dataclass
class Ledger:
    """Answers by kind, failures by kind, and plain writes of which nobody knows."""

    served: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    acknowledged: set[uuid.UUID] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)

    def wait_for_more(self, count: int = 100, seconds: float = 30) -> None:
        """Wait until each kind has been served so often again."""
        aim = {kind: self.served[kind] + count for kind in KINDS}
        deadline = time.monotonic() + seconds
        while any(self.served[kind] < least for kind, least in aim.items()):
            assert time.monotonic() < deadline, (self.served, self.reasons[:3])
            time.sleep(0.02)


@contextmanager
def ledger(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """Make a table, serve from it until the block ends, and hold it against what was told."""
    dsn = cloud.status()["postgres"]["dsn"]
    with psycopg.connect(dsn, dbname="app", autocommit=True) as admin:
        admin.execute("DROP TABLE IF EXISTS ledger")
        admin.execute("CREATE TABLE ledger (id uuid PRIMARY KEY, kind text, times int DEFAULT 1)")
        admin.execute("GRANT SELECT, INSERT, UPDATE ON ledger TO lambda_pg_app")
        found, stop = Ledger(), threading.Event()
        settings = settings_of(cloud, monkeypatch)
        threads = [
            threading.Thread(target=_serve, args=(Database(settings), found, stop), daemon=True)
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        yield found
        stop.set()
        for thread in threads:
            thread.join(60)
        rows = admin.execute("SELECT id, times FROM ledger").fetchall()
        admin.execute("DROP TABLE ledger")
    stored = {identifier for identifier, _ in rows}
    assert found.acknowledged <= stored, "an acknowledged write is lost"
    assert {times for _, times in rows} <= {1}, "a write was done twice"
    assert len(stored - found.acknowledged) <= found.unknown + found.failed.total()


def settings_of(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of a function, as the stage publishes them."""
    for name, value in credentials(cloud.state.key).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.state.aws_endpoint_url)
    monkeypatch.setenv("AWS_REGION", cloud.state.region)
    client = cloud.client("ssm")

    def published(name: str) -> str:
        answer = client.get_parameter(Name=f"/lambda-pg/local/{name}")
        return str(answer["Parameter"]["Value"])

    return Settings(
        host=published("pooler/host"),
        port=int(published("pooler/port")),
        dbname=published("database/name"),
        secret_arn=published("pooler/secret-arn"),
        profile="pgbouncer",
        ca_pem=published("pooler/ca"),
    )


def _serve(db: Database[Any], found: Ledger, stop: threading.Event) -> None:
    verbs: dict[str, Callable[[uuid.UUID], object]] = {
        "read": lambda new: db.execute("SELECT FROM ledger WHERE id = %s", (new,), idempotent=True),
        "idempotent write": lambda new: db.execute(
            "INSERT INTO ledger (id, kind) VALUES (%s, 'idempotent') ON CONFLICT (id) DO NOTHING",
            (new,),
            idempotent=True,
        ),
        "unit of work": lambda new: db.run_transaction(_unit(new)),
        "plain write": lambda new: db.execute(
            "INSERT INTO ledger (id, kind) VALUES (%s, 'plain')", (new,)
        ),
    }
    while not stop.is_set():
        for kind, verb in verbs.items():
            new = uuid.uuid4()
            try:
                verb(new)
            except Exception as error:  # noqa: BLE001 - whatever comes is what the test counts
                found.reasons.append(f"{kind}: {error!r}")
                if kind == "plain write" and not certainly_undone(error):
                    found.unknown += 1
                else:
                    found.failed[kind] += 1
                continue
            found.served[kind] += 1
            if kind != "read":
                found.acknowledged.add(new)
        time.sleep(REST)
    db.close()


def _unit(new: uuid.UUID) -> Callable[[Connection[Any]], None]:
    def work(connection: Connection[Any]) -> None:
        connection.execute("INSERT INTO ledger (id, kind) VALUES (%s, 'unit')", (new,))
        connection.execute("SELECT FROM ledger WHERE id = %s", (new,))

    return work


def certainly_undone(error: Exception) -> bool:
    """Tell whether the layer says that a statement cannot have run."""
    unavailable = isinstance(error, DatabaseUnavailableError)
    return unavailable and not getattr(error, "may_have_run", False)
