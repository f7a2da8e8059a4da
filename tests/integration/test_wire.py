"""What the layer sends: nothing that pins RDS Proxy, in as few round trips as can be."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from lambda_pg import (
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
    StatementRefusedError,
)
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.recorder import (
    LEAKING_STATEMENTS,
    PINNING_STATEMENTS,
    Message,
    Recorder,
    broken_rules,
    socket_of,
)
from tests.support.servers import DATABASE, PoolerFixture, create_login

CLAIMS = {"sub": "a"}

SCHEMA = """
    CREATE TABLE wire (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO wire VALUES (0);
    GRANT ALL ON wire TO {0};
    CREATE TABLE doctors (name text PRIMARY KEY, on_call bool);
    INSERT INTO doctors VALUES ('a', true), ('b', true);
    GRANT ALL ON doctors TO {0};
"""


@dataclass
class Line:
    """The way from the layer to the database, with the recorder on it."""

    recorder: Recorder
    settings: Settings
    admin: psycopg.Connection[TupleRow]
    login: str
    opened: ExitStack

    def open(self, **changes: Any) -> Database[TupleRow]:
        """Make a database in the profile rds-proxy, or with other settings."""
        database = Database(replace(self.settings, **changes))
        self.opened.callback(database.close)
        return database

    @property
    def logins(self) -> int:
        """The number of connections that were opened."""
        return sum(message.kind == "Startup" for message in self.recorder.messages)

    def cost(self, use: Callable[[], object]) -> int:
        """Count the round trips of something."""
        self.recorder.clear()
        use()
        return self.recorder.round_trips()

    def end_backends(self) -> None:
        """End the layer's server connections, as a failover does."""
        self.admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s",
            [self.login],
        )


@pytest.fixture(params=["direct", "pgbouncer"])
def line(request: pytest.FixtureRequest, postgres: Postgres, tmp_path: Path) -> Iterator[Line]:
    """The server, or a PgBouncer before it, behind a recorder."""
    with ExitStack() as stack:
        if request.param == "direct":
            service = request.getfixturevalue("secrets_service")
            login = create_login(postgres, service, "canary-of-the-wire")
            recorder = Recorder(socket_of(postgres), tmp_path)
        else:
            pooler: PoolerFixture = request.getfixturevalue("kept_pooler")
            login = pooler.login
            address = ("127.0.0.1", pooler.port)
            recorder = Recorder(address, tmp_path, server_ca=pooler.ca_file)
        stack.enter_context(recorder)
        dsn = make_conninfo(postgres.superuser_dsn, dbname=DATABASE)
        admin = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        admin.execute(SCHEMA.format(login.name))
        stack.callback(admin.execute, "DROP TABLE wire; DROP TABLE doctors")
        stack.callback(admin.execute, f"ALTER ROLE {login.name} RESET ALL".encode())
        settings = Settings(
            host="127.0.0.1",
            port=recorder.port,
            dbname=DATABASE,
            user=login.name,
            password=login.password,
            sslrootcert=recorder.ca_file,
            profile="rds-proxy",
        )
        opened = stack.enter_context(ExitStack())
        yield Line(recorder, settings, admin, login.name, opened)


# The repertoire


def plain(line: Line, db: Database[TupleRow]) -> None:
    """Run single statements in every way."""
    db.execute("SELECT 1")
    db.execute("SELECT 1; SELECT 2")
    db.execute("SELECT %s, %s", [1, "SET a = 1"])
    db.execute("INSERT INTO wire VALUES (1) RETURNING n").fetchone()
    db.execute("SELECT %s", [1], claims=CLAIMS)
    db.execute("SELECT length(%s)", ["x" * 100_000], idempotent=True)


def failing(line: Line, db: Database[TupleRow]) -> None:
    """Run into errors of SQL."""
    for claims in (None, CLAIMS):
        for query in ("SELECT 1/0", "nonsense", "INSERT INTO wire VALUES (0)"):
            with suppress(psycopg.Error):
                db.execute(query, claims=claims)
            with suppress(psycopg.Error), db.transaction(claims=claims) as connection:
                connection.execute(query)


def transactions(line: Line, db: Database[TupleRow]) -> None:
    """Commit, roll back, nest, rerun."""
    for claims in (None, CLAIMS):
        with db.transaction(claims=claims) as connection:
            connection.execute("DELETE FROM wire")
            with suppress(psycopg.Error), connection.transaction():
                connection.execute("SELECT 1/0")
        with suppress(LookupError), db.transaction(claims=claims) as connection:
            connection.execute("INSERT INTO wire VALUES (2)")
            raise LookupError
        db.run_transaction(rerun_once(), claims=claims)
        with db.transaction(claims=claims):
            pass


def rerun_once() -> Callable[[psycopg.Connection[TupleRow]], None]:
    """Make work that meets a serialization failure the first time."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(1)
        connection.execute("SELECT 1")
        if len(runs) == 1:
            connection.execute("DO $$ BEGIN RAISE 'again' USING ERRCODE = '40001'; END $$")

    return work


def by_hand(line: Line, db: Database[TupleRow]) -> None:
    """Do what execute() cannot express, in and out of a transaction."""
    with db.connection() as connection:
        use_by_hand(connection)
        with connection.transaction():
            connection.execute("SET LOCAL statement_timeout = 1000")
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        with connection.transaction():
            connection.execute("SELECT 1")
    with db.transaction(claims=CLAIMS) as connection:
        use_by_hand(connection)
    connection = db.getconn()
    connection.autocommit = False
    connection.execute("SELECT 1")
    db.putconn(connection)


def use_by_hand(connection: psycopg.Connection[TupleRow]) -> None:
    """Use executemany, COPY both ways, a pipeline and a stream."""
    cursor = connection.cursor()
    cursor.executemany("SELECT %s", [[1], [2]], returning=True)
    with cursor.copy("COPY wire FROM STDIN") as copy:
        copy.write_row([7])
    connection.execute("DELETE FROM wire")
    with cursor.copy("COPY wire TO STDOUT") as copy:
        list(copy)
    with connection.pipeline():
        connection.execute("SELECT 1")
    assert len(list(cursor.stream("SELECT generate_series(1, %s)", [9]))) == 9


def left_open(line: Line, db: Database[TupleRow]) -> None:
    """Leave a transaction open, which the pool rolls back."""
    with db.connection() as connection:
        connection.execute("BEGIN")


def overdue(line: Line, db: Database[TupleRow]) -> None:
    """Let a deadline end a statement, with nobody to send a cancel to."""
    for use in (lambda: db.execute("SELECT pg_sleep(9)"), lambda: sleep_in_transaction(db)):
        with db.deadline(0.2), pytest.raises(DeadlineExceededError):
            use()
    db.execute("SELECT 1")


def sleep_in_transaction(db: Database[TupleRow]) -> None:
    """Sleep as the second statement."""
    with db.transaction(claims=CLAIMS) as connection:
        connection.execute("SELECT 1")
        connection.execute("SELECT pg_sleep(9)")


def lost(line: Line, db: Database[TupleRow]) -> None:
    """Lose the server connection while idle and in a transaction."""
    line.end_backends()
    db.execute("SELECT 1", idempotent=True)
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(1)
        connection.execute("SELECT 1")
        if len(runs) == 1:
            line.end_backends()
        connection.execute("SELECT 1")

    db.run_transaction(work)


def idle(line: Line, db: Database[TupleRow]) -> None:
    """Ask a connection that was idle for long."""
    suspicious = line.open(idle_check_after=1e-6)
    suspicious.execute("SELECT 1")
    suspicious.execute("SELECT 1")


def closed(line: Line, db: Database[TupleRow]) -> None:
    """Close and open again."""
    db.close()
    db.execute("SELECT 1")


REPERTOIRE = [
    plain, failing, transactions, by_hand, left_open, overdue, lost, idle, closed
]  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_that_the_layer_sends_pins(line: Line, strict: bool) -> None:
    """In the profile rds-proxy the whole repertoire crosses without a violation."""
    db = line.open(strict=strict)
    for use in REPERTOIRE:
        use(line, db)
        assert line.recorder.queries, use.__name__
        assert not list(map(str, line.recorder.violations("rds-proxy"))), use.__name__
        line.recorder.clear()


@pytest.mark.parametrize("line", ["direct"], indirect=True)
def test_the_recorder_sees_what_another_profile_sends(line: Line) -> None:
    """On a direct address the same repertoire cancels and resets: the recorder can tell."""
    db = line.open(profile="direct")
    for use in (by_hand, left_open, overdue):
        use(line, db)
    broken = {violation.rule for violation in line.recorder.violations("rds-proxy")}
    assert broken == {"DISCARD", "cancel request"}


@pytest.mark.parametrize("line", ["direct"], indirect=True)
def test_strict_mode_and_the_recorder_agree(line: Line) -> None:
    """What breaks a rule of the recorder is refused before it is sent."""
    db = line.open(strict=True)
    db.execute("SELECT 1")
    line.recorder.clear()
    for _, query in LEAKING_STATEMENTS + PINNING_STATEMENTS:
        with pytest.raises(StatementRefusedError):
            db.execute(query)
        with db.connection() as connection, pytest.raises(StatementRefusedError):
            connection.execute(query)
    with db.connection() as connection, pytest.raises(StatementRefusedError):
        connection.execute("SELECT %s", [1], prepare=True)
    assert line.recorder.messages == ()
    sent = [
        Message(1, "client", "Query", query.encode() + b"\0")
        for _, query in LEAKING_STATEMENTS + PINNING_STATEMENTS
    ]
    assert all(list(broken_rules(message)) for message in sent)


# Round trips


def test_single_statements_take_one_round_trip(line: Line) -> None:
    """With parameters, with claims, and both."""
    db = line.open()
    db.execute("SELECT 1")
    assert line.cost(lambda: db.execute("SELECT 1")) == 1
    assert line.cost(lambda: db.execute("SELECT %s", [1])) == 1
    assert line.cost(lambda: db.execute("SELECT %s", [1], claims=CLAIMS)) == 1
    assert line.cost(lambda: db.execute("INSERT INTO wire VALUES (1)", claims=CLAIMS)) == 1


@pytest.mark.parametrize("claims", [None, CLAIMS])
def test_a_transaction_takes_one_more(line: Line, claims: dict[str, str] | None) -> None:
    """BEGIN and claims go with the first statement, COMMIT takes the second round trip."""
    db = line.open()
    db.execute("SELECT 1")

    def use(*queries: str) -> Callable[[], None]:
        def run() -> None:
            with db.transaction(claims=claims) as connection:
                for query in queries:
                    connection.execute(query)

        return run

    assert line.cost(use("SELECT 1")) == 2
    assert line.cost(use("INSERT INTO wire VALUES (1)")) == 2
    assert line.cost(use("SELECT 1", "SELECT 2")) == 3
    assert line.cost(use()) == 0


MODES: Final[dict[str, Any]] = {
    "isolation_level": psycopg.IsolationLevel.SERIALIZABLE,
    "read_only": False,
    "deferrable": True,
}
BEGIN_MODES: Final = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE DEFERRABLE"


@pytest.mark.parametrize("claims", [None, CLAIMS])
def test_modes_travel_with_begin(line: Line, claims: dict[str, str] | None) -> None:
    """They cost no round trip and no statement, and pin nothing."""
    db = line.open()
    db.execute("SELECT 1")

    def block() -> None:
        with db.transaction(claims=claims, **MODES) as connection:
            connection.execute("UPDATE wire SET n = 5")

    def unit() -> None:
        db.run_transaction(lambda c: c.execute("UPDATE wire SET n = 5"), claims=claims, **MODES)

    for use in (block, unit):
        assert line.cost(use) == 2
        assert line.recorder.queries[0] == BEGIN_MODES
        assert len(line.recorder.queries) == (4 if claims is None else 5)
        assert line.recorder.violations("rds-proxy") == []


@pytest.mark.parametrize("claims", [None, CLAIMS])
def test_a_unit_of_work_that_writes_takes_no_more(
    line: Line, claims: dict[str, str] | None
) -> None:
    """The transaction's id, to ask with after a lost COMMIT, comes with the statement."""
    db = line.open()
    db.execute("SELECT 1")
    write = "UPDATE wire SET n = 5"
    assert line.cost(lambda: db.run_transaction(lambda c: c.execute(write), claims=claims)) == 2


# Errors


@pytest.mark.parametrize("claims", [None, CLAIMS])
@pytest.mark.parametrize("before", [0, 1])
def test_an_error_surfaces_at_its_statement(
    line: Line, claims: dict[str, str] | None, before: int
) -> None:
    """Also at the first one, which shares its round trip; the connection stays in use."""
    db = line.open()
    db.execute("SELECT 1")

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        for _ in range(before):
            connection.execute("INSERT INTO wire VALUES (1)")
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            connection.execute("SELECT 1/0")
        assert caught.value.sqlstate == "22012"
        raise caught.value

    with pytest.raises(psycopg.errors.DivisionByZero):
        db.run_transaction(work, claims=claims)
    with pytest.raises(psycopg.errors.DivisionByZero), db.transaction(claims=claims) as connection:
        work(connection)
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.execute("SELECT 1/0", claims=claims)
    assert db.execute("SELECT count(*) FROM wire").fetchone() == (1,)
    assert line.logins == 1


@pytest.mark.parametrize("claims", [None, CLAIMS])
def test_an_error_at_commit_keeps_its_sqlstate(line: Line, claims: dict[str, str] | None) -> None:
    """A deferred constraint fails the COMMIT: nothing stays, and the connection goes on."""
    db = line.open()
    duplicate = "INSERT INTO wire VALUES (0)"

    def in_a_block() -> None:
        with db.transaction(claims=claims) as connection:
            connection.execute(duplicate)
            assert connection.execute("SELECT count(*) FROM wire").fetchone() == (2,)

    for use in (
        lambda: db.execute(duplicate, claims=claims),
        lambda: db.run_transaction(lambda c: c.execute(duplicate), claims=claims),
        in_a_block,
    ):
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            use()
        assert caught.value.sqlstate == "23505"
        assert caught.value.diag.table_name == "wire"
        assert db.execute("SELECT count(*) FROM wire").fetchone() == (1,)
    assert line.logins == 1


@pytest.mark.parametrize("claims", [None, CLAIMS])
def test_a_serialization_failure_at_commit_is_told(
    line: Line, claims: dict[str, str] | None
) -> None:
    """Of two that each see the other on call and leave, the second fails at its COMMIT."""
    line.admin.execute(
        f"ALTER ROLE {line.login} SET default_transaction_isolation = 'serializable'"
    )
    first, second = line.open(), line.open()

    def leave(db: Database[TupleRow], name: str, then: Callable[[], None]) -> None:
        with db.transaction(claims=claims) as connection:
            count = connection.execute("SELECT count(*) FROM doctors WHERE on_call").fetchone()
            if count == (2,):
                connection.execute("UPDATE doctors SET on_call = false WHERE name = %s", [name])
            then()

    reached = []
    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        leave(second, "b", lambda: leave(first, "a", lambda: reached.append(1)))
    assert reached == [1]
    assert caught.value.sqlstate == "40001"
    assert not isinstance(caught.value, DatabaseUnavailableError)
    assert second.execute("SELECT count(*) FROM doctors WHERE on_call").fetchone() == (1,)
    assert line.logins == 2


def test_a_unit_of_work_is_rerun_after_a_serialization_failure_at_commit(line: Line) -> None:
    """The second run sees what the winner wrote, and leaves nobody without a doctor."""
    line.admin.execute(
        f"ALTER ROLE {line.login} SET default_transaction_isolation = 'serializable'"
    )
    first, second = line.open(), line.open()
    seen = []

    def leave(name: str, then: Callable[[], object]) -> Callable[[Any], None]:
        def work(connection: psycopg.Connection[TupleRow]) -> None:
            count = connection.execute("SELECT count(*) FROM doctors WHERE on_call").fetchone()
            seen.append(count)
            if count == (2,):
                connection.execute("UPDATE doctors SET on_call = false WHERE name = %s", [name])
                then()

        return work

    second.run_transaction(leave("b", lambda: first.run_transaction(leave("a", list))))
    assert seen == [(2,), (2,), (1,)]
    assert second.execute("SELECT count(*) FROM doctors WHERE on_call").fetchone() == (1,)


@pytest.mark.parametrize("line", ["direct"], indirect=True)
def test_the_line_is_verified(line: Line, postgres: Postgres) -> None:
    """The recorder's certificate is checked as a server's is: another CA is refused."""
    with pytest.raises(DatabaseUnavailableError, match="certificate verify failed"):
        line.open(sslrootcert=postgres.ca_file).execute("SELECT 1")
