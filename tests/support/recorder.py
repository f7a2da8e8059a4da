"""The wire recorder: it stands before a server, reads the protocol, and judges what crosses.

It decides by its own rules, from the messages alone: it shares nothing with the layer's, so
that each checks the other.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from psycopg.conninfo import conninfo_to_dict

from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.postgres import Postgres

Sender = Literal["client", "server"]
Profile = Literal["rds-proxy", "pgbouncer"]

CANCEL, TLS, GSS = 80877102, 80877103, 80877104
"""Codes that a client sends instead of the protocol's version."""

REQUESTS: Final = {
    b"Q": "Query",
    b"P": "Parse",
    b"B": "Bind",
    b"E": "Execute",
    b"D": "Describe",
    b"C": "Close",
    b"S": "Sync",
    b"H": "Flush",
    b"F": "FunctionCall",
    b"d": "CopyData",
    b"c": "CopyDone",
    b"f": "CopyFail",
}
"""What a client waits for an answer to, once it is logged in."""
FAREWELLS: Final = {b"p": "Authentication", b"X": "Terminate"}
ANSWERS: Final = {
    b"1": "ParseComplete",
    b"2": "BindComplete",
    b"3": "CloseComplete",
    b"A": "Notification",
    b"C": "CommandComplete",
    b"D": "DataRow",
    b"E": "Error",
    b"G": "CopyIn",
    b"H": "CopyOut",
    b"N": "Notice",
    b"R": "Authentication",
    b"S": "ParameterStatus",
    b"T": "RowDescription",
    b"Z": "ReadyForQuery",
    b"c": "CopyDone",
    b"d": "CopyData",
    b"n": "NoData",
}


@dataclass(frozen=True)
class Message:
    """One message of the protocol; `connection` counts the clients from 1."""

    connection: int
    sender: Sender
    kind: str
    body: bytes

    @property
    def query(self) -> str:
        """The SQL of a Query or a Parse, else nothing."""
        fields = self.body.split(b"\0")
        index = {"Query": 0, "Parse": 1}.get(self.kind)
        return "" if index is None else fields[index].decode()

    @property
    def name(self) -> str:
        """The name of the statement or portal that a message makes or ends: nearly always ''."""
        start = {"Parse": 0, "Bind": 0, "Close": 1}.get(self.kind)
        return "" if start is None else self.body[start:].split(b"\0")[0].decode()


@dataclass(frozen=True)
class Violation:
    """A message that the profile's endpoint does not bear, and the rule that says so."""

    rule: str
    message: Message

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.rule}: {self.message.kind} {self.message.query[:100]!r}"


class Recorder:
    """Listen on 127.0.0.1 and pass everything on to one server, in a separate thread.

    Large because it keeps the state of both sides of a connection.
    """

    _loop: asyncio.AbstractEventLoop
    _thread: threading.Thread
    _listener: asyncio.Server

    def __init__(
        self,
        server: Path | tuple[str, int],
        folder: Path,
        *,
        server_ca: Path | None = None,
    ) -> None:
        """Take the server's socket, reached as it is, or its address, reached by verified TLS.

        A new certificate for 127.0.0.1 is put into `folder`, with the `ca_file` to trust.
        """
        self.ca_file = folder / "recorder-ca.pem"
        self.port = 0
        self._server = server
        self._server_ca = server_ca
        self._certificate = folder / "recorder.pem"
        self._messages: list[Message] = []
        self._triggers: list[_Trigger] = []
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []

    def __enter__(self) -> Self:
        """Open the recorder at a free port."""
        self._issue_certificate()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recorder")
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection, and close the recorder; raises what went wrong in it."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._errors:
            raise self._errors[0]

    # What crossed

    @property
    def messages(self) -> tuple[Message, ...]:
        """What has crossed since the beginning or the last clear(), in its order."""
        return tuple(self._messages)

    @property
    def queries(self) -> list[str]:
        """The SQL that clients have sent."""
        return [message.query for message in self.messages if message.query]

    def clear(self) -> None:
        """Forget what has crossed."""
        self._messages.clear()

    def round_trips(self) -> int:
        """Count how often a client has asked and then waited for an answer; logins do not count."""
        asked: set[int] = set()
        count = 0
        for message in self.messages:
            if message.sender == "client" and message.kind in REQUESTS.values():
                asked.add(message.connection)
            elif message.sender == "server" and message.connection in asked:
                asked.discard(message.connection)
                count += 1
        return count

    def violations(self, profile: Profile) -> list[Violation]:
        """List what pins a server connection of RDS Proxy, or what PgBouncer lets leak."""
        return [
            Violation(rule, message)
            for message in self.messages
            if message.sender == "client"
            for rule in broken_rules(message)
            if profile == "rds-proxy" or rule in LEAKS
        ]

    # What happens at a message

    @contextmanager
    def at(
        self, text: str, action: Callable[[], object], *, deliver: bool = True
    ) -> Iterator[None]:
        """Do something once, before the first statement that holds a text is passed on.

        `deliver=False` keeps the statement back and closes both connections after the action.
        """
        trigger = _Trigger(text, action, deliver)
        self._triggers.append(trigger)
        try:
            yield
        finally:
            with suppress(ValueError):  # it has happened
                self._triggers.remove(trigger)

    def _record(self, message: Message) -> bool:
        """Keep a message and do what was asked for at it; tell whether it is passed on."""
        self._messages.append(message)
        for trigger in tuple(self._triggers):
            if trigger.text in message.query:
                self._triggers.remove(trigger)
                trigger.action()
                return trigger.deliver
        return True

    # Connections

    def _issue_certificate(self) -> None:
        authority = Authority.create("wire recorder")
        certificate = authority.issue(["127.0.0.1", "localhost"])
        self.ca_file.write_text(authority.pem)
        self._certificate.touch(mode=0o600)
        self._certificate.write_text(certificate.private_key + certificate.chain)

    async def _open(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # sockets are closed in the loop's next round

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(_Stream(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: _Stream) -> None:
        server = None
        try:
            number, greeting = next(self._numbers), await self._greeted(client)
            server = await self._connected()
            await self._converse(number, greeting, client, server)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # a side has gone, or the recorder closes: the end of the connections tells it
        except Exception as error:  # noqa: BLE001 - __exit__ raises it
            self._errors.append(error)
        finally:
            await _part(client, *([] if server is None else [server]))

    async def _greeted(self, client: _Stream) -> bytes:
        """Return the startup packet, after TLS where the client asks for it."""
        while True:
            packet = await client.read_startup()
            code = int.from_bytes(packet[4:8], "big")
            if code == TLS:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self._certificate)
                await client.answer_tls(context)
            elif code == GSS:
                await client.write(b"N")
            else:
                return packet

    async def _connected(self) -> _Stream:
        if isinstance(self._server, Path):
            return _Stream(*await asyncio.open_unix_connection(str(self._server)))
        server = _Stream(*await asyncio.open_connection(*self._server))
        context = ssl.create_default_context(cafile=self._server_ca)
        try:
            await server.ask_for_tls(context, self._server[0])
        except BaseException:  # also when the recorder closes
            await _part(server)
            raise
        return server

    async def _converse(
        self, number: int, greeting: bytes, client: _Stream, server: _Stream
    ) -> None:
        cancel = int.from_bytes(greeting[4:8], "big") == CANCEL
        self._record(
            Message(number, "client", "CancelRequest" if cancel else "Startup", greeting[4:])
        )
        await server.write(greeting)
        if cancel:
            await server.read_to_end()
            return
        ways = [
            asyncio.create_task(self._pump(number, "client", client, server)),
            asyncio.create_task(self._pump(number, "server", server, client)),
        ]
        try:
            ended, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        for way in ended:
            way.result()

    async def _pump(self, number: int, sender: Sender, source: _Stream, sink: _Stream) -> None:
        kinds = REQUESTS | FAREWELLS if sender == "client" else ANSWERS
        while True:
            code, body = await source.read_message()
            kind = kinds.get(code, code.decode("ascii", "replace"))
            if not self._record(Message(number, sender, kind, body)):
                return
            await sink.write(code + struct.pack("!i", len(body) + 4) + body)


@dataclass(frozen=True, eq=False)
class _Trigger:
    text: str
    action: Callable[[], object]
    deliver: bool


class _Stream:
    """One side of a connection, in the protocol's units."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._socket = writer.transport  # below TLS, which is put on top later

    async def read_startup(self) -> bytes:
        """Read a packet that has no type."""
        head = await self._reader.readexactly(4)
        return head + await self._reader.readexactly(int.from_bytes(head, "big") - 4)

    async def read_message(self) -> tuple[bytes, bytes]:
        """Read a message; return its type and what follows the length."""
        head = await self._reader.readexactly(5)
        return head[:1], await self._reader.readexactly(int.from_bytes(head[1:], "big") - 4)

    async def read_to_end(self) -> None:
        """Wait until the other side closes."""
        await self._reader.read()

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer_tls(self, context: ssl.SSLContext) -> None:
        """Accept a client's request for TLS."""
        await self.write(b"S")
        await self._writer.start_tls(context)

    async def ask_for_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Ask a server for TLS, and verify it."""
        await self.write(struct.pack("!ii", 8, TLS))
        if await self._reader.readexactly(1) != b"S":
            raise ConnectionError("the server refuses TLS")
        await self._writer.start_tls(context, server_hostname=name)

    async def close(self) -> None:
        """Say goodbye after what was written, and wait for the other side's."""
        self._writer.close()
        await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once.

        Not by the transport of TLS: in CPython 3.11.2 its abort() raises after a second close().
        """
        self._socket.abort()


async def _part(*streams: _Stream) -> None:
    """Close streams without waiting for long: a side may have stalled."""
    try:
        async with asyncio.timeout(0.1):
            await asyncio.gather(*(each.close() for each in streams), return_exceptions=True)
    except TimeoutError:
        pass
    finally:
        for each in streams:
            each.abort()


# What a pooler does not bear

PINNING_BYTES: Final = 16 * 1024

_TEXTS: Final = re.compile(
    r"""
      --[^\n]*
    | /\* (?: [^*/] | \*(?!/) | /(?!\*) | /\*.*?\*/ )* \*/
    | [eE]'(?: [^'\\] | \\. | '' )*'
    | '(?: [^'] | '' )*'
    | \$(?P<tag>\w*)\$ .*? \$(?P=tag)\$
    """,
    re.VERBOSE | re.DOTALL,
)

_SQL_RULES: Final = {
    "SET": re.compile(r"^SET (?!LOCAL |TRANSACTION |CONSTRAINTS )|^RESET "),
    "set_config for the session": re.compile(r"\bSET_CONFIG ?\((?!.*, ?TRUE ?\))"),
    "SQL PREPARE": re.compile(r"^PREPARE (?!TRANSACTION)|^(EXECUTE|DEALLOCATE)\b"),
    "DISCARD": re.compile(r"^DISCARD\b"),
    "LISTEN": re.compile(r"^(UN)?LISTEN\b"),
    "LOAD": re.compile(r"^LOAD\b"),
    "session advisory lock": re.compile(r"\bPG_(TRY_)?ADVISORY_(LOCK|UNLOCK)\w*"),
    "temporary object": re.compile(
        r"^CREATE (OR REPLACE )?((GLOBAL|LOCAL) )?TEMP(ORARY)? "
        r"|\bINTO ((GLOBAL|LOCAL) )?TEMP(ORARY)? |\bPG_TEMP ?\."
    ),
    "cursor WITH HOLD": re.compile(r"^DECLARE .*\bWITH HOLD\b"),
    "cursor": re.compile(r"^DECLARE .*\bCURSOR\b"),
    "sequence": re.compile(r"\b(NEXTVAL|SETVAL|CURRVAL|LASTVAL) ?\("),
}
"""Each is searched in one statement: capitals, single spaces, no comments, every literal as ''."""

LEAKS: Final = frozenset(_SQL_RULES.keys() - {"cursor", "sequence"}) | {"startup options"}
"""The rules that PgBouncer's transaction mode has in common with RDS Proxy."""


def broken_rules(message: Message) -> Iterator[str]:
    """Name the rules that a client's message breaks."""
    if message.kind == "CancelRequest":
        yield "cancel request"
    elif message.kind == "Startup":
        names = message.body[4:].split(b"\0")[::2]
        if b"options" in names:
            yield "startup options"
    elif message.name:
        portal = message.kind == "Bind" or (message.kind, message.body[:1]) == ("Close", b"P")
        yield "named portal" if portal else "named prepared statement"
    if len(message.query.encode()) > PINNING_BYTES:
        yield "statement over 16 KB"
    for statement in _statements(message.query):
        yield from (rule for rule, pattern in _SQL_RULES.items() if pattern.search(statement))


def _statements(query: str) -> list[str]:
    bare = _TEXTS.sub(lambda text: " " if text[0].startswith(("-", "/")) else "''", query)
    return [" ".join(statement.split()).upper() for statement in bare.split(";")]


LEAKING_STATEMENTS = [
    ("SET", "SET statement_timeout = 1000"),
    ("SET", "set\n  session statement_timeout = 1000"),
    ("SET", "SELECT 1; RESET ALL"),
    ("SET", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
    ("set_config for the session", "SELECT set_config('a.b', '1', false)"),
    ("SQL PREPARE", "PREPARE p AS SELECT 1"),
    ("SQL PREPARE", "PREPARE p AS SELECT 1; EXECUTE p"),
    ("SQL PREPARE", "DEALLOCATE ALL"),
    ("DISCARD", "DISCARD ALL"),
    ("LISTEN", "LISTEN news"),
    ("LISTEN", "/* a /* nested */ comment */ UNLISTEN *"),
    ("LOAD", "LOAD 'plpgsql'"),
    ("session advisory lock", "SELECT pg_advisory_lock(1)"),
    ("session advisory lock", "SELECT pg_try_advisory_lock_shared(1)"),
    ("session advisory lock", "SELECT 1 WHERE pg_advisory_unlock(1)"),
    ("temporary object", "CREATE TEMP TABLE t (n int)"),
    ("temporary object", "CREATE LOCAL TEMPORARY SEQUENCE s"),
    ("temporary object", "CREATE OR REPLACE TEMP VIEW v AS SELECT 1"),
    ("temporary object", "SELECT 1 AS n INTO TEMP t"),
    ("temporary object", "CREATE TABLE pg_temp.t (n int)"),
    ("cursor WITH HOLD", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
]

PINNING_STATEMENTS = [
    ("cursor", "BEGIN; DECLARE c NO SCROLL CURSOR FOR SELECT 1; COMMIT"),
    ("sequence", "SELECT nextval('visits')"),
    ("statement over 16 KB", f"SELECT '{'x' * 17_000}'"),
]


def socket_of(postgres: Postgres) -> Path:
    """Return the server's socket."""
    folder = conninfo_to_dict(postgres.superuser_dsn)["host"]
    return Path(f"{folder}/.s.PGSQL.{postgres.port}")
