"""Whatever happens to a keyed change on its way, it is made once and has one answer."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.util import load_python_file
from lambda_pg import CommitOutcomeUnknownError, DatabaseUnavailableError, DeadlineExceededError
from lambda_pg._outcome import TransactionId
from lambda_pg.http_api import Answer, Problem, change_once, idempotency

from lambda_pg_cdk.local.faults.proxy import Fault, FaultProxy
from lambda_pg_cdk.migrations.upgrade import BASE
from tests.support.keyed import Connection, Db, First, Keyed, insert, is_replayed, outcome
from tests.support.layer import later
from tests.support.recorder import Recorder, socket_of
from tests.support.switchover import Pair
from tests.support.waiting import wait_until


class Way:
    """The layer's way to the server: a proxy for faults, then a recorder that reads statements."""

    def __init__(self, site: Keyed, network: FaultProxy, recorder: Recorder) -> None:
        """Take what stands in the way."""
        self.site, self.network, self.recorder = site, network, recorder
        self.runs = 0

    def open(self, **options: object) -> Db:
        """Open the layer at the beginning of the way."""
        at = {"port": self.network.port, "sslrootcert": self.recorder.ca_file}
        return self.site.open(**at, **options)

    def change(self, connection: Connection) -> Answer:
        """Make a thing, and count the attempts."""
        self.runs += 1
        return insert(connection)

    @contextmanager
    def commit_unanswered(self) -> Iterator[None]:
        """Let COMMIT take effect, and cut the connection instead of answering it."""
        before, fault = self.site.things(), None

        def stall() -> None:
            nonlocal fault
            fault = self.network.stall("to_client", connections="open")

        def cut() -> None:
            wait_until(lambda: self.site.things() > before)
            self.network.reset()
            assert fault is not None
            fault.end()

        cutter = threading.Thread(target=cut)
        with self.recorder.at("COMMIT", stall):
            cutter.start()
            yield
            cutter.join()

    @contextmanager
    def commit_not_delivered(self, times: int = 1) -> Iterator[None]:
        """Cut the connection before COMMIT arrives, so that nothing takes effect."""
        with self.recorder.at("COMMIT", lambda: None, deliver=False):
            if times == 1:
                yield
            else:
                with self.commit_not_delivered(times - 1):
                    yield


@pytest.fixture(params=["direct", "pgbouncer"])
def way(keyed: Keyed, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Way]:
    """A way to the server, or to PgBouncer."""
    server = {
        "direct": Recorder(socket_of(keyed.postgres), tmp_path),
        "pgbouncer": Recorder(
            ("127.0.0.1", keyed.pooler.port), tmp_path, server_ca=keyed.pooler.ca_file
        ),
    }[request.param]
    with (
        server as recorder,
        FaultProxy("127.0.0.1", recorder.port) as network,
    ):
        yield Way(keyed, network, recorder)
        keyed.close()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server know no outcome, as after a crash."""
    monkeypatch.setattr(TransactionId, "status", lambda *_: None)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_an_answer_lost_after_the_commit(
    way: Way, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is not repeated: the transaction's id tells, or else the key's row."""
    if not known:
        forget(monkeypatch)
    db = way.open()
    with way.commit_unanswered():
        first = change_once(db, way.site.request(), way.change)
    assert way.runs == way.site.things() == way.site.keys() == 1
    assert is_replayed(first) is not known
    assert outcome(change_once(db, way.site.request(), way.change)) == outcome(first)
    assert way.runs == 1


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_connection_lost_before_the_commit(
    way: Way, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is repeated, and made once; its answer was stored and sent for nothing before."""
    if not known:
        forget(monkeypatch)
    db = way.open()
    with way.commit_not_delivered():
        first = change_once(db, way.site.request(), way.change)
    assert way.runs == 2
    assert way.site.things() == way.site.keys() == 1
    assert not is_replayed(first)
    assert outcome(change_once(db, way.site.request(), way.change)) == outcome(first)


def test_without_a_key_the_outcome_stays_unknown(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nothing but the row answers for a server that has forgotten."""
    forget(monkeypatch)
    with way.commit_unanswered(), pytest.raises(CommitOutcomeUnknownError):
        change_once(way.open(), way.site.request(None), way.change)
    assert way.site.things() == 1


def test_a_second_unknown_outcome_is_reported(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the client's repetition with the same key is safe."""
    forget(monkeypatch)
    db = way.open()
    with way.commit_not_delivered(times=2), pytest.raises(CommitOutcomeUnknownError):
        change_once(db, way.site.request(), way.change)
    assert way.site.things() == 0
    assert change_once(db, way.site.request(), way.change).status == 201
    assert way.site.things() == 1


def test_an_unknown_outcome_is_reported_where_the_database_goes_away(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DatabaseUnavailableError would say that nothing was made."""
    faults: list[Fault] = []

    def forget_and_go(*_: object) -> None:
        faults.append(way.network.refuse())
        way.network.reset()

    monkeypatch.setattr(TransactionId, "status", forget_and_go)
    db = way.open(checkout_timeout=1)
    with way.commit_unanswered(), pytest.raises(CommitOutcomeUnknownError):
        change_once(db, way.site.request(), way.change)
    faults[0].end()
    assert is_replayed(change_once(db, way.site.request(), way.change))
    assert way.runs == way.site.things() == 1


def test_a_backend_that_ends_inside_the_change(way: Way) -> None:
    """The change is repeated on another connection; the dead one's lock is gone."""
    db = way.open()

    def change(connection: Connection) -> Answer:
        answer = way.change(connection)
        if way.runs == 1:
            row = connection.execute("SELECT pg_backend_pid()").fetchone()
            assert row is not None
            way.site.run("SELECT pg_terminate_backend(%s, 5000)", row[0])
        return answer

    first = change_once(db, way.site.request(), change)
    assert way.runs == 2
    assert way.site.things() == 1
    assert outcome(change_once(db, way.site.request(), change)) == outcome(first)


def test_a_lock_that_outlives_its_client(way: Way) -> None:
    """Where the server does not know yet that the client has gone, the repetition waits for it."""
    faults: list[Fault] = []

    def change(connection: Connection) -> Answer:
        answer = way.change(connection)
        if way.runs == 1:
            faults.append(way.network.stall("to_server", connections="open"))
            with socket.socket(fileno=os.dup(connection.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)
            connection.execute("SELECT 1")
        return answer

    db = way.open()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(change_once, db, way.site.request(), change)
        wait_until(lambda: faults)
        with pytest.raises(TimeoutError):
            running.result(0.5)
        assert way.runs == 1
        faults[0].end()
        assert running.result().status == 201
    assert way.runs == 2
    assert way.site.things() == 1


def test_a_deadline_at_the_commit(way: Way) -> None:
    """It may have been made: 503 for the client, whose repetition gets the one answer."""
    faults: list[Fault] = []
    db = way.open()
    with (
        way.recorder.at(
            "COMMIT", lambda: faults.append(way.network.stall("to_client", connections="open"))
        ),
        db.deadline(1),
        pytest.raises(DeadlineExceededError) as late,
    ):
        change_once(db, way.site.request(), way.change)
    assert late.value.may_have_run
    faults[0].end()
    assert change_once(db, way.site.request(), way.change).status == 201
    assert way.runs == way.site.things() == 1


def test_a_deadline_at_the_look_of_a_waiter(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the end of the wait: 409, as with a look that is in time."""
    faults: list[Fault] = []
    look = idempotency.Key.look

    def stalled(key: idempotency.Key, *arguments: Any) -> tuple[bool, Answer | None]:
        faults.append(way.network.stall())
        return look(key, *arguments)

    monkeypatch.setattr(idempotency.Key, "look", stalled)
    db = way.open()
    with First(way.site.open(), way.site), db.deadline(2), pytest.raises(Problem) as refused:
        change_once(db, way.site.request(), way.change)
    assert refused.value.name == "idempotency-key-in-use"
    assert len(faults) == 1
    faults[0].end()


def test_a_deadline_inside_the_change(way: Way) -> None:
    """It was rolled back, and the key is free."""
    db = way.open()

    def change(connection: Connection) -> Answer:
        answer = way.change(connection)
        connection.execute("SELECT pg_sleep(30)")
        return answer

    with db.deadline(0.5), pytest.raises(DeadlineExceededError) as late:
        change_once(db, way.site.request(), change)
    assert not late.value.may_have_run
    assert change_once(db, way.site.request(), way.change).status == 201
    assert way.site.things() == 1


FAIL_ONCE = """
CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('runs') = 1 THEN
        RAISE EXCEPTION 'in the closing flight' USING ERRCODE = '{sqlstate}';
    END IF;
    RETURN NEW;
END $$;
ALTER SEQUENCE runs RESTART;
GRANT USAGE ON SEQUENCE runs TO lambda_pg_app;
CREATE CONSTRAINT TRIGGER fail_once AFTER INSERT ON {table} {when}
    FOR EACH ROW EXECUTE FUNCTION fail_once();
"""

AT = {
    "the stored answer": {"table": "idempotency_keys", "when": ""},
    "COMMIT": {"table": "things", "when": "DEFERRABLE INITIALLY DEFERRED"},
}


@contextmanager
def failing_once(site: Keyed, at: str, sqlstate: str) -> Iterator[None]:
    """Have the first closing flight fail."""
    place = AT[at]
    site.run(FAIL_ONCE.format(sqlstate=sqlstate, **place))
    try:
        yield
    finally:
        site.run(f"DROP TRIGGER fail_once ON {place['table']}")
        site.run("DROP FUNCTION fail_once()")


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "53200"])
@pytest.mark.parametrize("at", AT)
def test_a_conflict_in_the_closing_flight(way: Way, at: str, sqlstate: str) -> None:
    """A serialization failure, a deadlock, or a server that is not able now: all of it again."""
    db = way.open()
    with failing_once(way.site, at, sqlstate):
        first = change_once(db, way.site.request(), way.change)
    assert way.runs == 2
    assert way.site.things() == way.site.keys() == 1
    assert outcome(change_once(db, way.site.request(), way.change)) == outcome(first)
    assert db.stats()["connections_num"] == 1


@pytest.mark.parametrize("at", AT)
def test_an_error_in_the_closing_flight(way: Way, at: str) -> None:
    """Another error is the caller's, nothing is left, and the connection is used again."""
    db = way.open()
    with failing_once(way.site, at, "23514"), pytest.raises(psycopg.errors.CheckViolation):
        change_once(db, way.site.request(), way.change)
    assert way.site.things() == way.site.keys() == 0
    db.run_transaction(way.change, claims={"sub": str(way.site.subject)})
    assert (way.site.things(), way.site.keys()) == (1, 0)
    assert change_once(db, way.site.request(), way.change).status == 201
    assert db.stats()["connections_num"] == 1


def test_a_real_deadlock_in_the_closing_flight(way: Way) -> None:
    """Two keyed changes whose stored answers need each other's rows: both are made in the end."""
    way.site.run(
        "CREATE FUNCTION lock_all() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN UPDATE things SET name = name WHERE name = 'both'; RETURN NEW; END $$;"
        " CREATE TRIGGER lock_all AFTER INSERT ON idempotency_keys"
        " FOR EACH ROW EXECUTE FUNCTION lock_all();"
        " INSERT INTO things (owner, name) SELECT gen_random_uuid(), 'both' FROM"
        " generate_series(1, 2);"
    )
    together = threading.Barrier(2)
    both = [n for (n,) in way.site.ask("SELECT n FROM things WHERE name = 'both' ORDER BY n")]

    def lock(mine: int) -> Callable[[Connection], Answer]:
        tries: list[int] = []

        def change(connection: Connection) -> Answer:
            connection.execute("UPDATE things SET name = name WHERE n = %s", [mine])
            if not tries:
                together.wait(20)
            tries.append(mine)
            way.runs += 1
            return Answer(200, {"n": mine})

        return change

    try:
        with ThreadPoolExecutor(2) as threads:
            running = [
                threads.submit(change_once, way.open(), way.site.request(f"k{n}"), lock(n))
                for n in both
            ]
            assert [each.result().status for each in running] == [200, 200]
    finally:
        way.site.run("DROP TRIGGER lock_all ON idempotency_keys")
        way.site.run("DROP FUNCTION lock_all()")
        way.site.run("DELETE FROM things WHERE name = 'both'")
    assert way.runs == 3
    assert way.site.keys() == 2


# The snapshot


GATE = 77
"""The advisory lock at which a claim stops before it takes the key's."""


@contextmanager
def changed_claim(site: Keyed, *edits: tuple[str, str]) -> Iterator[None]:
    """Replace parts of the claiming function's definition."""
    name = "claim_idempotency_key(uuid, bytea, bigint, boolean)"
    ((before,),) = site.ask(f"SELECT pg_get_functiondef('{name}'::regprocedure)")
    after = before
    for old, new in edits:
        assert old in after
        after = after.replace(old, new, 1)
    site.run(after)
    try:
        yield
    finally:
        site.run(before)


STOP = ("BEGIN\n", f"BEGIN\n    PERFORM pg_advisory_xact_lock_shared({GATE});\n")
STABLE = (" LANGUAGE plpgsql", " LANGUAGE plpgsql STABLE")
NO_INSERT = ("'repeatable read', 'serializable'", "'none'")


def overtaken(site: Keyed, *edits: tuple[str, str]) -> Answer:
    """Have a request's snapshot taken before the first one commits, and its lock afterwards."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'second'"
        " AND wait_event_type = 'Lock'"
    )
    with (
        First(site.open(), site) as first,
        ThreadPoolExecutor(1) as threads,
        changed_claim(site, STOP, *edits),
        site.superuser() as gate,
    ):
        gate.execute("SELECT pg_advisory_lock(%s)", [GATE])
        db = site.open(application_name="second")
        second = threads.submit(change_once, db, site.request(), insert)
        wait_until(lambda: site.ask(waiting) == [(1,)])
        first.finish()
        gate.execute("SELECT pg_advisory_unlock(%s)", [GATE])
        return second.result()


LEVELS = ["read committed", "repeatable read", "serializable"]


@pytest.fixture(params=LEVELS)
def level(keyed: Keyed, request: pytest.FixtureRequest) -> Iterator[str]:
    """The isolation level that transactions of the database have by default."""
    keyed.run(f"ALTER DATABASE {keyed.name} SET default_transaction_isolation = '{request.param}'")
    yield request.param
    keyed.run(f"ALTER DATABASE {keyed.name} RESET default_transaction_isolation")


def test_a_claim_sees_who_has_just_committed(keyed: Keyed, level: str) -> None:
    """Its snapshot may be older than that commit: the stored answer is found all the same."""
    assert is_replayed(overtaken(keyed))
    assert keyed.things() == keyed.keys() == 1


@pytest.mark.parametrize(
    ("level", "edit", "failure"),
    [
        ("read committed", STABLE, psycopg.errors.FeatureNotSupported),
        ("repeatable read", NO_INSERT, psycopg.errors.UniqueViolation),
    ],
    indirect=["level"],
)
def test_the_trap(
    keyed: Keyed, level: str, edit: tuple[str, str], failure: type[Exception]
) -> None:
    """The controls: with the snapshot of its statement, or of its transaction, it claims the key.

    A function that is STABLE then fails at its DELETE; in the other case the change was made, and
    only the primary key rolls it back.
    """
    with pytest.raises(failure):
        overtaken(keyed, edit)
    assert keyed.things() == 1


def test_each_level_applies_once(keyed: Keyed, level: str) -> None:
    """New, repeated and expired keys, and one that another request has."""
    db = keyed.open()
    first = change_once(db, keyed.request(), insert)
    assert outcome(change_once(db, keyed.request(), insert)) == outcome(first)
    keyed.run("UPDATE idempotency_keys SET expires_at = now() WHERE owner = %s", keyed.subject)
    assert not is_replayed(change_once(db, keyed.request(), insert))
    keyed.run("DELETE FROM idempotency_keys WHERE owner = %s", keyed.subject)
    with First(keyed.open(), keyed) as running, ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(change_once, db, keyed.request(), insert)
        assert outcome(running.finish()) == outcome(waiter.result())
    assert keyed.things() == 3


def test_a_server_that_accepts_no_writes_for_a_while(keyed: Keyed) -> None:
    """As after a failover: the claim is refused with 25006, which is retried."""
    change = f"ALTER DATABASE {keyed.name} {{}} default_transaction_read_only"
    keyed.run(change.format("SET") + " = on")
    db = keyed.open(checkout_timeout=20)
    with later(0.5, lambda: keyed.run("BEGIN READ WRITE; " + change.format("RESET") + "; COMMIT")):
        assert change_once(db, keyed.request(), insert).status == 201
    assert db.stats()["retries"] >= 1
    assert keyed.things() == 1


def test_a_standby_refuses_a_claim_as_any_write(pair: Pair) -> None:
    """With 25006, after which the layer looks for the new primary."""
    with pair.superuser(pair.primary) as admin:
        base = BASE.folder / "0003_idempotency_keys.py"
        revision = load_python_file(base.parent, base.name)
        admin.execute(revision.KEYS)
        admin.execute(revision.CLAIM)
    with pair.superuser(pair.standby) as reader:
        claim = "SELECT claim_idempotency_key(gen_random_uuid(), sha256('a'), 1, true)"
        found = "SELECT to_regproc('claim_idempotency_key') IS NOT NULL"
        wait_until(lambda: reader.execute(found).fetchone() == (True,))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.execute(claim)
    with pair.superuser(pair.primary) as admin:
        admin.execute("DROP FUNCTION claim_idempotency_key")
        admin.execute("DROP TABLE idempotency_keys")


def test_a_database_that_is_away(keyed: Keyed) -> None:
    """The request fails as any other: nothing was made."""
    db = keyed.open(port=1, checkout_timeout=0.3)
    with pytest.raises(DatabaseUnavailableError):
        change_once(db, keyed.request(), insert)
