"""`POST /sql` with real servers: the protocol, its limits, and requests that mean harm."""

import gzip
import json
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.servers import DATABASE, Login, PoolerFixture, SecretsService, create_login
from tests.support.sql_server import Answer, Key, SqlServer, direct, sql_server, through
from tests.support.waiting import wait_until

RAW = {"Neon-Raw-Text-Output": "true", "Neon-Array-Mode": "true"}
"""What the JavaScript client always sends."""


class Client:
    """A client with a key, as the JavaScript client is."""

    def __init__(self, server: SqlServer, key: Key, admin: psycopg.Connection[Any]) -> None:
        """Take a key of the server, and a superuser's connection for looking."""
        self.server = server
        self.key = key
        self.admin = admin

    def post(self, body: Any, **headers: str) -> Answer:
        """Send a body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.server.post(body, self.key, RAW | named)

    def rows(self, query: str, *params: Any) -> Any:
        """Run a query that succeeds; return its rows."""
        answer = self.post({"query": query, "params": params})
        assert answer.status == 200, answer.body
        return answer.body["rows"]

    def batch(self, *queries: str, **headers: str) -> Answer:
        """Run a batch."""
        return self.post({"queries": [{"query": each} for each in queries]}, **headers)

    def fails(self, body: Any, **headers: str) -> tuple[int, str | None]:
        """Send a body that fails; return status and SQLSTATE."""
        answer = self.post(body, **headers)
        return answer.status, answer.body["code"]

    def count(self) -> int:
        """Count the rows of the table, past `/sql`."""
        row = self.admin.execute("SELECT count(*) FROM items").fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="module", params=["direct", "pgbouncer"])
def client(
    request: pytest.FixtureRequest,
    postgres: Postgres,
    secrets_service: SecretsService,
    module_pooler: PoolerFixture,
) -> Iterator[Client]:
    """A client of the function, which reaches the database directly or through PgBouncer."""
    if request.param == "direct":
        endpoint, login = direct(postgres), create_login(postgres, secrets_service, "canary-of-sql")
    else:
        endpoint, login = through(module_pooler), module_pooler.login
    dsn = make_conninfo(postgres.superuser_dsn, dbname=DATABASE)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE TABLE items (id int PRIMARY KEY, name text CHECK (name <> ''))")
        admin.execute(sql.SQL("GRANT ALL ON items TO {}").format(sql.Identifier(login.name)))
        with sql_server(endpoint, secrets_service, {"writer": login}) as server:
            yield Client(server, server.create_key("writer"), admin)
        admin.execute("DROP TABLE items")


@pytest.fixture(autouse=True)
def _no_rows(client: Client) -> None:
    client.admin.execute("TRUNCATE items")


def test_parameters_are_untyped_text(client: Client) -> None:
    """PostgreSQL infers their types; without a context it takes text."""
    answer = client.post({"query": "SELECT $1, $2::int + 1 AS n", "params": ["a", "1"]})
    assert answer.body["rows"] == [["a", "2"]]
    assert [field["dataTypeID"] for field in answer.body["fields"]] == [25, 23]
    assert answer.headers["content-type"] == "application/json"


def test_parameters_of_json(client: Client) -> None:
    """Arrays become PostgreSQL's, objects documents, numbers keep their digits."""
    query = "SELECT $1::int[], $2::jsonb->>'a', $3::numeric, $4::bool, $5::text[]"
    params = '[[1, null, 3], {"a": 1.50}, 12345678901234567890.10, true, [["a\\"b"], [null]]]'
    body = f'{{"query": "{query}", "params": {params}}}'.encode()
    (row,) = client.post(body).body["rows"]
    assert row == ["{1,NULL,3}", "1.50", "12345678901234567890.10", "t", '{{"a\\"b"},{NULL}}']


def test_a_number_of_many_digits(client: Client) -> None:
    """It goes to PostgreSQL as it is, which has numbers like that."""
    digits = "9" * 10_000
    body = f'{{"query": "SELECT $1::numeric", "params": [{digits}]}}'.encode()
    assert client.post(body).body["rows"] == [[digits]]
    assert client.fails(body.replace(b"numeric", b"int")) == (400, "22003")


def test_an_error_that_quotes_a_large_value(client: Client) -> None:
    """Lambda could not return it: 2 MB of quotes leave as 8 MB."""
    answer = client.post({"query": "SELECT repeat('\"', 2000000)::int"})
    assert (answer.status, answer.body["code"]) == (400, "22P02")
    assert answer.body["message"].startswith("invalid input syntax for type integer:")
    assert len(answer.content) < 50_000
    blocks = "DO $$ BEGIN RAISE 'a' USING DETAIL = repeat('b', 2000000), HINT = 'c'; END $$"
    answer = client.post({"query": blocks})
    assert (answer.status, answer.body["hint"]) == (400, "c")
    assert len(answer.content) < 50_000


@pytest.mark.parametrize("query", ["", ";", "-- nothing", "/* nothing */"])
def test_an_empty_query(client: Client, query: str) -> None:
    """It is fine, and has no command."""
    body = client.post({"query": query}).body
    assert (body["command"], body["rowCount"], body["rows"], body["fields"]) == ("", None, [], [])


def test_a_batch_is_one_transaction(client: Client) -> None:
    """It answers with each result; one error rolls back all of it, and is one error object."""
    insert = "INSERT INTO items VALUES (1, 'a') RETURNING id"
    answer = client.batch(insert, "UPDATE items SET name = 'b'", "SELECT name FROM items")
    found = [(each["command"], each["rowCount"], each["rows"]) for each in answer.body["results"]]
    assert found == [("INSERT", 1, [["1"]]), ("UPDATE", 1, []), ("SELECT", 1, [["b"]])]
    answer = client.batch("INSERT INTO items VALUES (2, 'a')", insert)
    assert (answer.status, answer.body["code"]) == (400, "23505")
    assert client.count() == 1


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("ReadUncommitted", "read uncommitted"),
        ("ReadCommitted", "read committed"),
        ("RepeatableRead", "repeatable read"),
        ("Serializable", "serializable"),
    ],
)
def test_levels_of_isolation(client: Client, name: str, level: str) -> None:
    """Each holds for the batch, and comes back as a header."""
    answer = client.batch("SHOW transaction_isolation", Neon_Batch_Isolation_Level=name)
    assert answer.body["results"][0]["rows"] == [[level]]
    assert answer.headers["neon-batch-isolation-level"] == name


def test_a_batch_that_reads_only(client: Client) -> None:
    """It may not write, and may wait for a snapshot that cannot fail."""
    headers = {
        "Neon_Batch_Read_Only": "true",
        "Neon_Batch_Deferrable": "true",
        "Neon_Batch_Isolation_Level": "Serializable",
    }
    answer = client.batch("SHOW transaction_read_only", "SHOW transaction_deferrable", **headers)
    assert [each["rows"] for each in answer.body["results"]] == [[["on"]], [["on"]]]
    assert answer.headers["neon-batch-read-only"] == answer.headers["neon-batch-deferrable"]
    answer = client.batch("INSERT INTO items VALUES (1, 'a')", **headers)
    assert (answer.status, answer.body["code"]) == (400, "25006")


def test_the_fields_of_an_error(client: Client) -> None:
    """Position and line are strings; the message is the primary one alone."""
    client.rows("INSERT INTO items VALUES (1, 'a')")
    error = client.post({"query": "INSERT INTO items VALUES ($1, 'a')", "params": [1]}).body
    assert error["message"] == 'duplicate key value violates unique constraint "items_pkey"'
    assert error["detail"] == "Key (id)=(1) already exists."
    names = ("code", "severity", "schema", "table", "constraint", "column", "position")
    expected = ("23505", "ERROR", "public", "items", "items_pkey", None, None)
    assert tuple(error[name] for name in names) == expected
    assert error["line"].isdigit()
    error = client.post({"query": "SELECT nothing"}).body
    assert (error["code"], error["position"]) == ("42703", "8")
    error = client.post({"query": "DO $$ BEGIN PERFORM 1/0; END $$"}).body
    assert error["where"].startswith("SQL ")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"query": "SELECT 1; SELECT 2"}, (400, "42601")),
        ({"query": "SELECT 'a\0b'"}, (400, "22021")),
        ({"query": "SELECT $1", "params": ["a\0b"]}, (400, "22021")),
        ({"query": "SELECT $1", "params": [["\0"]]}, (400, "22021")),
        ({"query": "SELECT '\ud800'"}, (400, "22021")),
        ({"query": "SELECT $1", "params": ["\udfff"]}, (400, "22021")),
        ({"query": "SELECT $1", "params": [{"\udfff": 1}]}, (400, "22021")),
        ({"query": "COPY items TO STDOUT"}, (400, "0A000")),
        ({"query": "COPY items FROM STDIN"}, (400, "0A000")),
        ({"query": "SELECT 1", "params": [None] * 65_536}, (400, "54023")),
        ({"query": "SELECT 1", "params": ["a"]}, (400, "08P01")),
        ({"query": "VACUUM items"}, (400, "25001")),
        (b"[" * 10_000, (400, "08P01")),
        (
            b'{"query": "SELECT 1", "params": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            (400, "08P01"),
        ),
        (b'{"query": "' + b"a" * 1_000_000 + b'"}', (413, "54000")),
        ({"queries": [{"query": "SELECT 1"}] * 10_000}, (400, "54000")),
        ({"query": "SELECT repeat('a', 6000000)"}, (507, "54000")),
        ({"query": "SELECT generate_series(1, 10001)"}, (507, "54000")),
        ({"query": "SELECT repeat('\n', 2400000)"}, (507, "54000")),
    ],
    ids=lambda value: (
        str(value)[:40].encode("unicode_escape").decode() if isinstance(value, dict | bytes) else ""
    ),
)
def test_what_is_refused(client: Client, body: Any, expected: tuple[int, str]) -> None:
    """Each with its status, never with 500; and the next request is served."""
    assert client.fails(body) == expected
    assert client.rows("SELECT 1") == [["1"]]


def test_as_many_parameters_as_there_can_be(client: Client) -> None:
    """65,535 of them are sent."""
    places = ",".join(f"${number}" for number in range(1, 65_536))
    (row,) = client.rows(f"SELECT cardinality(ARRAY[{places}])", *[None] * 65_535)
    assert row == ["65535"]


def test_a_statement_that_outlives_the_deadline(client: Client) -> None:
    """It ends with the invocation's time, also if it has switched the server's timeouts off."""
    client.server.seconds = 1.5
    try:
        queries = ("SET statement_timeout = 0", "SELECT pg_sleep(30)")
        answer = client.batch(*queries)
    finally:
        client.server.seconds = 29.0
    assert (answer.status, answer.body["code"]) == (400, "57014")
    assert client.rows("SELECT 1") == [["1"]]


def test_a_large_answer_is_compressed(client: Client) -> None:
    """Where the client accepts it; the size that counts is the one that leaves."""
    query = {"query": "SELECT repeat('a', 490) FROM generate_series(1, 8000)"}
    plain = client.post(query)
    packed = client.post(query, Accept_Encoding="gzip, deflate")
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.content) < len(plain.content) / 10
    assert json.loads(gzip.decompress(packed.content)) == plain.body


def test_types_of_users_in_a_transaction(client: Client) -> None:
    """A type that is as old as the request is known when its answer is written."""
    admin = client.admin
    admin.execute("CREATE TYPE colour AS ENUM ('red')")
    try:
        answer = client.server.post(
            {"query": "SELECT ARRAY['red', NULL]::colour[] AS c"}, client.key
        )
        assert answer.body["rows"] == [{"c": ["red", None]}]
    finally:
        admin.execute("DROP TYPE colour")


def test_no_secret_reaches_the_log(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither headers nor parameters nor keys nor texts are logged, after errors too."""
    canary = "canary-0451"
    headers = {"Authorization": f"Bearer {canary}", "X_Canary": canary}
    for query in (
        "SELECT $1",
        "SELECT $1::int",
        "SELECT canary_0451, $1",
        "SELECT $1 'canary-0451",
    ):
        client.post({"query": query, "params": [canary]}, **headers)
    stranger = Key(canary, canary, database=canary)
    assert client.server.post({"query": canary}, stranger).status == 400
    client.server.post(canary.encode(), client.key)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 6
    for secret in ("canary", client.key.secret, "Bearer"):
        assert secret not in said.out + said.err


def test_a_preflight(client: Client) -> None:
    """OPTIONS needs no key and names what may be sent; no origin is allowed by default."""
    answer = client.server.send("OPTIONS", b"", {"Origin": "https://a.dev"})
    assert (answer.status, answer.headers["allow"]) == (200, "OPTIONS, POST")
    assert "access-control-allow-origin" not in answer.headers


def test_a_database_that_is_down(
    secrets_service: SecretsService, postgres: Postgres, client: Client
) -> None:
    """503 says when to come back, and names neither host nor port."""
    login = create_login(postgres, secrets_service, "canary-of-down")
    endpoint = direct(postgres) | {"PGPORT": "1", "LAMBDA_PG_CHECKOUT_TIMEOUT": "0.2"}
    with sql_server(endpoint, secrets_service, {"reader": login}) as server:
        answer = server.post({"query": "SELECT 1"}, server.create_key("reader"))
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in answer.content.decode()


def test_roles_share_the_connections_of_an_environment(
    secrets_service: SecretsService, postgres: Postgres, client: Client
) -> None:
    """Two logins in alternation have one connection together, as the budget counts."""
    logins = {
        role: create_login(postgres, secrets_service, "canary-of-roles")
        for role in ("reader", "writer")
    }
    with sql_server(direct(postgres), secrets_service, logins) as server:
        keys = {role: server.create_key(role) for role in logins}
        for role in ("reader", "writer", "reader", "writer"):
            answer = server.post({"query": "SELECT current_user"}, keys[role])
            assert answer.body["rows"] == [{"current_user": logins[role].name}]
            wait_until(lambda: backends(client.admin, logins.values()) == 1)


def backends(admin: psycopg.Connection[Any], logins: Iterable[Login]) -> int:
    """Count the server's sessions of some logins."""
    names = [login.name for login in logins]
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = ANY(%s)"
    row = admin.execute(query, [names]).fetchone()
    assert row is not None
    return int(row[0])
