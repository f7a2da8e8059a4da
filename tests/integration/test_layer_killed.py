"""An environment that is killed in the middle of COMMIT: the repetition is carried out once.

The function is the ledger's (benchmarks/functions/ledger), in a separate process: one unit of
work under an idempotency key.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.chaos.ledger import SCHEMA
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import PASSWORD, Admin
from tests.support.recorder import Recorder, socket_of
from tests.support.servers import DATABASE, PoolerFixture
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys

import handler
from lambda_pg.testing import LambdaContext


for line in sys.stdin:
    event = {"rawPath": "/ledger/transfers", "body": line}
    print(json.dumps(handler.handler(event, LambdaContext(seconds=20))), flush=True)
"""


class Environment:
    """A process that carries out transfers."""

    def __init__(self, way: Way) -> None:
        """Start it."""
        folders = (ROOT / "layer" / "python", ROOT / "benchmarks" / "functions" / "ledger")
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONPATH": ":".join(map(str, folders)), **way.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        way.opened.callback(self.kill)

    def begin(self, order: dict[str, Any]) -> None:
        """Have it begin a transfer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer; empty where there is none."""
        assert self._process.stdout is not None
        answered = self._process.stdout.readline()
        return dict(json.loads(answered)) if answered else {}

    def transfer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Have it carry out a transfer; return the body of its answer."""
        self.begin(order)
        answered = self.answer()
        assert answered["statusCode"] == 200, answered
        return dict(json.loads(answered["body"]))

    def kill(self) -> None:
        """Kill it; nothing of it goes on."""
        self._process.kill()
        self._process.communicate()

    def kill_at_once(self) -> None:
        """Kill it, and do not wait for its end."""
        self._process.send_signal(signal.SIGKILL)


@dataclass
class Way:
    """The way to the database, on which the recorder knows the moment."""

    recorder: Recorder
    environment: dict[str, str]
    admin: Admin
    opened: ExitStack

    def books(self, key: str) -> tuple[int, int, int]:
        """Count the transfers and the movements of a key, and sum up all balances."""
        row = self.admin.execute(
            "SELECT (SELECT count(*) FROM ledger.transfers WHERE key = %(key)s),"
            " (SELECT count(*) FROM ledger.movements WHERE key = %(key)s),"
            " (SELECT sum(balance * id) FROM ledger.accounts)::bigint",
            {"key": key},
        ).fetchone()
        assert row is not None
        return row[0], row[1], row[2]


DONE = (1, 2, 10 * 1 + 30 * 2)
"""One transfer of 10 from the first account to the second, of 20 each."""


@pytest.fixture(params=["direct", "through the pooler"])
def way(
    request: pytest.FixtureRequest,
    postgres: Postgres,
    admin: Admin,
    new_pooler: PoolerFixture,
) -> Iterator[Way]:
    """A ledger, and the recorder before its server."""
    folder = new_pooler.folder.parent
    with Recorder(socket_of(postgres), folder) as recorder, ExitStack() as opened:
        if request.param == "direct":
            user, database = "layer_test", "postgres"
            address = f"postgresql://{user}:{PASSWORD}@127.0.0.1:{recorder.port}/{database}"
            environment = {"DATABASE_URL": address, "PGSSLROOTCERT": str(recorder.ca_file)}
        else:
            user, database = new_pooler.login.name, DATABASE
            new_pooler.start(
                DATABASE_PORT=str(recorder.port), SERVER_TLS_CA_FILE=str(recorder.ca_file)
            )
            environment = {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(new_pooler.port),
                "PGDATABASE": database,
                "PGSSLROOTCERT": str(new_pooler.ca_file),
                "LAMBDA_PG_SECRET_ARN": new_pooler.login.arn,
                "LAMBDA_PG_PROFILE": "pgbouncer",
                **new_pooler.service.environment,
            }
        ledger = opened.enter_context(
            psycopg.connect(postgres.superuser_dsn, dbname=database, autocommit=True)
        )
        ledger.execute(SCHEMA.replace("lambda_pg_app", user))
        ledger.execute("INSERT INTO ledger.accounts VALUES (1, 20), (2, 20)")
        opened.callback(ledger.execute, "DROP SCHEMA ledger CASCADE")
        yield Way(recorder, environment, ledger, opened)


def new_order() -> dict[str, Any]:
    """Make up a transfer."""
    return {"key": str(uuid.uuid4()), "source": 1, "target": 2, "amount": 10}


@pytest.mark.parametrize("arrives", [False, True], ids=["COMMIT lost", "COMMIT arrived"])
def test_a_repetition_through_another_environment_is_carried_out_once(
    way: Way, arrives: bool
) -> None:
    """Before COMMIT arrives nothing was done; after it the answer says that it was done before."""
    order, killed, other = new_order(), Environment(way), Environment(way)
    with way.recorder.at("COMMIT", killed.kill_at_once, deliver=arrives):
        killed.begin(order)
        assert killed.answer() == {}
    again = other.transfer(order)
    assert again == {**order, "new": not arrives}
    assert way.books(order["key"]) == DONE
    assert other.transfer(order) == {**order, "new": False}
    assert Environment(way).transfer(order) == {**order, "new": False}
    assert way.books(order["key"]) == DONE


def test_a_repetition_waits_for_a_commit_that_nobody_waits_for_any_more(way: Way) -> None:
    """COMMIT has arrived at a server that is slow: the key is taken, and its outcome decides."""
    order, killed, other = new_order(), Environment(way), Environment(way)
    backends: list[int] = []

    def stop_and_kill() -> None:
        killed.kill_at_once()
        backends.append(writer(way.admin))
        os.kill(backends[0], signal.SIGSTOP)

    try:
        with way.recorder.at("COMMIT", stop_and_kill):
            killed.begin(order)
            assert killed.answer() == {}
        other.begin(order)
        wait_until(lambda: waits_for_a_transaction(way.admin))
        assert way.books(order["key"])[0] == 0
    finally:
        for backend in backends:
            os.kill(backend, signal.SIGCONT)
    answered = other.answer()
    assert answered["statusCode"] == 200
    # Behind a pooler that has cut the server connection first, COMMIT is not carried out.
    told = json.loads(answered["body"])
    assert told == {**order, "new": told["new"]}
    assert way.books(order["key"]) == DONE
    assert other.transfer(order) == {**order, "new": False}


def writer(admin: Admin) -> int:
    """Find the backend whose transaction is open."""
    row = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' "
        "AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def waits_for_a_transaction(admin: Admin) -> bool:
    """Tell whether somebody waits for the end of another one's transaction."""
    query = "SELECT FROM pg_stat_activity WHERE wait_event = 'transactionid'"
    return admin.execute(query).rowcount == 1
