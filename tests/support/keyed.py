"""A deployed database in which changes are applied once, and requests with keys."""

import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import psycopg
from lambda_pg import Database, Settings
from lambda_pg.http_api import Answer, Request, change_once
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.roles import Login, Timeouts
from lambda_pg_cdk.migrations.run import migrate
from tests.support.servers import PoolerFixture, SecretsService, pooler_in_tmp

TIMEOUTS = Timeouts(statement=20, lock=10, idle_in_transaction=20)
PATH = "/things"

THINGS = """
CREATE TABLE things (
    n int GENERATED ALWAYS AS IDENTITY,
    owner uuid NOT NULL DEFAULT current_subject(),
    name text NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON things TO lambda_pg_app;
CREATE SEQUENCE runs;
GRANT USAGE ON SEQUENCE runs TO lambda_pg_app;
"""

Db = Database[TupleRow]
Connection = psycopg.Connection[TupleRow]
Change = Callable[[Connection], Answer]


def request(
    key: str | None = "k1",
    *,
    subject: uuid.UUID,
    api: str = "a1b2c3",
    method: str = "POST",
    path: str = PATH,
    query: str = "",
    body: str = '{"name": "Ada"}',
    content_type: str = "application/json",
    **headers: str,
) -> Request:
    """Make a request as API Gateway hands it to a function."""
    sent = {"content-type": content_type, **headers}
    if key is not None:
        sent["idempotency-key"] = key
    return Request.of(
        {
            "version": "2.0",
            "routeKey": f"{method} {path}",
            "rawPath": path,
            "rawQueryString": query,
            "headers": sent,
            "body": body,
            "isBase64Encoded": False,
            "requestContext": {
                "apiId": api,
                "requestId": secrets.token_hex(4),
                "http": {"method": method, "path": path},
                "authorizer": {"jwt": {"claims": {"sub": str(subject)}, "scopes": None}},
            },
        }
    )


def insert(connection: Connection) -> Answer:
    """Make a thing; the answer is another one for each."""
    row = connection.execute("INSERT INTO things (name) VALUES ('Ada') RETURNING n").fetchone()
    assert row is not None
    return Answer(201, {"n": row[0]}, {"Location": f"{PATH}/{row[0]}"}, version=1)


def outcome(answer: Answer) -> tuple[int, bytes, dict[str, str]]:
    """Return what a client sees of an answer, but for the mark of a repetition."""
    headers = {name: text for name, text in answer.headers.items() if "Replayed" not in name}
    return answer.status, answer.content, headers


def is_replayed(answer: Answer) -> bool:
    """Tell whether an answer is a stored one."""
    return answer.headers.get("Idempotent-Replayed") == "true"


@dataclass
class Keyed:
    """The database, which the layer reaches directly or by its pooler."""

    postgres: Postgres
    name: str
    direct: Settings
    pooler: PoolerFixture
    subject: uuid.UUID = field(default_factory=uuid.uuid4)
    """The caller; another one for each test."""
    _opened: ExitStack = field(default_factory=ExitStack)

    def open(self, **options: Any) -> Db:
        """Open the layer in strict mode, as a deployed function has it; closed after the test."""
        db = Database(replace(self.direct, **{"strict": True, **options}))
        self._opened.callback(db.close)
        return db

    def open_pooled(self, **options: Any) -> Db:
        """Open the layer behind PgBouncer."""
        pooler = {"port": self.pooler.port, "sslrootcert": self.pooler.ca_file}
        return self.open(**{**pooler, "profile": "pgbouncer", **options})

    def close(self) -> None:
        """Close what a test has opened."""
        self._opened.close()

    def superuser(self) -> psycopg.Connection[TupleRow]:
        """Connect as one who sees every row."""
        dsn = make_conninfo(self.postgres.superuser_dsn, dbname=self.name)
        return psycopg.connect(dsn, autocommit=True)

    def ask(self, query: str, *params: object) -> list[TupleRow]:
        """Ask as the superuser."""
        with self.superuser() as admin:
            return admin.execute(query.encode(), params).fetchall()

    def run(self, statement: str, *params: object) -> None:
        """Run a statement as the superuser."""
        with self.superuser() as admin:
            admin.execute(statement.encode(), params or None)

    def things(self) -> int:
        """Count what the caller's changes have made."""
        ((count,),) = self.ask("SELECT count(*) FROM things WHERE owner = %s", self.subject)
        return int(count)

    def keys(self) -> int:
        """Count the caller's stored answers."""
        query = "SELECT count(*) FROM idempotency_keys WHERE owner = %s"
        ((count,),) = self.ask(query, self.subject)
        return int(count)

    def add_expired(self, count: int, subject: uuid.UUID | None = None) -> None:
        """Add rows that expired some minutes ago."""
        self.run(
            "INSERT INTO idempotency_keys SELECT %s, sha256(n::text::bytea), sha256('r'), 201,"
            " '{}', '{}', now() - n * interval '1 minute' FROM generate_series(1, %s) AS n",
            subject or self.subject,
            count,
        )

    def add_valid(self, count: int) -> None:
        """Add rows of the caller that have not expired."""
        self.run(
            "INSERT INTO idempotency_keys SELECT %s, sha256(random()::text::bytea), sha256('r'),"
            " 201, '{}', '{}' FROM generate_series(1, %s)",
            self.subject,
            count,
        )

    def rows_read(self) -> int:
        """Count the rows and index entries of the table that sessions have read and reported."""
        ((count,),) = self.ask(
            "SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes AS i"
            " WHERE i.relid = t.relid) FROM pg_stat_user_tables AS t"
            " WHERE relname = 'idempotency_keys'"
        )
        return int(count)

    def request(self, key: str | None = "k1", **parts: Any) -> Request:
        """Make a request of the caller."""
        return request(key, **{"subject": self.subject, **parts})


class First:
    """A request in another environment that has made its change, and goes on when it may."""

    def __init__(
        self, db: Db, site: Keyed, change: Callable[[Connection], Answer] = insert
    ) -> None:
        self._db, self._site, self._change = db, site, change
        self._begun, self._released = threading.Event(), threading.Event()
        self._threads = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        """Begin, and wait until the change is made or has failed."""
        self._running = self._threads.submit(
            change_once, self._db, self._site.request(), self._hold
        )
        while not self._begun.wait(0.05):
            if self._running.done():
                self._running.result()
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end."""
        self._released.set()
        self._threads.shutdown()

    def _hold(self, connection: Connection) -> Answer:
        try:
            return self._change(connection)
        finally:
            self._begun.set()
            assert self._released.wait(30)

    def finish(self) -> Answer:
        """Let it commit; return its answer."""
        self._released.set()
        return self._running.result()

    def release(self) -> None:
        """Let it go on."""
        self._released.set()


@contextmanager
def keyed_database(
    postgres: Postgres,
    service: SecretsService,
    binary: PgBouncerBinary,
    *,
    server_connections: int,
) -> Iterator[Keyed]:
    """Make a database with base, sample and the table of the changes, and a pooler before it."""
    name = f"keyed_{secrets.token_hex(4)}"
    owner_dsn = make_conninfo(postgres.dsn, dbname=name)
    master = sql.Identifier(str(conninfo_to_dict(postgres.dsn)["user"]))
    with (
        psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin,
        pooler_in_tmp(binary, postgres, service) as pooler,
    ):
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), master))
        login = Login(pooler.login.name, pooler.login.password, borrowed=True)
        settings = Settings(
            host="127.0.0.1",
            port=postgres.port,
            dbname=name,
            user=login.name,
            password=login.password,
            sslrootcert=postgres.ca_file,
        )
        try:
            connection = psycopg.connect(owner_dsn, autocommit=True)
            migrate(connection, lambda: login, TIMEOUTS, patience=60, shared=True)
            with psycopg.connect(owner_dsn) as owner:
                owner.execute(THINGS)
            size = str(server_connections)
            pooler.start(DATABASE_NAME=name, DEFAULT_POOL_SIZE=size, MAX_DB_CONNECTIONS=size)
            yield Keyed(postgres, name, settings, pooler)
        finally:
            pooler.stop()
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            admin.execute(drop)
