"""The typed face of the layer, for mypy and pyright; never executed.

What a user's editor infers is a promise like any other: each line here is one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, assert_type
from uuid import UUID

import psycopg
from lambda_pg import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    ConnectFailedError,
    CredentialsError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
    SharedSlots,
    StatementRefusedError,
)
from lambda_pg.django import database
from lambda_pg.http_api import (
    Answer,
    Problem,
    Request,
    Rules,
    StatementFailedError,
    answer_to,
    change_once,
    etag,
    http_handler,
)
from lambda_pg.sqlalchemy import create_engine
from lambda_pg.text import Limits, Result, Statement, TooLargeError
from psycopg.rows import DictRow, TupleRow, class_row, dict_row
from psycopg.types.json import set_json_loads
from sqlalchemy import Engine


@dataclass
class User:
    """A row as an object."""

    name: str


# A database's type is the type of its rows.
assert_type(Database.from_env(), Database[TupleRow])
assert_type(Database.from_env(row_factory=dict_row), Database[DictRow])
assert_type(Database.from_env(row_factory=class_row(User)), Database[User])
assert_type(Database(Settings(host="db.internal")), Database[TupleRow])
assert_type(Database(Settings.from_env(), row_factory=class_row(User)), Database[User])
assert_type(Settings.from_env({"PGHOST": "db.internal"}, direct=True), Settings)
assert_type(database(direct=True), Database[TupleRow])


def register(connection: psycopg.Connection[Any]) -> None:
    """Register type adapters."""
    set_json_loads(str, connection)


assert_type(Database.from_env(configure=register), Database[TupleRow])
assert_type(Database(Settings(), slots=SharedSlots(2)), Database[TupleRow])
assert_type(Database(Settings(), row_factory=dict_row, configure=register), Database[DictRow])

tuples = Database.from_env()
users = Database(Settings.from_env(), row_factory=class_row(User))


def execute_returns_a_cursor_of_rows() -> None:
    """The cursor is psycopg's, its rows are the database's."""
    assert_type(tuples.execute("SELECT 1"), psycopg.Cursor[TupleRow])
    assert_type(users.execute("SELECT name FROM users", claims={"sub": "a"}), psycopg.Cursor[User])
    assert_type(users.execute("SELECT 'a' AS name", idempotent=True).fetchone(), User | None)
    assert_type(users.execute("SELECT %(n)s AS name", {"n": "a"}).fetchall(), list[User])
    for user in users.execute("SELECT %s AS name", ("a",)):
        assert_type(user, User)


def run_transaction_returns_what_its_work_returns() -> None:
    """Be it a function or a lambda, with claims or without."""

    def rename(connection: psycopg.Connection[User]) -> int:
        return connection.execute("UPDATE users SET name = 'b'").rowcount

    assert_type(users.run_transaction(rename), int)
    assert_type(users.run_transaction(rename, claims={"sub": "a"}), int)
    assert_type(users.run_transaction(rename, claims=MappingProxyType({"sub": "a"})), int)
    assert_type(
        users.run_transaction(
            rename,
            isolation_level=psycopg.IsolationLevel.SERIALIZABLE,
            read_only=False,
            deferrable=None,
        ),
        int,
    )
    assert_type(
        users.run_transaction(lambda connection: connection.execute("SELECT 1").fetchone()),
        User | None,
    )


def run_text_returns_a_result_for_each_statement() -> None:
    """Its values are text, whatever the rows of the database are."""
    limits = Limits(rows=100, bytes=1000)
    try:
        results = users.run_text([Statement("SELECT $1", ["a"])], limits=limits, idempotent=True)
    except TooLargeError as error:
        assert_type(error.committed, bool | None)
    else:
        assert_type(results, list[Result])
        assert_type(results[0].rows, list[tuple[str | None, ...]])


def blocks_hand_out_psycopg_s_connection() -> None:
    """With the rows of the database."""
    with users.connection() as connection:
        assert_type(connection, psycopg.Connection[User])
    with users.transaction(claims={"sub": "a"}) as connection:
        assert_type(connection, psycopg.Connection[User])
    with users.transaction(
        isolation_level=psycopg.IsolationLevel.SERIALIZABLE, read_only=True, deferrable=True
    ) as connection:
        assert_type(connection, psycopg.Connection[User])
    assert_type(users.getconn(), psycopg.Connection[User])
    users.putconn(users.getconn())
    assert_type(create_engine(users, echo=True), Engine)


def a_transaction_is_a_block() -> str:
    """What is returned from inside of it is known to be returned."""
    with tuples.transaction() as connection:
        return str(connection.execute("SELECT 1").fetchone())


def a_deadline_is_a_block() -> str:
    """What is returned from inside of it is known to be returned."""
    with tuples.deadline(1.5):
        return str(tuples.execute("SELECT 1").fetchone())


def the_rest_counts_and_closes() -> None:
    """In psycopg_pool's names."""
    assert_type(tuples.stats(), dict[str, int])
    assert_type(tuples.close(), None)
    assert_type(tuples.forget(), None)


@tuples.bind_lambda_context
def handler(event: dict[str, str], context: object, *, verbose: bool = False) -> list[str]:
    """Take what Lambda gives, and an argument of its own."""
    return [*event, str(context), str(verbose)]


def a_bound_handler_keeps_its_signature() -> None:
    """Its keyword arguments and what it returns are known to its callers."""
    assert_type(handler({"id": "1"}, None, verbose=True), list[str])
    assert_type(handler(event={"id": "1"}, context=None), list[str])


def errors_are_psycopg_s(error: Exception) -> float | tuple[str, ...] | None:
    """One `except` for all that is unavailable; the settings' error stands alone."""
    operational: tuple[type[psycopg.OperationalError], ...] = (
        DatabaseUnavailableError,
        CommitOutcomeUnknownError,
    )
    unavailable: tuple[type[DatabaseUnavailableError], ...] = (
        CheckoutTimeoutError,
        ConnectFailedError,
        CredentialsError,
        DeadlineExceededError,
    )
    if isinstance(error, (*operational, *unavailable)) and isinstance(
        error, DatabaseUnavailableError
    ):
        return assert_type(error.retry_after, float)
    if isinstance(error, CommitOutcomeUnknownError):
        assert_type(error.xid, str | None)
        assert_type(error.incarnation, str | None)
    if isinstance(error, StatementRefusedError):
        not_supported: psycopg.NotSupportedError = error
        raise not_supported
    if isinstance(error, ConfigurationError):
        return assert_type(error.problems, tuple[str, ...])
    return None


def a_request_has_typed_parts(event: dict[str, Any]) -> None:
    """Those of the event as they are, and those of headers and body as they are read."""
    request = Request.of(event, Rules(max_body=100, require_idempotency_key=True))
    assert_type(Rules.from_env({}), Rules)
    assert_type((request.id, request.api), tuple[str, str])
    assert_type(
        (request.method, request.path, request.route, request.query), tuple[str, str, str, str]
    )
    assert_type((request.parameters, request.headers), tuple[Mapping[str, str], Mapping[str, str]])
    assert_type((request.body, request.rules), tuple[bytes, Rules])
    assert_type((request.verified, request.claims), tuple[Mapping[str, Any] | None, dict[str, str]])
    assert_type((request.idempotency_key, request.require_key()), tuple[str | None, str | None])
    assert_type(request.expected_versions(), list[int] | None)
    assert_type((request.uuid("id"), request.has_version(1)), tuple[UUID, bool])
    fields: dict[str, str] = request.json()
    assert_type(fields, dict[str, str])


def an_answer_is_what_lambda_returns(request: Request) -> Answer:
    """So is the answer to an error."""
    answer = Answer(201, {"id": 1}, {"Location": "/notes/1"}, version=1)
    assert_type((answer.status, answer.version), tuple[int, int | None])
    assert_type((answer.headers, answer.content), tuple[Mapping[str, str], bytes])
    assert_type(answer.response(), dict[str, Any])
    assert_type(etag(1), str)
    if answer.body is None:
        return Answer.not_modified(1)
    return assert_type(answer_to(StatementFailedError(), request.id), Answer)


def a_problem_is_an_exception_and_an_answer(request: Request) -> Answer:
    """With a name that the package knows, or with a status and a title."""
    raised: Exception = Problem("not-found", "There is no such note.")
    errors = [{"field": "text", "detail": "must be a text"}]
    problem = Problem("late", "It is over.", status=410, title="Gone", headers={}, errors=errors)
    texts = (problem.name, problem.detail, problem.title)
    assert_type(texts, tuple[str, str, str])
    assert_type((problem.status, problem.headers), tuple[int, Mapping[str, str]])
    if problem.errors is not None:
        raise raised
    return assert_type(problem.answer(request.id), Answer)


def a_change_has_the_rows_of_its_database(request: Request) -> Answer:
    """It takes a connection, and returns an answer."""

    def rename(connection: psycopg.Connection[User]) -> Answer:
        user = connection.execute("UPDATE users SET name = 'b' RETURNING name").fetchone()
        return Answer(200, assert_type(user, User | None))

    assert_type(change_once(users, request, rename), Answer)
    return change_once(users, request, rename, claims={"sub": "a"})


Handler = Callable[[Mapping[str, Any], object], dict[str, Any]]

assert_type(http_handler(POST=an_answer_is_what_lambda_returns), Handler)
assert_type(http_handler({"GET /notes/{id}": an_answer_is_what_lambda_returns}), Handler)
assert_type(tuples.bind_lambda_context(http_handler())({}, None), dict[str, Any])
