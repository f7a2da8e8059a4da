"""What an application of SQLAlchemy keeps over its invocations: sessions, connections, engines."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import sqlalchemy
from lambda_pg import Database, DatabaseUnavailableError, Settings
from lambda_pg.sqlalchemy import create_engine, database
from psycopg.rows import TupleRow
from sqlalchemy import Engine, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from tests.support.context import Context
from tests.support.layer import Admin

INSERT = text("INSERT INTO counter VALUES (1)")
COUNT = text("SELECT count(*) FROM counter")

Invoke = Callable[[Callable[[], Any]], Any]


class Base(DeclarativeBase):
    """The tables of this module."""


class Counter(Base):
    """A row of the test's table."""

    __tablename__ = "counter"

    n: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def engine(db: Database[TupleRow]) -> Engine:
    """An engine over the layer."""
    return create_engine(db)


@pytest.fixture
def session(engine: Engine) -> scoped_session[Session]:
    """The session of an application's module, which nobody removes."""
    return scoped_session(sessionmaker(engine))


@pytest.fixture
def invoke(db: Database[TupleRow]) -> Invoke:
    """Run something as an invocation of a handler that is bound to Lambda's context."""

    def run(work: Callable[[], Any]) -> Any:
        return db.bind_lambda_context(lambda _event, _context: work())({}, Context(10))

    return run


def rows(admin: Admin) -> object:
    """Count what is committed."""
    row = admin.execute("SELECT count(*) FROM counter").fetchone()
    return row[0] if row else None


def test_a_session_of_the_module_serves_every_invocation(
    db: Database[TupleRow], session: scoped_session[Session], invoke: Invoke
) -> None:
    """As with SQLAlchemy's own engine; the layer reports that it was left open."""
    assert [invoke(lambda: session.scalar(COUNT)) for _ in range(4)] == [0] * 4
    assert db.stats()["leaks"] == 4


def test_a_session_that_commits_serves_every_invocation(
    session: scoped_session[Session], invoke: Invoke, admin: Admin
) -> None:
    """What it commits is there, and what it reads afterwards hinders nobody."""

    def handler(n: int) -> Any:
        session.add(Counter(n=n))
        session.commit()
        return session.scalar(COUNT)

    assert [invoke(partial(handler, n)) for n in range(4)] == [1, 2, 3, 4]
    assert rows(admin) == 4


def test_objects_that_a_session_keeps_are_read_again(
    session: scoped_session[Session], invoke: Invoke, admin: Admin
) -> None:
    """An object of the module stays the session's own; its values are those of the database."""
    admin.execute("INSERT INTO counter VALUES (1)")
    kept = invoke(lambda: session.get(Counter, 1))
    assert invoke(lambda: kept.n) == 1
    assert invoke(lambda: session.get(Counter, 1)) is kept


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda session: session.execute(INSERT), id="statement"),
        pytest.param(lambda session: (session.add(Counter(n=1)), session.flush()), id="flush"),
        pytest.param(lambda session: (session.scalar(COUNT), session.add(Counter(n=1))), id="add"),
    ],
)
def test_uncommitted_work_is_missed_once(
    session: scoped_session[Session],
    invoke: Invoke,
    admin: Admin,
    leave: Callable[[scoped_session[Session]], object],
) -> None:
    """It is rolled back, and one request hears of it: a commit() would claim what is not there."""
    invoke(lambda: leave(session))
    with pytest.raises(sqlalchemy.exc.OperationalError, match="its invocation has ended") as missed:
        invoke(session.commit)
    assert isinstance(missed.value.orig, DatabaseUnavailableError)
    assert [invoke(lambda: session.scalar(COUNT)) for _ in range(3)] == [0] * 3
    assert rows(admin) == 0


@pytest.mark.parametrize("end", ["commit", "flush", "rollback", "close", "remove"])
def test_what_ends_a_session_with_uncommitted_work(
    session: scoped_session[Session], invoke: Invoke, admin: Admin, end: str
) -> None:
    """commit() is refused; what rolls back or closes succeeds, and nobody needs to hear more."""

    def left() -> None:
        session.execute(INSERT)

    invoke(left)
    if end == "commit":
        with pytest.raises(sqlalchemy.exc.OperationalError, match="its invocation has ended"):
            invoke(session.commit)
    elif end != "flush":  # there is nothing to flush
        invoke(getattr(session, end))
        assert invoke(lambda: session.scalar(COUNT)) == 0
        return
    else:
        invoke(session.flush)
        with pytest.raises(sqlalchemy.exc.OperationalError, match="its invocation has ended"):
            invoke(lambda: session.scalar(COUNT))
    assert [invoke(lambda: session.scalar(COUNT)) for _ in range(2)] == [0, 0]
    assert rows(admin) == 0


def test_a_handler_that_raises_has_told_it_itself(
    session: scoped_session[Session], invoke: Invoke, admin: Admin
) -> None:
    """Its request has failed: the next one's need not."""

    def fails() -> None:
        session.execute(INSERT)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        invoke(fails)
    assert invoke(lambda: session.scalar(COUNT)) == 0
    assert rows(admin) == 0


def test_a_failed_transaction_has_told_it_itself(
    session: scoped_session[Session], invoke: Invoke
) -> None:
    """The error of its statement said that nothing of it stays."""

    def fails() -> None:
        session.execute(INSERT)
        with pytest.raises(sqlalchemy.exc.ProgrammingError):
            session.execute(text("SELECT nothing FROM nowhere"))

    invoke(fails)
    assert invoke(lambda: session.scalar(COUNT)) == 0


def test_a_connection_of_the_module_serves_every_invocation(
    engine: Engine, invoke: Invoke, admin: Admin
) -> None:
    """So does one without a session, also one that an invocation has only opened."""
    connection = invoke(engine.connect)
    assert [invoke(lambda: connection.scalar(COUNT)) for _ in range(3)] == [0] * 3
    invoke(lambda: connection.execute(INSERT))
    with pytest.raises(sqlalchemy.exc.OperationalError, match="its invocation has ended"):
        invoke(lambda: connection.scalar(COUNT))
    assert [invoke(lambda: connection.scalar(COUNT)) for _ in range(3)] == [0] * 3
    connection.close()
    assert rows(admin) == 0


def test_a_session_over_a_connection_of_the_module(engine: Engine, invoke: Invoke) -> None:
    """Both of them forget their transaction."""
    connection = invoke(engine.connect)
    session = scoped_session(sessionmaker(connection))
    assert [invoke(lambda: session.scalar(COUNT)) for _ in range(3)] == [0] * 3


def test_autocommit_is_kept(engine: Engine, invoke: Invoke, admin: Admin) -> None:
    """What ran in autocommit is committed: nobody has to hear of anything."""
    session = scoped_session(sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT")))
    for _ in range(3):
        invoke(lambda: session.execute(INSERT))
    assert rows(admin) == 3


def test_a_generator_of_a_session_does_not_commit_half(
    engine: Engine, invoke: Invoke, admin: Admin
) -> None:
    """It goes on in another invocation, without its first half: that is no commit."""

    def work() -> Iterator[None]:
        with Session(engine) as session, session.begin():
            session.add(Counter(n=1))
            session.flush()
            yield
            session.add(Counter(n=2))

    working = work()
    invoke(lambda: next(working))
    with pytest.raises(sqlalchemy.exc.OperationalError, match="its invocation has ended"):
        invoke(lambda: next(working))
    assert rows(admin) == 0


def test_a_session_of_another_thread_is_not_touched(
    session: scoped_session[Session], invoke: Invoke
) -> None:
    """Its thread may be using it: it hears of the end by an error, and rolls back."""
    with ThreadPoolExecutor(1) as threads:

        def elsewhere(work: Callable[[], Any]) -> Any:
            return invoke(lambda: threads.submit(work).result())

        assert elsewhere(lambda: session.scalar(COUNT)) == 0
        with pytest.raises(sqlalchemy.exc.OperationalError, match="its invocation has ended"):
            elsewhere(lambda: session.scalar(COUNT))
        elsewhere(session.rollback)
        assert elsewhere(lambda: session.scalar(COUNT)) == 0


@pytest.fixture
def by_url(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database[TupleRow]]:
    """The environment of a function; what an engine by URL connects with."""
    login = f"{settings.user}:{settings.password}@127.0.0.1:{settings.port}"
    monkeypatch.setenv("DATABASE_URL", f"postgresql://{login}/postgres")
    monkeypatch.setenv("PGSSLROOTCERT", str(settings.sslrootcert))
    yield database()
    database().close()


def test_an_engine_by_url_is_the_environments(by_url: Database[TupleRow]) -> None:
    """For what takes a URL and nothing else; there is one pool for all of them."""
    for _ in range(2):
        engine = sqlalchemy.create_engine("postgresql+lambda_pg://")
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT current_user")) == "layer_test"
    assert by_url.stats()["connections_num"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+lambda_pg://host/",
        "postgresql+lambda_pg://app:canary@/",
        "postgresql+lambda_pg:///name",
        "postgresql+lambda_pg://?sslmode=disable",
    ],
)
def test_a_url_that_says_more_is_refused(by_url: Database[TupleRow], url: str) -> None:
    """Endpoint and login are the environment's: the error says so, and shows no password."""
    with pytest.raises(sqlalchemy.exc.ArgumentError, match="DATABASE_URL") as refused:
        sqlalchemy.create_engine(url)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("name", ["QueuePool", "StaticPool", "SingletonThreadPool"])
def test_a_second_pool_is_refused(by_url: Database[TupleRow], name: str) -> None:
    """It would keep the layer's connections over their invocations."""
    pool = getattr(sqlalchemy.pool, name)
    with pytest.raises(sqlalchemy.exc.ArgumentError, match="NullPool"):
        sqlalchemy.create_engine("postgresql+lambda_pg://", poolclass=pool)


def test_other_settings_are_another_database(
    by_url: Database[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a test that changes the environment."""
    assert database() is by_url
    monkeypatch.setenv("LAMBDA_PG_SLOTS", "2")
    assert database() is not by_url
