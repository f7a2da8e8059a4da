"""Run foreign statements: BEGIN, the statements, COMMIT and a reset in one round trip.

A statement may leave state in its session: a setting, an advisory lock, a temporary table. Behind a
pooler the next client would get it, so the same write has a reset (docs/decisions/0048).
"""

import fcntl
import functools
import math
import os
import socket
import sys
import termios
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, starmap
from typing import Any, Final, NamedTuple, NoReturn

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq.abc import PGconn, PGresult
from psycopg.types.string import TextLoader
from psycopg.waiting import Ready, Wait

from lambda_pg._clock import monotonic
from lambda_pg._connection import CANCEL_TIMEOUT, COMMIT, SET_CLAIMS, Connection, Modes
from lambda_pg._outcome import TransactionId, asking, transaction_id
from lambda_pg._pipeline import PARTS, Command
from lambda_pg._profiles import Profile
from lambda_pg._retry import outcome_unknown
from lambda_pg._statements import (
    PINNING_SIZE,
    ends_transaction,
    first_words,
    is_short,
    refusal,
)
from lambda_pg.text import (
    FIELD_BYTES,
    VALUE_BYTES,
    CopyRefusedError,
    Field,
    Limits,
    Result,
    Statement,
    TooLargeError,
)

CHUNK: Final = 100
"""Rows in one piece; single rows take nearly twice the time (measured)."""

DRAIN_TIMEOUT: Final = 5.0
"""Seconds to wait for the answers to a cancelled flight, at most until the deadline."""

LATE_DRAIN_TIMEOUT: Final = 0.1
"""The same after the deadline; this time is part of the reserve."""

MOST_PARAMETERS: Final = 65535
"""PostgreSQL's limit of the parameters of one statement."""

SLACK: Final = 32 * 1024
"""Bytes on the wire that a piece may have beyond its values: messages and TLS records."""

ROW_BYTES: Final = 8
"""Bytes on the wire that a row has beyond its values."""

SENT_AT_ONCE: Final = 32 * 1024
"""Bytes of statements that are sent before their answers are read. So much fits into the buffers of
both ends (Linux: 16 KB to send, a first window of 64 KB). While libpq cannot send, each of its
calls reads what the server sends, past every limit."""

ROLLBACK: Final = Command(b"ROLLBACK")

READS: Final = frozenset({"select", "values", "table", "show", "explain", ""})
"""First words of statements that rarely write: their flights do not ask for a transaction's id. If
one that calls a writing function is lost, its outcome is reported as unknown without a look-up."""

PLAIN: Final = READS | {"insert", "update", "delete", "merge", "with"}
"""First words of statements that leave no state in their session, unless a function does."""

UNLOCK: Final = "pg_catalog.pg_advisory_unlock_all()"

KEPT_BY_ROLLBACK: Final = (
    Command(b"CLOSE ALL"),  # COMMIT would run the queries of cursors WITH HOLD
    Command(b"DEALLOCATE ALL"),
    Command(b"DISCARD SEQUENCES"),
)
"""Ends, besides the locks of UNLOCK, what a failed COMMIT does not undo: so it comes before."""

COMMIT_AND_RESET: Final = Command(b"COMMIT AND CHAIN")
ROLLBACK_AND_RESET: Final = Command(b"ROLLBACK AND CHAIN")
"""The next transaction begins at once, so that the reset is in one. Where it fails, the connection
is closed inside it, and a pooler then closes the server connection."""

NO_WAIT: Final = Command(b"SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
"""The reset after a SERIALIZABLE READ ONLY DEFERRABLE transaction would wait for others again."""

RESET: Final = (
    Command(b"RESET SESSION AUTHORIZATION"),  # and the role
    Command(b"RESET ALL"),
    Command(b"UNLISTEN *"),
    Command(b"DISCARD TEMP"),
)
"""Resets the state as COMMIT leaves it. Before COMMIT, RESET ALL would miss a value that
SET LOCAL … TO DEFAULT hides until then."""

UTF8: Final = Command(b"SET client_encoding TO 'UTF8'")

DISCARD: Final = (Command(b"DISCARD ALL"),)
"""Possible in a pipeline, as it is the first statement after COMMIT or ROLLBACK."""

ENDS: Final = frozenset({"COMMIT", "ROLLBACK", "PREPARE TRANSACTION"})
"""Command tags of statements that end a transaction."""

COPIES: Final = frozenset({pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH})
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC
_ERROR: Final = pq.ExecStatus.FATAL_ERROR
_WHOLE: Final = frozenset(
    map(int, (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY))
)
"""The status of an answer's last piece. An int is found faster than a member of an enumeration."""

_PARTS: Final = frozenset(map(int, PARTS))
"""The status of the pieces before it."""

FEW: Final = 64
"""Values whose bytes are counted one by one: to join them takes longer."""

_REMEMBERED_COLUMNS: Final = 32
"""Columns of the descriptions that are kept, so that 512 of them stay small."""

_TEXT: Final = 25
"""The OID of text."""

_BYTES_RECEIVED: Final = 128
"""Where Linux has the bytes that came over a connection in its struct tcp_info: eight bytes."""


class _Context(NamedTuple):
    """Where psycopg looks for the adapters of types; without a connection texts are UTF-8."""

    adapters: AdaptersMap
    connection: psycopg.Connection[Any] | None = None


_ADAPTERS: Final = AdaptersMap(types=psycopg.adapters.types)
_ADAPTERS.register_loader(_TEXT, TextLoader)


_Row = tuple[str | None, ...]
_Column = tuple[bytes | None, int, int, int, int, int]
"""The description of a column in libpq's values."""


_result_of: Final[Callable[[tuple[object, ...]], Result]] = functools.partial(tuple.__new__, Result)
"""Makes a result from its fields, rows and tag in a third of the time that its class takes."""


class _StoppedError(Exception):
    """Ends the wait for answers that the caller does not get."""


Prepared = tuple[bytes, list[bytes | None], int, str, str]
"""A statement as it is sent, with its parameters; the bytes of both; its first word, or "rollback
to"; its text. A tuple without names is made in a third of the time."""


class Order(NamedTuple):
    """What one call asks for."""

    begin: Command
    claims: str | None
    statements: Sequence[Prepared]
    limits: Limits
    asks: bool
    """Whether a lost COMMIT is looked up by the transaction's id."""
    idempotent: bool
    is_deferrable: bool

    def is_plain(self, profile: Profile) -> bool:
        """Tell whether its statements leave no state, as far as their texts show.

        A long one pins, and need not be looked at: calls that nest take a second in 25 KB.
        """
        return all(
            len(query) <= PINNING_SIZE and word in PLAIN and refusal(text, profile) is None
            for query, _, _, word, text in self.statements
        )

    def may_keep(self, profile: Profile) -> bool:
        """Tell whether its connection may be used again."""
        return profile.reset != "close" or self.is_plain(profile)


def order(
    statements: Iterable[Statement],
    limits: Limits,
    claims: str | None,
    modes: Modes,
    *,
    idempotent: bool,
) -> Order:
    """Check the statements and make them ready to be sent.

    Raises psycopg's errors for a COPY, for the end of the transaction, and for texts and
    parameters that cannot be sent.
    """
    ready = list(starmap(_ready, statements))
    may_write = not (idempotent or modes.read_only)
    return Order(
        _begin(modes),
        claims,
        ready,
        limits,
        may_write and not READS.issuperset([word for _, _, _, word, _ in ready]),
        idempotent,
        bool(modes.deferrable),
    )


def _ready(query: str, params: Sequence[str | None]) -> Prepared:
    if len(params) > MOST_PARAMETERS:
        raise psycopg.errors.TooManyArguments(
            f"the statement has {len(params)} parameters; must have at most {MOST_PARAMETERS}"
        )
    encoded, word = _known(query) if is_short(query) else _checked(query)
    size, values = len(encoded), []
    for each in params:
        value = None
        if each is not None:
            value = _encoded(each, "a parameter")
            size += len(value)
        values.append(value)
    return encoded, values, size, word, query


def _checked(query: str) -> tuple[bytes, str]:
    """Return a statement that may be sent, encoded, and its first word or words."""
    encoded, (word, *others) = _encoded(query, "the statement"), first_words(query) or [""]
    if word == "copy":
        raise CopyRefusedError("COPY is not supported: use INSERT or SELECT. Nothing was sent")
    if ends_transaction(query):
        raise psycopg.errors.InvalidTransactionTermination(
            "the statements run in one transaction, which none of them may end: remove COMMIT, "
            "ROLLBACK or PREPARE TRANSACTION"
        )
    is_savepoints = word == "rollback" and "to" in others
    return encoded, "rollback to" if is_savepoints else word


_known: Final = functools.lru_cache(maxsize=512)(_checked)
"""An ORM repeats its statements, and checking one takes longer than sending it."""


def _encoded(text: str, what: str) -> bytes:
    """Encode as UTF-8. Raises what PostgreSQL would, if the character could be sent."""
    if "\0" in text:
        raise psycopg.errors.CharacterNotInRepertoire(f"{what} contains a NUL character: remove it")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise psycopg.errors.CharacterNotInRepertoire(
            f"{what} contains a lone surrogate, which UTF-8 cannot represent: remove it"
        ) from None


@functools.cache
def _begin(modes: Modes) -> Command:
    words = ["BEGIN"]
    if modes.isolation_level is not None:
        words.append(f"ISOLATION LEVEL {modes.isolation_level.name.replace('_', ' ')}")
    if modes.read_only is not None:
        words.append("READ ONLY" if modes.read_only else "READ WRITE")
    if modes.deferrable is not None:
        words.append("DEFERRABLE" if modes.deferrable else "NOT DEFERRABLE")
    return Command(" ".join(words).encode())


@functools.cache
def _selecting(expression: str) -> Command:
    return Command(f"SELECT {expression}".encode())


class Flight:
    """One attempt of an order, over one connection."""

    _is_synced = False
    _is_cut = False
    """Whether libpq was asked for the rows of the next answer in pieces."""

    _failure: psycopg.Error | None = None
    _committed = False

    asked = False
    """Whether the answer about the transaction's id has come."""

    transaction_id: TransactionId | None = None
    """None for a transaction that has written nothing."""

    def __init__(self, connection: Connection[Any], order: Order) -> None:
        """Send nothing yet."""
        self._connection = connection
        self._libpq = connection.pgconn
        self._order = order
        self._received = _Received(order, connection)
        self._take_rows = self._received.take
        self._awaited: deque[Callable[[PGresult], None] | None] = deque()
        """The functions that take the answers that have not arrived completely; None for an answer
        that only must succeed."""

    @property
    def results(self) -> list[Result]:
        """The results of all statements, once it has run."""
        return self._received.results

    @property
    def is_undone(self) -> bool:
        """Whether the server has reported that it ended the connection before COMMIT.

        The answers come in order, so nothing was committed. A pooler's own error proves nothing;
        it does not name a function of PostgreSQL's source code.
        """
        error = self._failure
        return (
            error is not None
            and not self._committed
            and error.diag.severity_nonlocalized in {"FATAL", "PANIC"}
            and error.diag.source_function is not None
        )

    def run(self) -> None:
        """Run it. Raises psycopg.Error, after which `recover` must follow."""
        connection = self._connection
        left = None if connection.deadline == math.inf else connection._left()
        try:
            connection._await(self._fly(), left, asked=True)
        except _StoppedError:
            self._end_stopped()
        except psycopg.errors._WaitTimeout as timeout:
            self._end_overdue(timeout)
        except CopyRefusedError:
            connection.close()
            raise
        except psycopg.OperationalError as lost:
            if not self._committed:
                raise self._failure or lost from None
            connection.close()
        else:
            self._settle()
        self._received.require_own_end()

    def _settle(self) -> None:
        """Check the complete answers. Raises the error if nothing was committed."""
        self._libpq.exit_pipeline_mode()
        self._received.require_own_end()
        if not self._committed:
            raise self._failure or psycopg.errors.InFailedSqlTransaction(
                "an error inside the transaction was not reported: nothing was committed"
            )
        if self._failure is not None or not self._order.may_keep(self._connection.profile):
            self._connection.close()

    def recover(self) -> None:
        """After an error, roll back and reset in one flight; where that fails, close."""
        connection = self._connection
        if connection.lost or connection.closed:
            return
        is_idle = self._libpq.transaction_status == pq.TransactionStatus.IDLE
        commands: Sequence[Command] = ()
        match connection.profile.reset:
            case "flight" if not is_idle:
                commands = (
                    ROLLBACK_AND_RESET,
                    *self._reset_commands(),
                    _selecting(UNLOCK),
                    *KEPT_BY_ROLLBACK,
                    COMMIT,
                )
            case "discard":
                commands = DISCARD if is_idle else (ROLLBACK, *DISCARD)
            case "close" if not self._order.may_keep(self._connection.profile):
                connection.close()
        try:
            if commands:
                connection.send_batch(commands)
        except psycopg.Error:
            connection.close()

    def _end_stopped(self) -> None:
        """Cancel results over a limit. Raises TooLargeError, which has the outcome."""
        if self._cancel(min(DRAIN_TIMEOUT, self._connection.deadline - monotonic())):
            with suppress(psycopg.Error):  # what was cancelled
                self._settle()
            committed: bool | None = self._committed
        else:
            committed = True if self._committed else None
        raise self._received.refusal(committed)

    def _end_overdue(self, timeout: Exception) -> None:
        """Cancel what runs at the deadline. Raises, unless it was committed in time."""
        ended = self._cancel(LATE_DRAIN_TIMEOUT)
        self._connection.close()
        if self._committed and len(self.results) == len(self._order.statements):
            return
        if not self._order.idempotent and (self._committed or not ended):
            raise outcome_unknown(
                "the deadline passed before all answers arrived", self.transaction_id
            ) from timeout
        raise psycopg.errors.QueryCanceled(
            "canceling statement because the deadline of the invocation has passed"
        ) from timeout

    def _cancel(self, seconds: float) -> bool:
        """Cancel and wait for the answers. Return whether they are complete; if not, close."""
        connection = self._connection
        try:
            if connection.profile.cancel:
                connection.cancel_safe(timeout=CANCEL_TIMEOUT)
                self._received.drain()
                if not self._is_synced:
                    self._sync()
                connection._await(self._land(), seconds, asked=True)
                return True
        except (psycopg.Error, psycopg.errors._WaitTimeout, _StoppedError):
            pass
        connection.close()
        return False

    def _fly(self) -> PQGen[None]:
        """Send everything in one write, and take the answers.

        Statements over SENT_AT_ONCE wait for the answers to those before them.
        """
        pgconn, order, queued = self._libpq, self._order, 0
        send, awaits, take = pgconn.send_query_params, self._awaited.append, self._take_rows
        pgconn.enter_pipeline_mode()
        self._send([order.begin])
        if order.claims is not None:
            self._send([Command(SET_CLAIMS, [order.claims.encode()])])
        for query, params, size, _, _ in order.statements:
            if queued and queued + size > SENT_AT_ONCE:
                pgconn.send_flush_request()
                yield from self._land()
                queued = 0
            send(query, params)
            awaits(take)
            queued += size
        self._send_end(self._connection.profile.reset)
        self._sync()
        yield from self._land()

    def _sync(self) -> None:
        self._libpq.pipeline_sync()
        self._awaited.append(_end_of_flight)
        self._is_synced = True

    def _send_end(self, reset: str) -> None:
        """Send what follows the statements: the question for the id, COMMIT and the reset."""
        is_pooled = reset == "flight"
        if self._order.asks:
            question = asking(self._libpq.server_version)
            text = question.text + f", {UNLOCK}".encode() if is_pooled else question.text
            self._send([Command(text, binary=True)], self._take_id)
            self._send(KEPT_BY_ROLLBACK if is_pooled else ())
        elif is_pooled:
            self._send([_selecting(UNLOCK), *KEPT_BY_ROLLBACK])
        if self._order.asks:
            self._libpq.send_flush_request()  # the id must have come when COMMIT's answer is lost
        if is_pooled:
            self._send([COMMIT_AND_RESET], self._take_commit)
            self._send([*self._reset_commands(), COMMIT])
        else:
            self._send([COMMIT], self._take_commit)
            self._send(DISCARD if reset == "discard" else ())

    def _reset_commands(self) -> Sequence[Command]:
        """Return what resets the session, and then restores what this client asked for at login."""
        commands = (*RESET, self._connection.naming, UTF8)
        return (NO_WAIT, *commands) if self._order.is_deferrable else commands

    def _send(
        self, commands: Sequence[Command], take: Callable[[PGresult], None] | None = None
    ) -> None:
        send, awaits = self._libpq.send_query_params, self._awaited.append
        for text, params, is_binary in commands:
            send(text, params, None, None, is_binary)
            awaits(take)

    def _take_id(self, result: PGresult) -> None:
        self.transaction_id = transaction_id(result)
        self.asked = True

    def _take_commit(self, result: PGresult) -> None:
        self._committed = result.command_status == b"COMMIT"

    def _land(self) -> PQGen[None]:
        """Send the rest; take the answers that have not come yet, up to that of the Sync.

        Raises CopyRefusedError at the first sign of a COPY: libpq would repeat it for ever.
        """
        pgconn, awaited, take_rows = self._libpq, self._awaited, self._take_rows
        is_busy, get_result = pgconn.is_busy, pgconn.get_result
        yield from self._send_rest()
        while awaited:
            take = awaited[0]
            # libpq refuses that for a statement that it skips after an error.
            if take is take_rows and not (self._is_cut or self._failure):
                self._is_cut = True
                _cut(pgconn)
            if is_busy():
                yield from self._wait_for_answer()
            result = get_result()
            if result is None:
                awaited.popleft()
                self._is_cut = False
            elif (status := result.status) in _WHOLE:
                if take is not None:
                    take(result)
                get_result()  # the mark of an answer's end, for which libpq reads nothing
                awaited.popleft()
                self._is_cut = False
            elif status in _PARTS:
                self._received.take_part(result)
            elif status == _SYNC:
                return
            else:
                self._take_other(result)

    def _send_rest(self) -> PQGen[None]:
        """Send it, and read what comes meanwhile: while a server writes, it does not read."""
        pgconn = self._libpq
        while pgconn.flush():
            if (yield Wait.RW) & Ready.R:
                pgconn.consume_input()
                self._received.watch()

    def _wait_for_answer(self) -> PQGen[None]:
        pgconn = self._libpq
        while True:
            if not (yield Wait.R):
                continue
            pgconn.consume_input()
            if not pgconn.is_busy():
                break
            self._received.watch()
        while pgconn.notifies():
            pass  # its listener is another flight's

    def _take_other(self, result: PGresult) -> None:
        """Keep the first error: the later ones follow from it. Raises CopyRefusedError."""
        if result.status in COPIES:
            raise CopyRefusedError("COPY is not supported: use INSERT or SELECT")
        if result.status != _ERROR:
            return  # it was skipped after an error
        if self._failure is None:
            self._failure = psycopg.errors.error_from_result(result, encoding="utf-8")
        if self._awaited[0] is _end_of_flight:  # PgBouncer says so, after the server's own FATAL
            raise psycopg.OperationalError("the server connection was lost")


def _end_of_flight(_: PGresult) -> None:
    """Stand for the Sync among what is awaited."""


class _Received:
    """The results of one flight, within its limits."""

    _has_ended = False
    """Whether a statement has ended the transaction."""

    _tag = b""
    _refusal: Callable[[bool | None], psycopg.Error] | None = None

    _unread: int | None = None
    """What came over the connection, in bytes, before the piece that is awaited."""

    def __init__(self, order: Order, connection: Connection[Any]) -> None:
        """Have none."""
        self.results: list[Result] = []
        self._limits = order.limits
        self._rows_left, self._bytes_left = order.limits
        self._statements = iter(order.statements)
        self._libpq = connection.pgconn
        self._reader = _reader_of(connection)
        self._rows: list[_Row] = []

    def drain(self) -> None:
        """Take no more results, only their ends."""
        self._refusal = self._refusal or self._too_large("cancelled")
        self._rows, self._unread, self._bytes_left = [], None, self._limits.bytes

    def require_own_end(self) -> None:
        """Raise if a statement has ended the transaction: COMMIT AND CHAIN has then failed."""
        if self._has_ended:
            raise psycopg.errors.InvalidTransactionTermination(
                "a statement has ended the transaction: the statements before it may be committed"
            )

    def refusal(self, committed: bool | None) -> psycopg.Error:
        """Return why the caller does not get the results."""
        return (self._refusal or self._too_large("no end"))(committed)

    def take_part(self, result: PGresult) -> None:
        """Take some rows."""
        self._unread = None
        self._tag = result.command_status or self._tag  # libpq 18 puts it on the last piece
        if self._refusal is None:
            self._take_rows(result, result.ntuples)

    def take(self, result: PGresult) -> None:
        """Take the end of an answer."""
        self._unread = None
        tag, self._tag = (result.command_status or self._tag).decode(), b""
        _, _, _, word, _ = next(self._statements)
        if tag in ENDS and word != "rollback to":
            self._has_ended = True
        if self._refusal is not None:
            return
        if count := result.ntuples:  # it did not come in parts
            self._take_rows(result, count)
        fields, size = self._reader.describe(result)
        self._count(size)
        self.results.append(_result_of((fields, self._rows, tag)))
        self._rows = []

    def _take_rows(self, result: PGresult, count: int) -> None:
        width = result.nfields
        self._rows_left -= count
        if self._rows_left < 0:
            self._refuse(self._too_large(f"more than {self._limits.rows} rows"))
        try:
            rows = self._reader.read(result, count, width)
        except UnicodeDecodeError:
            self._refuse(_not_utf8)
        values = count * width
        self._count((_few if values <= FEW else _many)(rows) + VALUE_BYTES * values)
        self._rows += rows

    def _count(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            self._refuse(self._too_large(f"more than {self._limits.bytes} bytes"))

    def watch(self) -> None:
        """Refuse a piece that is too large before all of it has come: libpq keeps it in memory."""
        received = _received(self._libpq.socket)
        most = self._bytes_left + self._bytes_left // 64 + SLACK + ROW_BYTES * self._rows_left
        if self._unread is None:
            self._unread = received
        elif received - self._unread > most:
            self._refuse(self._too_large(f"more than {self._limits.bytes} bytes"))

    def _refuse(self, refusal: Callable[[bool | None], psycopg.Error]) -> NoReturn:
        self._refusal = self._refusal or refusal
        raise _StoppedError

    def _too_large(self, what: str) -> Callable[[bool | None], psycopg.Error]:
        return lambda committed: TooLargeError(
            f"the results have {what}, the limit; the statements were {_OUTCOME[committed]}",
            committed=committed,
        )


_OUTCOME: Final = {
    True: "committed",
    False: "rolled back",
    None: "interrupted, and may be committed",
}


def _not_utf8(committed: bool | None) -> psycopg.Error:
    return psycopg.errors.CharacterNotInRepertoire(
        "a value is not in UTF-8: do not change client_encoding; the statements were "
        f"{_OUTCOME[committed]}"
    )


def _few(rows: Sequence[_Row]) -> int:
    """Return the bytes of a few values."""
    size = 0
    for row in rows:
        for value in row:
            if value:
                size += len(value) if value.isascii() else len(value.encode())
    return size


def _many(rows: Sequence[_Row]) -> int:
    """Return the bytes of many values."""
    return len("".join(filter(None, chain.from_iterable(rows))).encode())


class Reader:
    """Reads rows as text: psycopg's loaders, set up once for each connection."""

    def __init__(self) -> None:
        """Have no columns yet."""
        self._transformer = Transformer(_Context(_ADAPTERS))
        self._width = 0
        self._columns: list[_Column] = []
        self._described = _fields(())

    def describe(self, result: PGresult) -> tuple[tuple[Field, ...], int]:
        """Return the descriptions of the columns, and the bytes that they count."""
        columns = [
            (
                result.fname(at),
                result.ftype(at),
                result.ftable(at),
                result.ftablecol(at),
                result.fsize(at),
                result.fmod(at),
            )
            for at in range(result.nfields)
        ]
        if columns == self._columns:  # most statements repeat
            return self._described
        if len(columns) > _REMEMBERED_COLUMNS:
            return _fields(columns)
        self._columns, self._described = columns, _known_fields(tuple(columns))
        return self._described

    def read(self, result: PGresult, count: int, width: int) -> list[_Row]:
        """Return the rows. Raises UnicodeDecodeError."""
        transformer = self._transformer
        transformer.set_pgresult(result, set_loaders=False)
        if width != self._width:
            transformer.set_loader_types([_TEXT] * width, pq.Format.TEXT)
            self._width = width
        rows = transformer.load_rows(0, count, tuple)
        transformer.set_pgresult(None, set_loaders=False)  # it would keep the answer in memory
        return rows


def _reader_of(connection: Connection[Any]) -> Reader:
    reader: Reader | None = connection.reader
    if reader is None:
        reader = connection.reader = Reader()
    return reader


def _fields(columns: Sequence[_Column]) -> tuple[tuple[Field, ...], int]:
    fields = tuple(
        Field((name or b"").decode(errors="replace"), *numbers) for name, *numbers in columns
    )
    return fields, sum(FIELD_BYTES + len(each.name) for each in fields)


_known_fields: Final = functools.lru_cache(maxsize=512)(_fields)
"""Descriptions repeat, and are compared in full: making the values takes longer."""


def _cut(pgconn: PGconn) -> None:
    """Ask libpq for the rows of the next answer in pieces; before libpq 17 for one at a time."""
    if _HAS_CHUNKS:
        pgconn.set_chunked_rows_mode(CHUNK)
    else:
        pgconn.set_single_row_mode()


_HAS_CHUNKS: Final = min(pq.version(), pq.__build_version__) >= 170000


def _received(descriptor: int) -> int:
    """Return how many bytes libpq has read from a socket; 0 if the system does not count them."""
    if sys.platform != "linux":
        return 0
    with socket.socket(fileno=os.dup(descriptor)) as twin:
        if twin.family == socket.AF_UNIX:
            return 0
        information = twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    waiting = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    return int.from_bytes(information[_BYTES_RECEIVED:], sys.byteorder) - int.from_bytes(
        waiting, sys.byteorder
    )
