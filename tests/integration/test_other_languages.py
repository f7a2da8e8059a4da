"""The TypeScript example in Node.js: policies, rotations, replaced poolers, and an audit."""

import json
import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.stage.environment import environment
from tests.support.layer import Admin, is_refused
from tests.support.servers import DATABASE, PoolerFixture
from tests.support.waiting import wait_until

pytestmark = pytest.mark.once

EXAMPLE: Final = PROJECT / "examples" / "typescript"
INVOKE: Final = PROJECT / "tests" / "support" / "invoke.mjs"
NODE: Final = shutil.which("node") or "node"

PATIENT: Final = 20
"""Seconds for a pooler to start on a busy machine."""

RECONNECTING: Final = "0.05"
"""Lifetime in seconds of connections that put every change of the secret to the test."""

Event = Any
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's handler, compiled with TypeScript's strict checks."""
    folder = tmp_path_factory.mktemp("typescript")
    command = [str(EXAMPLE / "node_modules" / ".bin" / "tsc"), "--outDir", str(folder)]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node_modules").symlink_to(EXAMPLE / "node_modules")
    return folder / "handler.js"


@pytest.fixture
def orders(new_pooler: PoolerFixture) -> Iterator[Admin]:
    """A superuser's connection, and a table without a key: a second INSERT is a second row."""
    dsn = make_conninfo(new_pooler.postgres.superuser_dsn, dbname=DATABASE)
    login = sql.Identifier(new_pooler.login.name)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE TABLE orders (id uuid NOT NULL, owner text NOT NULL, total int)")
        admin.execute(sql.SQL("GRANT SELECT, INSERT ON orders TO {}").format(login))
        admin.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
        admin.execute(
            "CREATE POLICY own ON orders USING ("
            " owner = nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub'"
            " AND nullif(current_setting('request.jwt.transaction', true), '')::timestamptz"
            " = CURRENT_TIMESTAMP)"
        )
        yield admin
        admin.execute("DROP TABLE orders")


class Environment:
    """An execution environment: a process of Node.js that serves one request at a time."""

    def __init__(self, handler: Path, pooler: PoolerFixture, **changes: str) -> None:
        """Start it with the variables that the stacks write, and with changes."""
        variables = environment(
            application="Orders",
            checkout_timeout=PATIENT,
            host="127.0.0.1",
            port=str(pooler.port),
            database=DATABASE,
            profile="pgbouncer",
            secret_arn=pooler.login.arn,
            ca_pem=pooler.authority.pem,
            slots=1,
            strict=True,
        )
        self.log = handler.parent / f"{uuid.uuid4()}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [NODE, str(INVOKE), handler.as_uri()],
                env=processes.base_environment() | pooler.service.environment | variables | changes,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> "Environment":
        """Use it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def invoke(self, event: Event) -> Any:
        """Invoke the handler and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(event)}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it, as Lambda does between two invocations."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)


def list_of(owner: str) -> Answer:
    """Return a request for a caller's orders."""
    return _event("GET /orders", owner)


def order_of(owner: str, order: str, total: Any = 1) -> Answer:
    """Return a request that adds an order."""
    return _event("POST /orders", owner) | {"body": json.dumps({"id": order, "total": total})}


def _event(route: str, owner: str) -> Answer:
    claims = {"authorizer": {"jwt": {"claims": {"sub": owner}}}}
    return {"routeKey": route, "requestContext": claims}


@dataclass
class Traffic:
    """Requests to one environment, one after the other: it writes an order, and reads."""

    environment: Environment
    owner: str = field(default_factory=lambda: str(uuid.uuid4()))
    acknowledged: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    failed: list[Answer] = field(default_factory=list)
    served: int = 0

    def __post_init__(self) -> None:
        """Start nothing yet."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Traffic":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            order = str(uuid.uuid4())
            answer = self.environment.invoke(order_of(self.owner, order))
            if answer.get("statusCode") == 201:
                self.acknowledged.add(order)
            elif "COMMIT" in answer.get("body", ""):
                self.unknown.add(order)
            self._count(answer, 201)
            self._count(self.environment.invoke(list_of(self.owner)), 200)

    def _count(self, answer: Answer, expected: int) -> None:
        if answer.get("statusCode") == expected:
            self.served += 1
        else:
            self.failed.append(answer)


@contextmanager
def traffic(handler: Path, pooler: PoolerFixture, **changes: str) -> Iterator[list[Traffic]]:
    """Have two environments serve requests until the block ends."""
    with ExitStack() as stack:
        environments = [
            stack.enter_context(Environment(handler, pooler, **changes)) for _ in range(2)
        ]
        yield [stack.enter_context(Traffic(each)) for each in environments]


def serve_more(all_traffic: list[Traffic], count: int = 20) -> None:
    """Wait until each environment has served so many more requests."""
    goals = [each.served + count for each in all_traffic]

    def served() -> bool:
        return all(each.served >= goal for each, goal in zip(all_traffic, goals, strict=True))

    wait_until(served, 60, f"requests, after {[each.failed for each in all_traffic]}")


def audit(orders: Admin, all_traffic: list[Traffic]) -> None:
    """Hold the rows against the answers: nothing acknowledged is lost, nothing is there twice."""
    rows = Counter(str(row[0]) for row in orders.execute("SELECT id FROM orders").fetchall())
    acknowledged = {order for each in all_traffic for order in each.acknowledged}
    unknown = {order for each in all_traffic for order in each.unknown}
    assert len(acknowledged) > 20
    assert {count for count in rows.values() if count > 1} == set(), "a write was done twice"
    assert acknowledged <= rows.keys(), "an acknowledged write is lost"
    assert rows.keys() - acknowledged <= unknown, "a failed write was done"


def failures(all_traffic: list[Traffic]) -> list[Answer]:
    """List what was not answered as it should have been."""
    return [answer for each in all_traffic for answer in each.failed]


def directly(pooler: PoolerFixture) -> dict[str, str]:
    """Return the variables that lead to PostgreSQL itself."""
    server = pooler.postgres
    return {"PGPORT": str(server.port), "LAMBDA_PG_CA_PEM": server.ca_file.read_text()}


def test_two_callers_see_their_own_rows(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """They share an environment and a server connection. After an error nothing is left open."""
    ann, bob, order = (str(uuid.uuid4()) for _ in range(3))
    with Environment(handler, new_pooler.start(MAX_DB_CONNECTIONS="1")) as environment:
        assert environment.invoke(order_of(ann, order, 995))["statusCode"] == 201
        seen = environment.invoke(list_of(ann))
        assert json.loads(seen["body"]) == [{"id": order, "total": 995}]
        assert json.loads(environment.invoke(list_of(bob))["body"]) == []
        assert environment.invoke(order_of(ann, "no uuid"))["code"] == "22P02"
        assert json.loads(environment.invoke(list_of(bob))["body"]) == []
        with new_pooler.connect() as other:  # the same server connection, without claims
            assert other.execute("SELECT count(*) FROM orders").fetchone() == (0,)


FAIL: Final = """
CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF nextval('tries') = 1 THEN RAISE SQLSTATE '{}'; END IF; RETURN NEW; END
$$
"""


def test_a_conflict_is_retried_and_no_other_error_of_a_statement(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """The first INSERT fails, a second one would not."""
    orders.execute("CREATE SEQUENCE tries")
    orders.execute("GRANT USAGE ON SEQUENCE tries TO public")
    orders.execute(FAIL.format("40001"))
    orders.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    tried = {}
    try:
        with Environment(handler, new_pooler, **directly(new_pooler)) as environment:
            for state in ("40001", "40P01", "55P03", "23514", "57014"):
                orders.execute(FAIL.format(state))
                orders.execute("ALTER SEQUENCE tries RESTART")
                answer = environment.invoke(order_of("ann", str(uuid.uuid4())))
                row = orders.execute("SELECT last_value FROM tries").fetchone()
                tried[state] = row and (row[0], answer.get("code"))
    finally:
        orders.execute("DROP FUNCTION fail CASCADE")
        orders.execute("DROP SEQUENCE tries")
    assert tried == {
        "40001": (2, None),
        "40P01": (2, None),
        "55P03": (1, "55P03"),
        "23514": (1, "23514"),
        "57014": (1, "57014"),
    }
    assert orders.execute("SELECT count(*) FROM orders").fetchone() == (2,)


MISTAKES: Final = """
import { transaction } from "./db.js";

const id = async (client) => (await client.query("SELECT pg_current_xact_id()::text")).rows[0];
const works = {
  swallow: () => transaction({}, (client) => client.query("SELECT 1/0").catch(() => ({}))),
  atOnce: () =>
    Promise.all(
      [1, 2].map(() => transaction({}, async (client) => [await id(client), await id(client)])),
    ),
};
export const handler = (event) => works[event]();
"""


def test_a_handler_s_mistakes_lose_and_mix_nothing(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """A swallowed error is raised at COMMIT, and transactions at once run one after the other."""
    mistakes = handler.with_name("mistakes.js")
    mistakes.write_text(MISTAKES)
    with Environment(mistakes, new_pooler, **directly(new_pooler)) as environment:
        assert "nothing was committed" in environment.invoke("swallow")["error"]
        (first, again), (second, once_more) = environment.invoke("atOnce")
        assert (first, second) == (again, once_more)
        assert first != second


def test_another_server_than_the_pooler_is_refused(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """Neither another authority's certificate is good enough, nor one for another name."""
    new_pooler.start()
    for change, reason in (
        ({"LAMBDA_PG_CA_PEM": Authority.create("other").pem}, "certificate"),
        ({"PGHOST": "localhost"}, "ERR_TLS_CERT_ALTNAME_INVALID"),
    ):
        changes = {"LAMBDA_PG_CHECKOUT_TIMEOUT": "3"} | change
        with Environment(handler, new_pooler, **changes) as environment:
            assert environment.invoke(list_of("ann"))["statusCode"] == 503
            assert reason in environment.log.read_text()


def test_a_connection_that_ended_in_a_freeze_costs_no_request(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """The pooler was killed and another one started while the environment was frozen."""
    with Environment(handler, new_pooler.start()) as environment:
        assert environment.invoke(list_of("ann"))["statusCode"] == 200
        with environment.frozen():
            new_pooler.process.kill()
            new_pooler.process.start()
        assert environment.invoke(list_of("ann"))["statusCode"] == 200


def test_a_login_that_is_refused_is_tried_with_the_previous_version(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """In the middle of a rotation the secret may be ahead of what it is for."""
    login = new_pooler.login
    new_pooler.service.put(login.arn, {"username": login.name, "password": "not-set-yet"})
    with Environment(handler, new_pooler, **directly(new_pooler)) as environment:
        assert environment.invoke(list_of("ann"))["statusCode"] == 200


def test_a_lost_answer_to_commit_is_reported_and_not_retried(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """The pooler is killed while PostgreSQL commits: the order is there, once."""
    orders.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(2); RETURN NULL; END$$"
    )
    orders.execute(
        "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON orders"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    committing = "SELECT FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'"
    try:
        with (
            Environment(handler, new_pooler.start()) as environment,
            ThreadPoolExecutor(1) as thread,
        ):
            request = thread.submit(environment.invoke, order_of("ann", str(uuid.uuid4())))
            wait_until(lambda: orders.execute(committing).rowcount == 1, 20, "COMMIT")
            new_pooler.process.kill()
            new_pooler.process.start()
            answer = request.result()
        assert (answer["statusCode"], "COMMIT" in answer["body"]) == (503, True)
        wait_until(lambda: orders.execute(committing).rowcount == 0, 20, "the end of COMMIT")
        assert orders.execute("SELECT count(*) FROM orders").fetchone() == (1,)
    finally:
        orders.execute("DROP FUNCTION wait CASCADE")


def log_in_again(pooler: PoolerFixture) -> None:
    """Let the pooler replace its server connections, as it does when their lifetime is over."""
    with psycopg.connect(pooler.process.admin_dsn, autocommit=True) as console:
        console.execute("RECONNECT")


def test_a_rotation_fails_no_request(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """Two rotations; every connect after them needs the secret again."""
    pooler = new_pooler.start(REFRESH_INTERVAL="1")
    with traffic(handler, pooler, LAMBDA_PG_MAX_LIFETIME=RECONNECTING) as all_traffic:
        serve_more(all_traffic)
        for password in ("second-canary", "third-canary"):
            old = pooler.login.password
            pooler.rotate_password(password)
            log_in_again(pooler)
            wait_until(partial(is_refused, pooler, old), 30, "the pooler to refuse")
            serve_more(all_traffic)
    assert failures(all_traffic) == []
    audit(orders, all_traffic)


def test_a_replaced_pooler_fails_no_request(
    handler: Path, orders: Admin, new_pooler: PoolerFixture
) -> None:
    """It drains, as when ECS replaces a task."""
    pooler = new_pooler.start()
    with traffic(handler, pooler) as all_traffic:
        for _ in range(2):
            serve_more(all_traffic)
            pooler.process.stop()
            pooler.process.start()
        serve_more(all_traffic)
    assert failures(all_traffic) == []
    audit(orders, all_traffic)
