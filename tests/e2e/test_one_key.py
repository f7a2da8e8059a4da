"""Fifty requests with one key at the same moment: one change, one answer, and nobody else waits."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
from psycopg.rows import TupleRow

from benchmarks.once.audit import audited, changes, connected, dsn_of
from benchmarks.once.findings import REPLAYED
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call
from tests.support.waiting import wait_until

AT_ONCE = 50
HELD = "held"
"""The name of a user whose INSERT waits for the test."""
HOLD = """
CREATE FUNCTION audit.hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(18, 18); RETURN NEW; END $$;
CREATE TRIGGER held BEFORE INSERT ON users FOR EACH ROW
    WHEN (NEW.name = 'held') EXECUTE FUNCTION audit.hold();
"""
LONG = 1.0
"""Seconds: a transaction that is open for longer waits with its server connection."""


@contextmanager
def held(dsn: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """Keep each INSERT of a user of that name waiting until the block ends."""
    with connected(dsn) as admin:
        admin.execute(HOLD)
        admin.execute("SELECT pg_advisory_lock(18, 18)")
        yield admin
        admin.execute("SELECT pg_advisory_unlock(18, 18)")


def held_up(admin: psycopg.Connection[TupleRow]) -> int:
    """Count the backends that wait for the test."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
    return int(admin.execute(query).fetchall()[0][0])


def long_transactions(admin: psycopg.Connection[TupleRow]) -> int:
    """Count the functions' transactions that are open for a while."""
    rows = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'lambda_pg_user%%'"
        " AND xact_start < clock_timestamp() - make_interval(secs => %s)",
        [LONG],
    ).fetchall()
    return int(rows[0][0])


def test_fifty_at_once_are_one_change_and_hold_one_connection(cloud: LocalCloud) -> None:
    """One runs, and 49 wait without a server connection; another user is served meanwhile."""
    dsn, ada, eve = dsn_of(cloud), *(cloud.token(str(uuid.uuid4())) for _ in range(2))
    key = {"Idempotency-Key": str(uuid.uuid4())}
    cloud.environments("users", AT_ONCE + 1)

    def create() -> Answer:
        while True:
            answer = call(cloud.url, "POST", "/users", ada, {"name": HELD}, headers=key)
            if answer.status not in {409, 503}:
                return answer
            assert answer.status == 503 or "retry-after" in answer.headers

    with audited(dsn), ThreadPoolExecutor(AT_ONCE) as pool:
        with held(dsn) as admin:
            jobs = [pool.submit(create) for _ in range(AT_ONCE)]
            wait_until(lambda: held_up(admin) == 1, what="the one that runs")
            time.sleep(2 * LONG)
            wait_until(lambda: long_transactions(admin) == 1, 5, "one long transaction")
            assert call(cloud.url, "POST", "/users", eve, {"name": "Eve"}).status == 201
            assert not any(job.done() for job in jobs)
        answers = [job.result() for job in jobs]
        names = [change.row["name"] for change in changes(dsn)]
    assert sorted(names) == ["Eve", HELD]
    assert {(answer.status, answer.body) for answer in answers} == {(201, answers[0].body)}
    assert sum(REPLAYED not in answer.headers for answer in answers) == 1
