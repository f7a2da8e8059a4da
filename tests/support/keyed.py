"""A deployed database in which changes are applied once, and requests with keys."""

import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from lambda_pg import Database, Settings
from lambda_pg.http_api import Answer, Request
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.roles import Login, Timeouts
from lambda_pg_cdk.migrations.run import migrate

TIMEOUTS = Timeouts(statement=20, lock=10, idle_in_transaction=20)
PASSWORD = "canary-Pa55word"
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


def request(
    key: str | None = "k1",
    *,
    subject: uuid.UUID,
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
    """The database with its application's login, which the layer reaches directly."""

    owner_dsn: str
    superuser_dsn: str
    settings: Settings
    login: Login
    subject: uuid.UUID = field(default_factory=uuid.uuid4)
    """The caller; another one for each test."""
    _opened: ExitStack = field(default_factory=ExitStack)

    def open(self, **options: Any) -> Db:
        """Open the layer in strict mode, as a deployed function has it; closed after the test."""
        db = Database(replace(self.settings, **{"strict": True, **options}))
        self._opened.callback(db.close)
        return db

    def close(self) -> None:
        """Close what a test has opened."""
        self._opened.close()

    def superuser(self) -> psycopg.Connection[TupleRow]:
        """Connect as one who sees every row."""
        return psycopg.connect(self.superuser_dsn, autocommit=True)

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

    def request(self, key: str | None = "k1", **parts: Any) -> Request:
        """Make a request of the caller."""
        return request(key, **{"subject": self.subject, **parts})


@contextmanager
def keyed_database(postgres: Postgres) -> Iterator[Keyed]:
    """Make a database with base, sample and the table of the changes; remove it afterwards."""
    name = f"keyed_{secrets.token_hex(4)}"
    login = Login(f"app_{name}", PASSWORD)
    owner_dsn = make_conninfo(postgres.dsn, dbname=name)
    superuser_dsn = make_conninfo(postgres.superuser_dsn, dbname=name)
    master = sql.Identifier(str(conninfo_to_dict(postgres.dsn)["user"]))
    settings = Settings(
        host="127.0.0.1",
        port=postgres.port,
        dbname=name,
        user=login.name,
        password=login.password,
        sslrootcert=postgres.ca_file,
        application_name=name,
    )
    with psycopg.connect(postgres.superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), master))
        try:
            connection = psycopg.connect(owner_dsn, autocommit=True)
            migrate(connection, lambda: login, TIMEOUTS, patience=60, shared=True)
            with psycopg.connect(owner_dsn) as owner:
                owner.execute(THINGS)
            yield Keyed(owner_dsn, superuser_dsn, settings, login)
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            admin.execute(drop)
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(login.name)))


Change = Callable[[Connection], Answer]
