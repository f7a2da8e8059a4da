"""Spans by OpenTelemetry's API: checkout, connect, statement. Imported only where that API is.

Names and attributes are those of OpenTelemetry's semantic conventions for PostgreSQL clients, which
are stable since version 1.33. No parameter of a statement and no text of an error is in a span:
both hold values of callers.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple

import psycopg
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import Row

from lambda_pg._connection import Connection
from lambda_pg._pipeline import Command, Request
from lambda_pg._profiles import Profile
from lambda_pg._settings import Settings
from lambda_pg._statements import is_short, lexemes

LONGEST_TEXT: Final = 8 * 1024
LONGEST_SUMMARY: Final = 255
"""The most characters of a statement's text, and of its summary, in a span."""

SYSTEM: Final = "postgresql"

Attributes = dict[str, str | int]

_tracer: Final = trace.get_tracer("lambda_pg", schema_url="https://opentelemetry.io/schemas/1.33.0")


class Tracing:
    """Make the spans of one Database."""

    connection: type[Connection[Any]]
    """The class of connections that make spans."""

    def __init__(self, settings: Settings) -> None:
        """Take the endpoint from the settings; the rest of it may be in the secret."""
        self._endpoint = _endpoint(settings.host, settings.port, settings.dbname)
        self.connection = TracedConnection

    def checkout(self) -> AbstractContextManager[Span]:
        """Span a checkout: the wait for a slot, the credentials, connects and pauses."""
        return _current("lambda_pg.checkout", SpanKind.INTERNAL, self._endpoint)

    def connect(self) -> AbstractContextManager[Span]:
        """Span a connect: TCP, TLS and the login."""
        return _current("lambda_pg.connect", SpanKind.CLIENT, self._endpoint)

    def event(self, name: str) -> None:
        """Add an event to the current span."""
        trace.get_current_span().add_event(f"lambda_pg.{name}")

    def around(
        self, execute: Callable[..., psycopg.Cursor[Row]]
    ) -> Callable[..., psycopg.Cursor[Row]]:
        """Span Database.execute for one statement, with its retries."""

        @functools.wraps(execute)
        def traced(query: Any, params: Any = None, **options: Any) -> psycopg.Cursor[Row]:
            with _statement(query, params, self._endpoint) as span:
                cursor = execute(query, params, **options)
                if isinstance(connection := cursor._conn, TracedConnection):
                    self._endpoint = connection.attributes
                span.set_attributes({**self._endpoint, **_operation(cursor)})
            return cursor

        return traced


class TracedConnection(Connection[Row]):
    """A connection whose cursors and commands make spans."""

    attributes: Attributes
    """The server's attributes in its spans."""

    def equip(self, profile: Profile, *, strict: bool) -> None:
        """Make a connection that was just opened one of the layer's."""
        super().equip(profile, strict=strict)
        info = self.info
        self.attributes = _endpoint(info.host, info.port, info.dbname)
        peer: Attributes = {"network.peer.address": info.hostaddr, "network.peer.port": info.port}
        trace.get_current_span().set_attributes({**self.attributes, **peer})

    def __setattr__(self, name: str, value: Any) -> None:
        """Make each class of cursors make spans, Django's too."""
        if name in {"cursor_factory", "server_cursor_factory"}:
            value = _traced(value)
        super().__setattr__(name, value)

    def send_batch(self, statements: Sequence[Command | Request]) -> list[PGresult]:
        """Run statements in one round trip; through PgBouncer the wait for a server is a span."""
        first = statements[0]
        if isinstance(first, Request):  # what travels with COMMIT
            with _command("COMMIT", self.attributes):
                return super().send_batch(statements)
        if self.profile.name != "pgbouncer" or not isinstance(first, Command):
            return super().send_batch(statements)
        with _command(first.text.decode(), self.attributes) as span:
            announced: Any = _Announced(first, span)
            return super().send_batch([announced, *statements[1:]])

    def _exec_command(
        self, command: Any, result_format: pq.Format = pq.Format.TEXT
    ) -> PQGen[PGresult | None]:
        """Span BEGIN, COMMIT and the like, also those that psycopg sends by itself."""
        with _command(self.text_of(command), self.attributes):
            return (yield from super()._exec_command(command, result_format))


class _Announced(NamedTuple):
    """A command whose answer is requested at once, before the rest of its batch.

    A pooler sends BEGIN on as soon as it has a server connection: what passes until the answer is
    the wait for one, and a round trip.
    """

    command: Command
    span: Span

    def send(self, pgconn: PGconn) -> None:
        """Hand it to libpq."""
        self.command.send(pgconn)
        pgconn.send_flush_request()

    def receive(self, pgconn: PGconn, results: list[PGresult]) -> None:
        """End the span, or raise the answer if it is an error."""
        self.command.receive(pgconn, results)
        self.span.end()


class _TracedCursor(psycopg.Cursor[Any]):
    """Added to a class of cursors, so that its statements make spans."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """Span one statement."""
        with _statement(query, params, self._attributes) as span:
            super().execute(query, params, **options)
            span.set_attributes(_operation(self))
        return self

    def executemany(self, query: Any, params_seq: Iterable[Any], **options: Any) -> None:
        """Span one statement with many parameters."""
        size = len(params_seq) if isinstance(params_seq, Sized) else None
        with _statement(query, params_seq, self._attributes, batch=size) as span:
            super().executemany(query, params_seq, **options)
            span.set_attributes(_operation(self, batch=size))

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """Span one statement until its last row is taken."""
        name, attributes = _described(query, params, self._attributes)
        with _open(name, attributes):
            yield from super().stream(query, params, **options)

    @contextmanager
    def copy(self, statement: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """Span a COPY until its block is left."""
        name, attributes = _described(statement, params, self._attributes)
        with _open(name, attributes), super().copy(statement, params, **options) as copy:
            yield copy

    @property
    def _attributes(self) -> Attributes:
        return self._conn.attributes if isinstance(self._conn, TracedConnection) else {}


@functools.cache
def _traced(kind: type[psycopg.Cursor[Any]]) -> type[psycopg.Cursor[Any]]:
    """Return a class of cursors that makes spans."""
    return (
        kind if issubclass(kind, _TracedCursor) else type(kind.__name__, (_TracedCursor, kind), {})
    )


def _endpoint(host: str | None, port: int | None, dbname: str | None) -> Attributes:
    known = {"server.address": host, "server.port": port, "db.namespace": dbname}
    return {"db.system.name": SYSTEM, **{name: value for name, value in known.items() if value}}


@contextmanager
def _current(name: str, kind: SpanKind, attributes: Attributes) -> Iterator[Span]:
    """Span a block; spans that begin in it are its children."""
    with (
        _tracer.start_as_current_span(
            name,
            kind=kind,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
        _failing(span),
    ):
        yield span


@contextmanager
def _open(name: str, attributes: Attributes) -> Iterator[Span]:
    """Span a block that may end in another context, as a generator's does."""
    span = _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
    try:
        with _failing(span):
            yield span
    finally:
        if span.is_recording():
            span.end()


@contextmanager
def _failing(span: Span) -> Iterator[None]:
    """Note a failure by SQLSTATE or class, without the error's text, which may hold values."""
    try:
        yield
    except BaseException as error:
        if span.is_recording():
            sqlstate = _sqlstate(error)
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", sqlstate or type(error).__qualname__)
            if sqlstate is not None:
                span.set_attribute("db.response.status_code", sqlstate)
        raise


def _sqlstate(error: BaseException | None) -> str | None:
    """Return the server's SQLSTATE, also of an error that the layer has raised from it."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate is not None:
            return error.sqlstate
        error = error.__cause__
    return None


def _command(text: str, attributes: Attributes) -> AbstractContextManager[Span]:
    operation = text.partition(" ")[0]
    return _open(operation, {**attributes, "db.operation.name": operation})


def _statement(
    query: Any, params: Any, attributes: Attributes, *, batch: int | None = None
) -> AbstractContextManager[Span]:
    name, described = _described(query, params, attributes, batch=batch)
    return _current(name, SpanKind.CLIENT, described)


def _described(
    query: Any, params: Any, attributes: Attributes, *, batch: int | None = None
) -> tuple[str, Attributes]:
    """Return the name of a statement's span, and its attributes."""
    text = _text(query)
    has_parameters = params is not None and isinstance(query, str | bytes)
    describe = _remembered if is_short(text) else _summary_and_text
    summary, shown = describe(text, has_parameters)
    described: Attributes = {**attributes, "db.query.text": shown}
    if batch is not None and batch != 1:
        summary = f"BATCH {summary}"
        described["db.operation.batch.size"] = batch
    if not summary:
        return SYSTEM, described
    return summary, {**described, "db.query.summary": summary}


def _text(query: Any) -> str:
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    try:
        return psycopg.sql.as_string(query)
    except Exception:  # noqa: BLE001 - the statement raises the error, or its connection has the adapters
        return ""


def _operation(cursor: psycopg.Cursor[Any], *, batch: int | None = None) -> Attributes:
    """Return the operation as the server names it, which the text of a statement may not show."""
    words = [word for word in (cursor.statusmessage or "").split() if not word.isdigit()]
    if not words:
        return {}
    prefix = ["BATCH"] if batch is not None and batch != 1 else []
    return {"db.operation.name": " ".join([*prefix, *words])}


def _summary_and_text(text: str, has_parameters: bool) -> tuple[str, str]:
    """Return a statement's summary and the text that may be shown.

    With parameters that is the whole text, by the conventions; else each literal becomes a question
    mark.
    """
    shown = text if has_parameters else _without_literals(text)
    return _summary(text), shown[:LONGEST_TEXT]


_remembered: Final = functools.lru_cache(maxsize=256)(_summary_and_text)


def _without_literals(text: str) -> str:
    shown = [""]
    for kind, piece in lexemes(text):
        if kind == "nothing":
            shown += [" "] if shown[-1] != " " else []
        else:
            is_literal = kind == "text" or (kind == "number" and piece[0] != "$")
            shown.append("?" if is_literal else piece)
    return "".join(shown).strip()


_OPERATIONS: Final = frozenset({"select", "insert", "update", "delete", "merge"})
_NO_OPERATION_AFTER: Final = frozenset({"for", "key", "on", "do", "then", "distinct"})
"""FOR UPDATE, FOR NO KEY UPDATE, ON DELETE, DO UPDATE, WHEN … THEN DELETE, IS DISTINCT FROM."""

_TARGET_FOLLOWS: Final = frozenset({"from", "join", "into", "update", "table", "copy", "call"})
_NO_TARGET: Final = frozenset({"select", "if", "set", "of", "stdin", "stdout"})


def _summary(text: str) -> str:
    """List a statement's operations and the tables after them, as they are written.

    This is not a parser: it misses tables after a comma.
    """
    found: list[str] = []
    pieces = [(kind, piece) for kind, piece in lexemes(text) if kind != "nothing"]
    queries, before = [True], ";"
    for place, (kind, piece) in enumerate(pieces):
        word = piece.lower() if kind == "word" else piece
        if word == "(":
            queries.append(False)  # as in extract(year FROM at), unless an operation follows
        elif word == ")":
            queries[1:] = queries[1:-1]
        elif kind == "word" and before not in _NO_OPERATION_AFTER:
            if word in _OPERATIONS or (before == ";" and word != "with"):
                queries[-1] = True
                found.append(piece)
            if word in _TARGET_FOLLOWS and queries[-1]:
                found += _target(pieces[place + 1 :])
        before = word
    return _shortened(" ".join(found))


def _shortened(summary: str) -> str:
    """Leave out the words that would make it too long."""
    if len(summary) <= LONGEST_SUMMARY:
        return summary
    return summary[: LONGEST_SUMMARY + 1].rpartition(" ")[0]


def _target(pieces: Sequence[tuple[str, str]]) -> list[str]:
    """Read a name, which may have dots, if there is one."""
    name = ""
    for kind, piece in pieces:
        is_part = kind in {"word", "quoted"} if not name or name[-1] == "." else piece == "."
        if not name and piece.lower() in {"only", "lateral"}:
            continue
        if not is_part or (not name and piece.lower() in _NO_TARGET):
            break
        name += piece
    return [name] if name else []


_remembered("", has_parameters=False)  # compiles the patterns at import, not in the first request
