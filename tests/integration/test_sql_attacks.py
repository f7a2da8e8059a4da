"""Attacks on `POST /sql`, through the function: keys that mean harm, and what the others see of it.

The database is as a deployment leaves it, reached directly and behind PgBouncer. PgBouncer has one
server connection for each role, so the next request of a role gets what the last one has left.
"""

import json
import random
import socket
import string
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lambda_pg import _flight

from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.levels import LEVELS
from lambda_pg_cdk.stage.task import sql_database
from tests.support.servers import Login, PoolerFixture, SecretsService, pooler_in_tmp
from tests.support.sql_levels import Site, new_site
from tests.support.sql_server import (
    Answer,
    Key,
    SqlServer,
    direct,
    event_of,
    sql_server,
    through,
)
from tests.support.waiting import wait_until

RAW = {"Neon-Raw-Text-Output": "true", "Neon-Array-Mode": "true"}
"""What the JavaScript client always sends."""

MINE = "SELECT name FROM users ORDER BY name"
CLAIMS = "SELECT set_config('request.jwt.claims', $1, true)"
REGISTERED = {"mine": MINE, "claims": CLAIMS}

SLEEP_ONCE = """
CREATE FUNCTION sleep_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.n = 2 AND nextval('attempts') = 1 THEN PERFORM pg_sleep(2); END IF;
  RETURN NULL;
END $$
"""
SLEEPING = """
CREATE CONSTRAINT TRIGGER sleep AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION sleep_once()
"""
HAS_LASTVAL = """
CREATE FUNCTION has_lastval() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM lastval(); RETURN true;
EXCEPTION WHEN object_not_in_prerequisite_state THEN RETURN false; END $$
"""

SCHEMA = (
    "INSERT INTO users (owner, name) VALUES (gen_random_uuid(), 'ada')",
    "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    "INSERT INTO late VALUES (1)",
    "CREATE SEQUENCE numbers",
    "CREATE TABLE slow (n int)",
    "CREATE SEQUENCE attempts",
    SLEEP_ONCE,
    SLEEPING,
    HAS_LASTVAL,
    "GRANT ALL ON late, slow TO lambda_pg_sql_writer",
    "GRANT ALL ON SEQUENCE numbers, attempts TO lambda_pg_sql_writer",
)
"""What attacks need besides a deployment; the writer may have temporary tables, too."""


class Edge:
    """`/sql` of one site, with keys of several callers."""

    def __init__(self, site: Site, server: SqlServer, network: FaultProxy) -> None:
        self.site, self.server, self.network = site, server, network
        self.reader, self.other_reader = self.key("reader"), self.key("reader")
        self.writer, self.other_writer = self.key("writer"), self.key("writer")
        self.caller = self.key("caller", statements=["mine"])
        self.expired = self.key("reader", expires="2026-01-01T00:00:00+00:00")
        self.admin = site.superuser()

    def key(self, role: str, **fields: Any) -> Key:
        """Make a key."""
        made = self.server.create_key(role, **fields)
        return Key(made.id, made.secret, database=self.site.database)

    def post(self, key: Key, *queries: str, **headers: str) -> Answer:
        """Send one query, or a batch of several."""
        bodies = [{"query": query} for query in queries]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = bodies[0] if len(bodies) == 1 else {"queries": bodies}
        return self.server.post(body, key, RAW | named)

    def value(self, key: Key, query: str) -> Any:
        """Run a query that succeeds; return its first value."""
        answer = self.post(key, query)
        assert answer.status == 200, answer.body
        return answer.body["rows"][0][0]

    def code(self, key: Key, *queries: str, **headers: str) -> str | None:
        """Send what fails with 400; return its SQLSTATE."""
        answer = self.post(key, *queries, **headers)
        assert answer.status == 400, answer.content[:500]
        code: str | None = answer.body["code"]
        return code

    def count(self, table: str) -> int:
        """Count rows, past `/sql`."""
        query = f"SELECT count(*) FROM {table}"  # noqa: S608 - a constant of this module
        row = self.admin.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def event(self, key: Key | str, body: Any, **headers: str) -> dict[str, Any]:
        """Build an event; unlike an HTTP client's, its headers may have any character."""
        target = key if isinstance(key, str) else key.connection_string
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        event = event_of("POST", "/sql", [("Host", "127.0.0.1"), *RAW.items()], content)
        event["headers"] |= {name.replace("_", "-").lower(): each for name, each in headers.items()}
        event["headers"]["neon-connection-string"] = target
        return event


@pytest.fixture(scope="module")
def site(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A deployed database with the sample's declarations, and what the attacks need."""
    with new_site(postgres, tmp_path_factory.mktemp("attacked")) as site:
        site.deploy(limit=20)
        with site.superuser() as admin:
            for statement in SCHEMA:
                admin.execute(statement.encode())
        site.run(f"GRANT TEMP ON DATABASE {site.database} TO lambda_pg_sql_writer")
        yield site


def secret_of(service: SecretsService, site: Site, who: str) -> Login:
    """Put a login of a site into a secret."""
    login = site.app if who == "app" else site.logins[who]
    assert login.password is not None
    arn = service.create({"username": login.name, "password": login.password})
    return Login(login.name, login.password, arn)


@pytest.fixture(scope="module", params=["direct", "pgbouncer"])
def edge(
    request: pytest.FixtureRequest,
    site: Site,
    postgres: Postgres,
    secrets_service: SecretsService,
    pgbouncer_binary: PgBouncerBinary,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Edge]:
    """The function in front of the site, over a network that can fail."""
    file: Path = tmp_path_factory.mktemp("statements") / "statements.json"
    file.write_text(json.dumps(REGISTERED))
    logins = {each: secret_of(secrets_service, site, each) for each in LEVELS}
    with ExitStack() as stack:
        if request.param == "direct":
            endpoint = direct(postgres) | {"PGDATABASE": site.database}
        else:
            pooler = stack.enter_context(pooler_in_tmp(pgbouncer_binary, postgres, secrets_service))
            start(pooler, site, secrets_service, logins)
            endpoint = through(pooler) | {"PGDATABASE": sql_database(site.database)}
        network = stack.enter_context(FaultProxy("127.0.0.1", int(endpoint["PGPORT"])))
        changes = {"SQL_DATABASE": site.database, "SQL_STATEMENTS": str(file)}
        endpoint |= {"PGPORT": str(network.port)}
        server = stack.enter_context(sql_server(endpoint, secrets_service, logins, **changes))
        found = Edge(site, server, network)
        stack.enter_context(found.admin)
        yield found


def start(
    pooler: PoolerFixture, site: Site, service: SecretsService, logins: Mapping[str, Login]
) -> None:
    """Start a pooler for a site, with one server connection for each role."""
    pooler.sql_logins = tuple(logins.values())
    pooler.start(
        DATABASE_NAME=site.database,
        USER_SECRET_ARNS=secret_of(service, site, "app").arn,
        SQL_SECRET_ARNS=",".join(login.arn for login in logins.values()),
        SQL_POOL_SIZE="1",
        SQL_MAX_DB_CONNECTIONS=str(len(logins)),
    )


# Roles


INSERT = "INSERT INTO users (owner, name) VALUES (gen_random_uuid(), 'eve')"

AROUND = {
    "nothing": ([], "25006"),
    "SET TRANSACTION READ WRITE": (["SET TRANSACTION READ WRITE"], "42501"),
    "COMMIT": (["COMMIT"], "2D000"),
    "COMMIT AND CHAIN": (["COMMIT AND CHAIN", "SET TRANSACTION READ WRITE"], "2D000"),
    "RESET": (["RESET transaction_read_only"], "0A000"),
    "set_config": (["SELECT set_config('transaction_read_only', NULL, true)"], "0A000"),
}
"""Ways around READ ONLY, and what refuses each of them in a batch of a reader."""


@pytest.mark.parametrize("way", AROUND)
def test_a_read_only_key_does_not_write(edge: Edge, way: str) -> None:
    """Neither in a batch that is read-only nor in another one; a writer's key does (control)."""
    statements, refusal = AROUND[way]
    read_only = {"Neon_Batch_Read_Only": "true"}
    assert edge.code(edge.reader, *statements, INSERT, "SELECT 1", **read_only) == refusal
    assert edge.code(edge.reader, INSERT) == "42501"
    assert edge.count("users WHERE name = 'eve'") == 0
    if refusal == "42501":
        assert edge.post(edge.writer, *statements, INSERT, **read_only).status == 200
        edge.admin.execute("DELETE FROM users WHERE name = 'eve'")


FORBIDDEN = {
    "SET ROLE lambda_pg_sql_writer": "42501",
    "SET ROLE lambda_pg_app": "42501",
    "SET SESSION AUTHORIZATION master": "42501",
    "CREATE TEMP TABLE mine (n int)": "42501",
    "CREATE EXTENSION dblink": "42501",
    "SELECT dblink('dbname=app', 'SELECT 1')": "42883",
    "LOAD 'plpgsql'": "42501",
    "SELECT pg_read_file('/etc/passwd')": "42501",
    "SELECT pg_ls_dir('.')": "42501",
    "SELECT lo_import('/etc/passwd')": "42501",
    "SELECT rolpassword FROM pg_authid": "42501",
    "COPY users TO PROGRAM 'cat'": "0A000",
    "DO $$ BEGIN EXECUTE 'COPY users TO PROGRAM ''cat'''; END $$": "42501",
    "DO $$ BEGIN COMMIT; END $$": "2D000",
    "ALTER ROLE CURRENT_USER CREATEROLE": "42501",
    "SECURITY LABEL ON TABLE users IS 'mine'": "22023",
    "COMMENT ON TABLE users IS 'mine'": "42501",
    "PREPARE TRANSACTION 'mine'": "2D000",
}


@pytest.mark.parametrize("attack", FORBIDDEN)
def test_a_reader_s_key_does_nothing_else(edge: Edge, attack: str) -> None:
    """PostgreSQL refuses it, and the next request is served as the same role."""
    assert edge.code(edge.reader, attack) == FORBIDDEN[attack]
    name = edge.value(edge.other_reader, "SELECT current_user || session_user")
    assert name == 2 * edge.site.logins["reader"].name


@pytest.mark.parametrize("reset", ["RESET SESSION AUTHORIZATION", "RESET ROLE", "SET ROLE NONE"])
def test_a_reset_of_the_role_leads_to_the_same_login(edge: Edge, reset: str) -> None:
    """There is no more powerful user behind a role: the function logs in as the role itself."""
    answer = edge.post(edge.reader, reset, "SELECT current_user || session_user")
    assert answer.body["results"][1]["rows"] == [[2 * edge.site.logins["reader"].name]]
    assert edge.code(edge.reader, reset, INSERT) == "42501"


# State


ADVISORY = "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77)"

STATES = {
    "SET": (["SET lock_timeout = 7777"], "current_setting('lock_timeout') = '7777ms'"),
    "a SET that is reported": (
        ["SET TimeZone = 'Asia/Tokyo'"],
        "current_setting('TimeZone') = 'Asia/Tokyo'",
    ),
    "set_config": (
        ["SELECT set_config('app.mark', 'x', false)"],
        "coalesce(current_setting('app.mark', true), '') = 'x'",
    ),
    "SET ROLE": (
        ["SET ROLE lambda_pg_sql_writer"],
        "current_user = 'lambda_pg_sql_writer'",
    ),
    "a temporary table": (
        ["CREATE TEMP TABLE left_behind (n int)"],
        "to_regclass('pg_temp.left_behind') IS NOT NULL",
    ),
    "LISTEN": (["LISTEN news"], "EXISTS (SELECT FROM pg_listening_channels())"),
    "a cursor WITH HOLD": (
        ["DECLARE mine CURSOR WITH HOLD FOR SELECT 1"],
        "EXISTS (SELECT FROM pg_cursors WHERE is_holdable)",
    ),
    "an advisory lock": (["SELECT pg_advisory_lock(77)"], ADVISORY),
    "an advisory lock at COMMIT": (
        ["DECLARE mine CURSOR WITH HOLD FOR SELECT pg_advisory_lock(77)"],
        ADVISORY,
    ),
    "an advisory lock in a block": (
        ["DO $$ BEGIN PERFORM pg_advisory_lock(77); END $$"],
        ADVISORY,
    ),
    "PREPARE": (["PREPARE mine AS SELECT 1"], "EXISTS (SELECT FROM pg_prepared_statements)"),
    "a sequence's value": (["SELECT nextval('numbers')"], "has_lastval()"),
}
"""Statements that leave state in their session, and what is true while it is there."""

KEPT = ["an advisory lock", "an advisory lock in a block", "PREPARE", "a sequence's value"]
"""What a rollback does not undo."""

LAST = {
    "success": "SELECT 1",
    "error": "SELECT 1/0",
    "failed COMMIT": "INSERT INTO late VALUES (1)",
}


def leave(edge: Edge, name: str, last: str) -> None:
    """Leave state, and end with success or an error."""
    answer = edge.post(edge.writer, *STATES[name][0], LAST[last])
    assert answer.status == (200 if last == "success" else 400), answer.content


def finds(edge: Edge, key: Key, name: str) -> tuple[Any, Any]:
    """Tell whether a key finds the state, and with which backend."""
    rows = edge.post(key, f"SELECT {STATES[name][1]}, pg_backend_pid()").body["rows"]
    return rows[0][0], rows[0][1]


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("name", STATES)
def test_no_state_reaches_another_key(edge: Edge, name: str, last: str) -> None:
    """Of the same role, which has the same backend, or of another one."""
    process = edge.value(edge.writer, "SELECT pg_backend_pid()")
    leave(edge, name, last)
    assert finds(edge, edge.other_writer, name) == ("f", process)
    assert finds(edge, edge.reader, name)[0] == "f"


@pytest.fixture
def without_reset(monkeypatch: pytest.MonkeyPatch, edge: Edge) -> Iterator[None]:
    """Leave out what ends the state; what stays then is ended with its backend."""
    edge.value(edge.reader, "SELECT 1")  # with the reset, as a control's backend has it
    for guard in ("RESET", "KEPT_BY_ROLLBACK", "DISCARD"):
        monkeypatch.setattr(_flight, guard, ())
    monkeypatch.setattr(_flight, "UNLOCK", "NULL")
    yield
    end_backends(edge)


def end_backends(edge: Edge, query: str = "%") -> None:
    """End the writer's backends that run a query, or are idle after it."""
    edge.admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE usename = %s AND query LIKE %s",
        [edge.site.logins["writer"].name, query],
    )


@pytest.mark.parametrize(
    ("name", "last"),
    [*((name, "success") for name in STATES), *((name, "error") for name in KEPT)],
)
def test_without_the_reset_state_reaches_another_key(
    edge: Edge, name: str, last: str, without_reset: None
) -> None:
    """The control: a plain ROLLBACK is not enough either."""
    process = edge.value(edge.writer, "SELECT pg_backend_pid()")
    leave(edge, name, last)
    assert finds(edge, edge.other_writer, name) == ("t", process)


@pytest.mark.parametrize("last", LAST)
def test_no_transaction_stays_open(edge: Edge, last: str) -> None:
    """A BEGIN in a batch begins nothing."""
    opened = ["BEGIN ISOLATION LEVEL READ COMMITTED", "SAVEPOINT mine"]
    answer = edge.post(edge.writer, *opened, LAST[last])
    assert answer.status in {200, 400}
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state LIKE %s"
    found = edge.admin.execute(query, [edge.site.logins["writer"].name, "%transaction%"])
    assert found.fetchone() == (0,)
    assert edge.value(edge.other_writer, "SELECT 1") == "1"


ENDINGS = [
    "COMMIT",
    "commit and chain",
    "ROLLBACK",
    "ROLLBACK AND CHAIN",
    "/* /* */ */ -- x\n\fEND",
    ";;ABORT",
    "COMMIT PREPARED 'x'",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_batch_cannot_end_its_transaction(edge: Edge, ending: str) -> None:
    """All of it is refused, and nothing of it is there."""
    insert = "INSERT INTO slow VALUES (1)"
    assert edge.code(edge.writer, insert, ending, insert) == "2D000"
    assert edge.count("slow") == 0


@pytest.mark.parametrize("ending", ENDINGS[:4])
def test_where_the_text_hides_the_end_the_tag_shows_it(
    edge: Edge, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second guard: the answer says that a part may be committed, and nothing stays open."""
    monkeypatch.setattr(_flight, "ends_transaction", lambda _: False)
    _flight._known.cache_clear()
    answer = edge.post(edge.writer, "SELECT 1", ending, "SELECT 1")
    _flight._known.cache_clear()
    assert (answer.status, answer.body["code"]) == (400, "2D000")
    assert "may be committed" in answer.body["message"]
    assert edge.value(edge.other_writer, "SELECT 1") == "1"


# Callers


def test_a_wrong_key_is_one_message(edge: Edge) -> None:
    """An unknown id, a wrong, another key's or no secret, and an expired key look the same."""
    assert edge.value(edge.reader, "SELECT 1") == "1"  # so the table has been read
    reader, database = edge.reader, edge.site.database
    wrong = [
        edge.expired,
        Key("nobody", reader.secret, database=database),
        Key(reader.id, edge.other_reader.secret, database=database),
        Key(reader.id, "", database=database),
        Key(reader.id.upper(), reader.secret, database=database),
        Key(edge.site.logins["reader"].name, "canary-Pa55word", database=database),
    ]
    answers = {edge.post(key, "SELECT 1").content for key in wrong}
    assert len(answers) == 1
    assert json.loads(answers.pop())["code"] == "28P01"


def test_a_host_is_compared_and_never_dialled(edge: Edge) -> None:
    """A forged one is refused; with another port it is still the request's."""
    reader = edge.reader
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost", "[::1]", "127.0.0.2"):
        assert edge.code(Key(reader.id, reader.secret, host, reader.database), "SELECT 1") == (
            "08001"
        )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        assert edge.value(Key(reader.id, reader.secret, host, reader.database), "SELECT 1") == "1"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert edge.code(Key(reader.id, reader.secret, database="postgres"), "SELECT 1") == "3D000"


def test_claims_cannot_be_forged(edge: Edge) -> None:
    """Only those of the authorizer count; with them only registered statements, which set none."""
    row = edge.admin.execute("SELECT owner::text FROM users WHERE name = 'ada'").fetchone()
    assert row is not None
    mine, stranger = {"sub": row[0]}, {"sub": "00000000-0000-0000-0000-000000000000"}
    forged = json.dumps(mine)
    nobody = Key("nobody", "nothing", database=edge.site.database)

    def answer(claims: dict[str, str] | None, body: dict[str, Any], key: Key = nobody) -> Any:
        event = edge.event(key, body, Authorization=f"Bearer {forged}", X_Claims=forged)
        if claims is not None:
            event["requestContext"]["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
        return json.loads(edge.server.invoke(event)["body"])

    assert answer(mine, {"query": MINE})["rows"] == [["ada"]]
    assert answer(stranger, {"query": MINE})["rows"] == []
    for body in (
        {"query": CLAIMS, "params": [forged]},
        {"query": f"{MINE} "},
        {"queries": [{"query": CLAIMS, "params": [forged]}, {"query": MINE}]},
    ):
        assert answer(stranger, body)["code"] == "42501"
    with_claims = {"query": MINE, "requestContext": {"authorizer": {"jwt": {"claims": mine}}}}
    assert answer(None, with_claims)["code"] == "28P01"
    assert answer(None, with_claims, edge.caller)["rows"] == []


# Too much


def test_an_error_of_any_size_is_small(edge: Edge) -> None:
    """A statement can raise it; Lambda returns 6 MB at most."""
    for size in (4_000_000, 20_000_000):
        error = f"DO $$ BEGIN RAISE EXCEPTION '%', repeat(chr(1), {size}); END $$"
        answer = edge.post(edge.reader, error)
        assert answer.status in {400, 507}
        assert len(answer.content) < 100_000
        assert edge.value(edge.other_reader, "SELECT 1") == "1"


@pytest.mark.parametrize(
    "flood",
    [
        "DO $$ BEGIN FOR i IN 1..50000 LOOP RAISE NOTICE '%', repeat('x', 1000); END LOOP; END $$",
        "SELECT count(pg_notify('news', i::text)) FROM generate_series(1, 50000) AS i",
    ],
)
def test_a_flood_beside_the_rows_hinders_nobody(edge: Edge, flood: str) -> None:
    """Notices count like rows; notifications are read and dropped."""
    answer = edge.post(edge.writer, "LISTEN news", flood)
    assert answer.status in {200, 507}
    assert edge.value(edge.other_writer, "SELECT 1") == "1"


RAISED = ["57P01", "28P01", "08006", "08P01", "08007", "25006", "25P03", "XX000", "00001", "40001"]


def test_an_error_that_is_made_up_hinders_nobody(edge: Edge) -> None:
    """SQLSTATEs of a broken server, login or pooler, raised by a caller."""
    for state in RAISED:
        raised = f"DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = '{state}'; END $$"
        answer = edge.post(edge.reader, raised)
        assert answer.status == (503 if state == "40001" else 400), answer.content
        assert edge.value(edge.other_reader, "SELECT 1") == "1"


def test_a_caller_that_ends_its_own_backend_hinders_nobody(edge: Edge) -> None:
    """PostgreSQL lets every role do that; the statement is retried, and then refused."""
    answer = edge.post(edge.reader, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert answer.status == 503
    assert edge.code(edge.reader, "SELECT pg_cancel_backend(pg_backend_pid())") == "57014"
    assert edge.value(edge.other_reader, "SELECT 1") == "1"


def test_names_of_columns_are_only_names(edge: Edge) -> None:
    """Also those that mean something to JavaScript, and those with signs of JSON."""
    query = r"""SELECT 1 AS "__proto__", 2 AS "constructor", 3 AS "}],""a"":", 4 AS "\" """
    event = edge.event(edge.reader, {"query": query}, Neon_Array_Mode="false")
    (row,) = json.loads(edge.server.invoke(event)["body"])["rows"]
    assert row == {"__proto__": "1", "constructor": "2", '}],"a":': "3", "\\": "4"}


@pytest.mark.parametrize("level", ["Serializable\r\nX-Evil: 1", "Serializable,Serializable", "é"])
def test_no_header_comes_back_as_another_one(edge: Edge, level: str) -> None:
    """A level of isolation is one of four names, or refused."""
    event = edge.event(
        edge.reader,
        {"queries": []},
        Neon_Batch_Isolation_Level=level,
        Neon_Batch_Read_Only="true\r\nX-Evil: 1",
        Origin="https://a.example\r\nX-Evil: 1",
    )
    response = edge.server.invoke(event)
    assert response["statusCode"] == 400
    assert "evil" not in str(response["headers"]).lower()


# A backend that ends


SLOW_STATEMENT = "INSERT INTO slow SELECT 1 FROM pg_sleep(1)"
SLOW_COMMIT = "INSERT INTO slow VALUES (2)"


@pytest.fixture
def no_rows(edge: Edge) -> Iterator[None]:
    """An empty table, whose first COMMIT of a 2 takes two seconds."""
    edge.admin.execute("TRUNCATE slow")
    edge.admin.execute("ALTER SEQUENCE attempts RESTART")
    yield
    edge.admin.execute("TRUNCATE slow")


def wait_for(edge: Edge, query: str) -> None:
    """Wait until the writer's backend runs a query."""
    wait_until(
        lambda: edge.admin.execute(
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND usename = %s"
            " AND query LIKE %s",
            [edge.site.logins["writer"].name, f"{query}%"],
        ).fetchone()
    )


@pytest.mark.usefixtures("no_rows")
@pytest.mark.parametrize(("statement", "at"), [(SLOW_STATEMENT, "INSERT"), (SLOW_COMMIT, "COMMIT")])
def test_a_backend_that_ends_before_or_in_commit_has_done_nothing(
    edge: Edge, statement: str, at: str
) -> None:
    """The batch is retried, and is there once; the other key is served."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(edge.post, edge.writer, statement)
        wait_for(edge, at)
        end_backends(edge, f"{at}%")
        answer = running.result()
    assert (answer.status, edge.count("slow")) == (200, 1), answer.content
    assert edge.value(edge.other_writer, "SELECT 1") == "1"


@pytest.mark.usefixtures("no_rows")
def test_an_answer_that_is_lost_after_commit_is_looked_up(edge: Edge) -> None:
    """It was committed: the answer says so, and nothing ran twice."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(edge.post, edge.writer, SLOW_COMMIT, "SELECT 7")
        wait_for(edge, "COMMIT")
        with edge.network.stall("to_client", connections="open"):
            wait_until(lambda: edge.count("slow") == 1)
            edge.network.reset()
        answer = running.result()
    assert (answer.status, edge.count("slow")) == (200, 1), answer.content


@pytest.mark.usefixtures("no_rows")
def test_what_nobody_knows_is_said(edge: Edge) -> None:
    """COMMIT was sent with the statement: 08007, which a client reads, and it is not repeated."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(edge.post, edge.writer, SLOW_STATEMENT)
        wait_for(edge, "INSERT")
        edge.network.reset()
        answer = running.result()
    assert (answer.status, answer.body["code"]) == (400, "08007")
    ended = "pg_stat_activity WHERE state = 'active' AND query LIKE 'INSERT INTO slow%'"
    wait_until(lambda: edge.count(ended) == 0)
    assert edge.count("slow") <= 1


# Anything


STRANGE = [*string.printable, "\0", "\ud800", "é", "😀", "%00", "%ff", "://", "[", "{", "1e9"]


def mutated(text: str, chance: random.Random) -> str:
    """Change a text in some places."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(["", *STRANGE]) + text[at + chance.randint(0, 3) :]
    return text


def test_no_connection_string_and_no_body_is_an_internal_error(edge: Edge) -> None:
    """Each is served or refused."""
    chance = random.Random(17)  # noqa: S311 - the same ones in each run
    query = {"query": "SELECT $1::int[]", "params": [[1, None]], "arrayMode": True}
    good = [edge.reader.connection_string, json.dumps({"queries": [query, query]})]
    for _ in range(300):
        which = chance.randrange(2)
        sent = [mutated(each, chance) if n == which else each for n, each in enumerate(good)]
        event = edge.event(sent[0], sent[1].encode(errors="surrogatepass"))
        assert edge.server.invoke(event)["statusCode"] in {200, 400, 413, 507}, sent
