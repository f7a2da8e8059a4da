"""A change with an Idempotency-Key is made once, and its answer is stored with it."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from lambda_pg import Database
from lambda_pg._connection import Connection as LayerConnection
from lambda_pg._pipeline import Command
from lambda_pg.http_api import Answer, Problem, change_once, idempotency
from psycopg.rows import dict_row, scalar_row

from tests.support.keyed import (
    Connection,
    Db,
    First,
    Keyed,
    insert,
    is_replayed,
    outcome,
)
from tests.support.recorder import Recorder, socket_of
from tests.support.tracing import Spans
from tests.support.waiting import wait_until


@pytest.fixture
def site(keyed: Keyed) -> Keyed:
    """The database for a caller without any row."""
    return keyed


@pytest.fixture(params=["direct", "pgbouncer"])
def open_db(site: Keyed, request: pytest.FixtureRequest) -> Callable[..., Db]:
    """Open the layer, directly or behind PgBouncer."""
    return site.open if request.param == "direct" else site.open_pooled


@pytest.fixture
def db(open_db: Callable[..., Db]) -> Db:
    """A database as a deployed function has it."""
    return open_db()


def test_a_repetition_gets_the_first_answer(site: Keyed, db: Db) -> None:
    """The same status, headers and body, and the mark of a repetition; the change runs once."""
    first = change_once(db, site.request(), insert)
    second = change_once(db, site.request(), insert)
    assert outcome(second) == outcome(first)
    assert (is_replayed(first), is_replayed(second)) == (False, True)
    assert first.status == 201
    assert first.headers["ETag"] == '"1"'
    assert site.things() == site.keys() == 1


def test_quoted_and_bare_are_one_key(site: Keyed, db: Db) -> None:
    """The draft's string and what other clients send."""
    first = change_once(db, site.request("k 1".replace(" ", "-")), insert)
    assert outcome(change_once(db, site.request('"k-1"'), insert)) == outcome(first)
    assert site.things() == 1


@pytest.mark.parametrize(
    "other",
    [
        {"body": '{"name": "Bob"}'},
        {"body": '{"name":  "Ada"}'},
        {"query": "notify=1"},
        {"content_type": "application/merge-patch+json"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_request_is_refused(site: Keyed, db: Db, other: dict[str, str]) -> None:
    """With 422, and the change does not run."""
    change_once(db, site.request(), insert)
    with pytest.raises(Problem) as refused:
        change_once(db, site.request(**other), insert)
    assert (refused.value.name, refused.value.status) == ("idempotency-key-reused", 422)
    assert site.things() == 1


@pytest.mark.parametrize(
    "other",
    [{"method": "PATCH"}, {"path": "/things/7"}, {"key": "k2"}, {"key": "K1"}],
    ids=lambda other: "-".join(next(iter(other.items()))),
)
def test_a_key_belongs_to_a_method_and_a_path(site: Keyed, db: Db, other: dict[str, str]) -> None:
    """The same characters elsewhere are another key."""
    change_once(db, site.request(), insert)
    assert not is_replayed(change_once(db, site.request(**other), insert))
    assert site.things() == site.keys() == 2


@pytest.mark.parametrize("same", [{"if-match": '"7"'}, {"content_type": "Application/JSON ;x=y"}])
def test_other_headers_are_no_part_of_the_request(
    site: Keyed, db: Db, same: dict[str, str]
) -> None:
    """A repetition may have another If-Match, and parameters of the media type."""
    change_once(db, site.request(), insert)
    assert is_replayed(change_once(db, site.request(**same), insert))


def test_a_key_belongs_to_its_caller(site: Keyed, db: Db) -> None:
    """Another caller's key is another key, and its answer is never seen."""
    change_once(db, site.request(), insert)
    other = uuid.uuid4()
    assert not is_replayed(change_once(db, site.request(subject=other), insert))
    assert site.ask("SELECT count(*) FROM things WHERE owner = %s", other) == [(1,)]


CLAIM = "SELECT claimed, status FROM claim_idempotency_key(%s, %s, %s, true)"


def claimed_by_a_thief(site: Keyed, db: Db, owner: uuid.UUID) -> object:
    """Claim the caller's key as somebody else, in the name of `owner`."""
    key = idempotency.Key.of(site.request(), "k1", site.subject)
    thief = {"sub": str(uuid.uuid4())}
    return db.execute(CLAIM, (owner, key.id, key.lock), claims=thief).fetchone()


def test_row_level_security_alone_hides_a_key(site: Keyed) -> None:
    """A query that names another owner finds nothing; without the policies it does (control)."""
    db = site.open()
    change_once(db, site.request(), insert)
    assert claimed_by_a_thief(site, db, site.subject) == (True, None)
    site.run("ALTER TABLE idempotency_keys DISABLE ROW LEVEL SECURITY")
    try:
        assert claimed_by_a_thief(site, db, site.subject) == (False, 201)
    finally:
        site.run("ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY")


def test_the_query_alone_hides_a_key(site: Keyed) -> None:
    """Without row-level security another caller's key is another one, and no row of it changes."""
    db, other = site.open(), uuid.uuid4()
    change_once(db, site.request(), insert)
    site.add_expired(3)
    site.add_expired(3, other)
    site.run("ALTER TABLE idempotency_keys DISABLE ROW LEVEL SECURITY")
    try:
        answer = change_once(db, site.request(subject=other), insert)
    finally:
        site.run("ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY")
    assert not is_replayed(answer)
    assert site.keys() == 4


def test_without_claims_nothing_is_stored(site: Keyed) -> None:
    """The policy compares with the claims of the transaction: no row can be written for another."""
    db = site.open()
    other = {"sub": str(uuid.uuid4())}
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute(
            "INSERT INTO idempotency_keys (owner, id, request, status, headers, body)"
            " VALUES (%s, sha256('a'), sha256('b'), 201, '{}', '')",
            [site.subject],
            claims=other,
        )
    assert db.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (0,)


@pytest.mark.parametrize("claims", [{}, {"sub": "ada"}, {"sub": 7}, {"role": "admin"}])
def test_claims_must_name_the_owner_of_a_key(site: Keyed, claims: dict[str, Any]) -> None:
    """A mistake of the function, reported before anything is sent and without the claims."""
    with pytest.raises(ValueError, match="no sub that is a UUID"):
        change_once(site.open(), site.request(), insert, claims=claims)
    assert site.keys() == 0


def test_other_claims_reach_the_change(site: Keyed) -> None:
    """Claims may have more than the subject, and the key belongs to their subject."""
    claims = {"sub": str(uuid.uuid4()), "tenant": "t1"}

    def read(connection: Connection) -> Answer:
        row = connection.execute("SELECT current_setting('request.jwt.claims')").fetchone()
        assert row is not None
        return Answer(200, str(row[0]))

    answer = change_once(site.open(), site.request(), read, claims=claims)
    assert "t1" in answer.body
    query = "SELECT count(*) FROM idempotency_keys WHERE owner = %s"
    assert site.ask(query, claims["sub"]) == [(1,)]
    assert site.keys() == 0


def refuse(connection: Connection) -> Answer:
    """Change something, then refuse the request."""
    insert(connection)
    raise Problem("precondition-failed", "The version has changed.")


def answer_409(connection: Connection) -> Answer:
    """Change something, then answer with no success."""
    insert(connection)
    return Answer(409, {"why": "not now"})


def fail_in_sql(connection: Connection) -> Answer:
    """Change something, then fail in SQL."""
    insert(connection)
    connection.execute("SELECT 1 / 0")
    raise AssertionError


@pytest.mark.parametrize("key", ["k1", None])
@pytest.mark.parametrize(
    ("change", "failure"),
    [(refuse, Problem), (fail_in_sql, psycopg.errors.DivisionByZero), (answer_409, None)],
)
def test_a_failed_change_leaves_nothing(
    site: Keyed,
    db: Db,
    key: str | None,
    change: Callable[[Connection], Answer],
    failure: type[Exception] | None,
) -> None:
    """Neither a row nor a stored answer: the next request with the key runs."""
    if failure is None:
        assert change_once(db, site.request(key), change).status == 409
    else:
        with pytest.raises(failure):
            change_once(db, site.request(key), change)
    assert site.things() == site.keys() == 0
    assert change_once(db, site.request(key), insert).status == 201


@pytest.mark.parametrize("key", ["k1", None])
def test_a_change_must_return_an_answer(site: Keyed, key: str | None) -> None:
    """Nothing is committed for a function that forgot to."""

    def forget(connection: Connection) -> Answer:
        insert(connection)
        return None  # type: ignore[return-value]

    def give_up(connection: Connection) -> Answer:
        insert(connection)
        raise psycopg.Rollback

    db = site.open()
    with pytest.raises(TypeError, match="returned a NoneType"):
        change_once(db, site.request(key), forget)
    with pytest.raises(TypeError, match="rolled back by psycopg"):
        change_once(db, site.request(key), give_up)
    assert site.things() == 0


@pytest.mark.parametrize("key", ["k1", None])
def test_an_answer_that_json_cannot_hold_is_a_mistake(site: Keyed, key: str | None) -> None:
    """It is found before COMMIT."""

    def change(connection: Connection) -> Answer:
        insert(connection)
        return Answer(200, {"connection": connection})

    with pytest.raises(TypeError, match="which JSON does not have"):
        change_once(site.open(), site.request(key), change)
    assert site.things() == 0


@pytest.mark.parametrize(("size", "stored"), [(65_536, True), (65_537, False)])
def test_an_answer_over_the_bound_is_a_mistake(site: Keyed, size: int, stored: bool) -> None:
    """It rolls back; without a key nothing is stored, and the answer may be larger."""
    db = site.open()

    def long(connection: Connection) -> Answer:
        insert(connection)
        return Answer(200, b"x" * size)

    if stored:
        assert change_once(db, site.request(), long).status == 200
        assert len(change_once(db, site.request(), long).content) == size
    else:
        with pytest.raises(ValueError, match="has 65537 bytes; must be at most 65536"):
            change_once(db, site.request(), long)
        assert change_once(db, site.request(None), long).status == 200
    assert (site.things(), site.keys()) == (1, int(stored))


def test_an_answer_without_a_body_is_repeated_without_one(site: Keyed, db: Db) -> None:
    """204 has neither body nor Content-Type."""

    def change(connection: Connection) -> Answer:
        insert(connection)
        return Answer(204)

    first, second = (change_once(db, site.request(), change) for _ in range(2))
    assert outcome(second) == outcome(first) == (204, b"", {})


def test_no_key_is_no_row(site: Keyed, db: Db) -> None:
    """Each request is a change then."""
    for _ in range(2):
        assert change_once(db, site.request(None), insert).status == 201
    assert (site.things(), site.keys()) == (2, 0)


def test_a_required_key_is_missing(site: Keyed) -> None:
    """400, and nothing runs."""
    sent = site.request(None)
    object.__setattr__(sent.rules, "require_idempotency_key", True)
    try:
        with pytest.raises(Problem) as refused:
            change_once(site.open(), sent, insert)
    finally:
        object.__setattr__(sent.rules, "require_idempotency_key", False)
    assert refused.value.name == "idempotency-key-missing"
    assert site.things() == 0


@pytest.mark.parametrize("rows", [dict_row, scalar_row])
def test_a_database_may_have_another_row_factory(site: Keyed, rows: Any) -> None:
    """What the layer reads does not depend on it, for a claim or a look."""
    db: Database[Any] = Database(site.direct, row_factory=rows)

    def change(connection: psycopg.Connection[Any]) -> Answer:
        connection.execute("INSERT INTO things (name) VALUES ('Ada')")
        return Answer(201, "made")

    with First(site.open(), site, change) as first:
        threading.Timer(0.2, first.release).start()
        assert is_replayed(change_once(db, site.request(), change))
    assert is_replayed(change_once(db, site.request(), change))
    assert site.things() == 1
    db.close()


# Two at once


def test_a_waiter_gets_the_answer_of_the_first(site: Keyed, open_db: Callable[..., Db]) -> None:
    """It does not run its change."""
    with First(open_db(), site) as first, ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(change_once, open_db(), site.request(), insert)
        with pytest.raises(TimeoutError):
            waiter.result(0.3)
        assert outcome(waiter_answer := first.finish()) == outcome(waiter.result())
    assert not is_replayed(waiter_answer)
    assert is_replayed(waiter.result())
    assert site.things() == 1


@pytest.mark.parametrize("change", [refuse, answer_409, fail_in_sql])
def test_a_waiter_runs_after_a_first_that_failed(
    site: Keyed, open_db: Callable[..., Db], change: Callable[[Connection], Answer]
) -> None:
    """The key is free again."""
    with First(open_db(), site, change) as first, ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(change_once, open_db(), site.request(), insert)
        first.release()
        assert waiter.result().status == 201
    assert not is_replayed(waiter.result())
    assert site.things() == site.keys() == 1


def test_a_waiter_with_another_request_is_refused(site: Keyed) -> None:
    """As soon as the first one's answer is there."""
    with First(site.open(), site) as first, ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(change_once, site.open(), site.request(body="{}"), insert)
        first.release()
        with pytest.raises(Problem) as refused:
            waiter.result()
    assert refused.value.status == 422


def test_a_waiter_gives_up_at_its_deadline(site: Keyed, open_db: Callable[..., Db]) -> None:
    """With 409 and Retry-After; the first goes on."""
    with First(open_db(), site) as first:
        db = open_db()
        with db.deadline(0.6), pytest.raises(Problem) as refused:
            change_once(db, site.request(), insert)
        assert first.finish().status == 201
    assert (refused.value.name, refused.value.status) == ("idempotency-key-in-use", 409)
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert site.things() == 1


def test_a_waiter_gives_up_after_some_seconds(site: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a deadline: LONGEST_WAIT is shortened here."""
    assert idempotency.LONGEST_WAIT == 10
    monkeypatch.setattr(idempotency, "LONGEST_WAIT", 0.4)
    with First(site.open(), site), pytest.raises(Problem) as refused:
        change_once(site.open(), site.request(), insert)
    assert refused.value.status == 409


class Pauses:
    """Stands for the module `time`: looks at the server during each pause of a waiter."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look, self.count = look, 0
        self._woken = threading.Event()

    def sleep(self, seconds: float) -> None:
        self.count += 1
        self._look()
        self._woken.wait(seconds)


def busy_sessions(site: Keyed, application: str) -> int:
    """Count the sessions of an application that have a transaction or run a statement."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
    return int(site.ask(query, application)[0][0])


def test_a_waiter_has_no_transaction(site: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each pause its session is idle."""

    def look() -> None:
        assert busy_sessions(site, "first") == 1
        wait_until(lambda: busy_sessions(site, "waiter") == 0)

    with First(site.open(application_name="first"), site):
        monkeypatch.setattr(idempotency, "time", pauses := Pauses(look))
        db = site.open(application_name="waiter")
        with db.deadline(1), pytest.raises(Problem):
            change_once(db, site.request(), insert)
    assert pauses.count >= 3


def server_connections(site: Keyed) -> int:
    """Ask PgBouncer how many server connections are in use."""
    with psycopg.connect(site.pooler.process.admin_dsn, autocommit=True) as console:
        cursor = psycopg.ClientCursor(console)
        cursor.execute("SHOW POOLS")
        names = [column.name for column in cursor.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return sum(int(row["sv_active"]) for row in rows if row["database"] == site.name)


def test_a_waiter_holds_no_server_connection(site: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each pause PgBouncer has lent one, to the first."""
    with First(site.open_pooled(), site):
        pauses = Pauses(lambda: wait_until(lambda: server_connections(site) == 1))
        monkeypatch.setattr(idempotency, "time", pauses)
        db = site.open_pooled()
        with db.deadline(1), pytest.raises(Problem):
            change_once(db, site.request(), insert)
    assert pauses.count >= 3


def test_many_waiters_leave_others_a_connection(site: Keyed) -> None:
    """Twelve wait beside a first, with two server connections for all: another caller is served."""
    databases = [site.open_pooled() for _ in range(12)]
    other = site.open_pooled()
    with First(site.open_pooled(), site) as first, ThreadPoolExecutor(12) as threads:
        waiters = [threads.submit(change_once, db, site.request(), insert) for db in databases]
        for _ in range(20):
            assert change_once(other, site.request(None), insert).status == 201
        expected = outcome(first.finish())
        assert all(outcome(waiter.result()) == expected for waiter in waiters)
    assert site.things() == 21


def test_a_look_costs_one_round_trip(site: Keyed, tmp_path: Path) -> None:
    """And an attempt to claim two: the claim, and the end of its transaction."""
    with Recorder(socket_of(site.postgres), tmp_path) as recorder:
        db = site.open(port=recorder.port, sslrootcert=recorder.ca_file)
        db.execute("SELECT 1")
        with First(site.open(), site):
            recorder.clear()
            with db.deadline(1), pytest.raises(Problem):
                change_once(db, site.request(), insert)
        looks = sum("claim_idempotency_key" in query for query in recorder.queries) - 1
        assert looks >= 3
        assert recorder.round_trips() == 2 + looks
        db.close()


def test_a_look_keeps_nobody_from_claiming(site: Keyed) -> None:
    """It does not hold the lock until the end of its transaction."""
    key = idempotency.Key.of(site.request(), "k1", site.subject)
    look, claims = CLAIM.replace("true", "false"), {"sub": str(site.subject)}
    params = (key.owner, key.id, key.lock)
    with site.open().transaction(claims=claims) as connection:
        assert connection.execute(look, params).fetchone() == (True, None)
        assert site.open().execute(CLAIM, params, claims=claims).fetchone() == (True, None)


def test_two_keys_with_one_lock_only_wait(site: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the locks of two keys have the same number, each change is made."""

    def collide(*parts: str | bytes) -> bytes:
        return real(*parts) if isinstance(parts[0], str) else bytes(32)

    real = idempotency._hash
    monkeypatch.setattr(idempotency, "_hash", collide)
    with First(site.open(), site) as first, ThreadPoolExecutor(1) as threads:
        second = threads.submit(change_once, site.open(), site.request("k2"), insert)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        answers = [first.finish(), second.result()]
    assert not any(map(is_replayed, answers))
    assert site.things() == site.keys() == 2


# Expiry


def test_an_expired_answer_is_not_repeated(site: Keyed, db: Db) -> None:
    """The change is made again, and its answer replaces the old one."""
    first = change_once(db, site.request(), insert)
    expired = "UPDATE idempotency_keys SET expires_at = now() WHERE owner = %s"
    site.run(expired, site.subject)
    second = change_once(db, site.request(body="{}"), insert)
    assert not is_replayed(second)
    assert outcome(second) != outcome(first)
    assert outcome(change_once(db, site.request(body="{}"), insert)) == outcome(second)
    assert (site.things(), site.keys()) == (2, 1)


def test_an_answer_is_kept_for_a_day(site: Keyed) -> None:
    """24 hours from the beginning of its transaction."""
    change_once(site.open(), site.request(), insert)
    query = (
        "SELECT expires_at BETWEEN now() + '23:55' AND now() + '24:00' FROM idempotency_keys"
        " WHERE owner = %s"
    )
    assert site.ask(query, site.subject) == [(True,)]


def test_a_write_deletes_ten_expired_rows_of_its_caller(site: Keyed, db: Db) -> None:
    """The oldest first; another caller's rows stay, and so does what has not expired."""
    other = uuid.uuid4()
    site.add_expired(25)
    site.add_expired(5, other)
    change_once(db, site.request("k1"), insert)
    assert site.keys() == 15 + 1
    oldest = "SELECT max(now() - expires_at) < '16 min' FROM idempotency_keys WHERE owner = %s"
    assert site.ask(oldest, site.subject) == [(True,)]
    for number in range(2, 4):
        change_once(db, site.request(f"k{number}"), insert)
    assert site.keys() == 3
    change_once(db, site.request("k4"), insert)
    assert site.keys() == 4
    assert site.ask("SELECT count(*) FROM idempotency_keys WHERE owner = %s", other) == [(5,)]


def test_a_write_deletes_ten_rows_also_by_a_loop(site: Keyed) -> None:
    """The rows to delete are looked for once: a plan that loops would find others each time."""
    nodes = ("hashjoin", "mergejoin", "hashagg", "sort", "material", "bitmapscan")
    site.run("TRUNCATE idempotency_keys")
    for node in nodes:
        site.run(f"ALTER DATABASE {site.name} SET enable_{node} = off")
    site.add_expired(40)
    try:
        change_once(site.open(), site.request(), insert)
    finally:
        for node in nodes:
            site.run(f"ALTER DATABASE {site.name} RESET enable_{node}")
    assert site.keys() == 30 + 1


@pytest.mark.parametrize("rows", [3, 20, 200])
def test_a_session_that_has_seen_a_small_table_reads_little_of_a_large_one(
    site: Keyed, rows: int
) -> None:
    """It keeps its plans until the next ANALYZE: those for a small table could read all of it."""
    site.run("TRUNCATE idempotency_keys")
    site.run("ALTER TABLE idempotency_keys SET (autovacuum_enabled = false)")
    site.add_valid(rows)
    site.run("ANALYZE idempotency_keys")
    db = site.open()
    for number in range(10):
        change_once(db, site.request(f"small-{number}"), insert)
    site.add_valid(20_000)
    (session,) = db.execute("SELECT pg_backend_pid()").fetchone() or ()
    before = site.rows_read()
    for number in range(5):
        change_once(db, site.request(f"large-{number}"), insert)
    db.close()  # a session that ends reports what it has read
    wait_until(lambda: not site.ask("SELECT FROM pg_stat_activity WHERE pid = %s", session))
    assert site.rows_read() - before < 20_000


def test_a_write_waits_for_nobody_who_deletes_too(site: Keyed) -> None:
    """Rows that another transaction is deleting are skipped."""
    site.add_expired(12)
    db = site.open()
    with site.superuser() as admin, admin.transaction():
        admin.execute(
            "DELETE FROM idempotency_keys"
            " WHERE owner = %s AND expires_at < now() - interval '3 min'",
            [site.subject],
        )
        with db.deadline(5):
            assert change_once(db, site.request(), insert).status == 201
    assert site.keys() == 1


def test_a_claim_waits_for_nobody_who_deletes_its_expired_row(site: Keyed, db: Db) -> None:
    """It waits outside of the server, as for a request that has the key."""
    change_once(db, site.request(), insert)
    site.run("UPDATE idempotency_keys SET expires_at = now() WHERE owner = %s", site.subject)
    with site.superuser() as admin, admin.transaction():
        admin.execute("DELETE FROM idempotency_keys WHERE owner = %s", [site.subject])
        with db.deadline(1), pytest.raises(Problem) as refused:
            change_once(db, site.request(), insert)
    assert refused.value.name == "idempotency-key-in-use"
    assert not is_replayed(change_once(db, site.request(), insert))
    assert (site.things(), site.keys()) == (2, 1)


def test_the_owner_deletes_what_has_expired(site: Keyed) -> None:
    """By one statement, and can neither see nor delete anything else."""
    change_once(site.open(), site.request(), insert)
    site.add_expired(25)
    with psycopg.connect(site.postgres.dsn, dbname=site.name, autocommit=True) as owner:
        owner.execute("DELETE FROM idempotency_keys WHERE expires_at <= now()")
        assert owner.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (0,)
        assert owner.execute("DELETE FROM idempotency_keys").rowcount == 0
    assert site.keys() == 1


# The hook


def test_statements_travel_with_commit_only_where_the_id_is_known(site: Keyed) -> None:
    """A lost answer could not be resolved otherwise: nothing is committed."""
    command = Command(b"INSERT INTO things (name) VALUES ('closing')")

    def close(connection: Connection) -> None:
        connection.execute("SELECT 1")
        cast(LayerConnection, connection).close_with([command])

    def write_and_close(connection: Connection) -> None:
        insert(connection)
        cast(LayerConnection, connection).close_with([command])

    db, claims = site.open(), {"sub": str(site.subject)}
    with pytest.raises(psycopg.ProgrammingError, match="no id yet"):
        db.run_transaction(close, claims=claims)
    assert site.things() == 0
    db.run_transaction(write_and_close, claims=claims)
    assert site.things() == 2
    db.run_transaction(insert, claims=claims)
    assert site.things() == 3


def test_the_closing_flight_is_a_span(site: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as the COMMIT in it."""
    spans = Spans(monkeypatch)
    db = site.open()
    db.execute("SELECT 1")
    spans.take()
    change_once(db, site.request(), insert)
    assert spans.tree()[-1] == "COMMIT"


# What it costs


def rename(connection: Connection) -> Answer:
    """Change something by two statements."""
    connection.execute("SELECT FROM things FOR UPDATE")
    return insert(connection)


@pytest.mark.parametrize(("change", "statements"), [(insert, 1), (rename, 2)])
def test_a_key_costs_two_round_trips_at_most(
    site: Keyed, tmp_path: Path, change: Callable[[Connection], Answer], statements: int
) -> None:
    """Than run_transaction() one more; and without a key none."""
    claims = {"sub": str(site.subject)}
    with Recorder(socket_of(site.postgres), tmp_path) as recorder:
        db = site.open(port=recorder.port, sslrootcert=recorder.ca_file)

        def cost(call: Callable[[], object]) -> int:
            recorder.clear()
            call()
            return recorder.round_trips()

        db.execute("SELECT 1")
        plain = cost(lambda: db.run_transaction(change, claims=claims))
        assert plain == statements + 1
        assert cost(lambda: change_once(db, site.request(None), change)) == plain
        assert cost(lambda: change_once(db, site.request(), change)) == plain + 1
        assert cost(lambda: change_once(db, site.request(), change)) == 2  # a repetition
        site.add_expired(3)
        assert cost(lambda: change_once(db, site.request("k2"), change)) == plain + 1
        assert not recorder.violations("rds-proxy")
        db.close()
