"""A cancel request reaches its statement through whichever task gets it."""

import itertools
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import psycopg
import pytest

from tests.support.servers import PoolerFixture, answer
from tests.support.tasks import Service, Task
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux answers at every loopback address by itself"
)

FIRST, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
ROUNDS = 3
"""Without peering a request is lost each time, as the control shows, and of a burst up to half."""

BURST = 12
CANCEL_REQUEST = 80877102
"""What stands in the place of the protocol's version."""


@pytest.fixture
def service(new_pooler: PoolerFixture) -> Iterator[Service]:
    """A service without a task yet."""
    with Service(new_pooler) as service:
        yield service


class Sleeper:
    """A client with a statement that does not end by itself."""

    def __init__(self, pooler: PoolerFixture, client: psycopg.Connection[Any]) -> None:
        """Send the statement, and wait until the server runs it."""
        self.client = client
        self._pooler = pooler
        self._threads = ThreadPoolExecutor(1)
        self._outcome: Future[object] = self._threads.submit(client.execute, "SELECT pg_sleep(60)")
        wait_until(self.is_running, 10, "a running statement")

    def is_running(self) -> bool:
        """Ask the server."""
        with psycopg.connect(self._pooler.postgres.superuser_dsn) as observer:
            return running(observer, self._pooler) > 0

    def is_cancelled(self) -> bool:
        """Wait for the statement's end, and tell whether it was a cancel request."""
        return isinstance(self._outcome.exception(10), psycopg.errors.QueryCanceled)

    def close(self) -> None:
        """End the statement, however it is."""
        with psycopg.connect(self._pooler.postgres.superuser_dsn, autocommit=True) as observer:
            end_statements(observer, self._pooler)
        self._threads.shutdown()
        self.client.close()


@contextmanager
def sleeping(service: Service, task: Task, pooler: PoolerFixture) -> Iterator[Sleeper]:
    """Run a statement through a task for as long as the block, unless it is cancelled."""
    sleeper = Sleeper(pooler, service.connect(task))
    try:
        yield sleeper
    finally:
        sleeper.close()


def cancel_through(service: Service, task: Task, sleeper: Sleeper) -> None:
    """Send a cancel request to a task, and wait until it has been dealt with."""
    service.balance(task)
    sleeper.client.cancel_safe(timeout=10)


def console_of(task: Task, command: str) -> list[dict[str, Any]]:
    """Ask a task's console."""
    with psycopg.connect(
        task.admin_dsn, autocommit=True, row_factory=psycopg.rows.dict_row
    ) as console:
        return console.execute(command).fetchall()


# Cancel requests


@pytest.mark.parametrize("addresses", [(FIRST, SECOND), (FIRST, SECOND, THIRD)])
def test_a_cancel_request_reaches_its_statement_through_every_other_task(
    service: Service, new_pooler: PoolerFixture, addresses: tuple[str, ...]
) -> None:
    """Each pair of tasks, in both directions, several times."""
    tasks = service.start(*addresses)
    for task, other in list(itertools.permutations(tasks, 2)) * ROUNDS:
        with sleeping(service, task, new_pooler) as sleeper:
            cancel_through(service, other, sleeper)
            assert sleeper.is_cancelled()
            assert answer(sleeper.client) == 1


def test_of_a_burst_of_cancel_requests_none_is_lost(
    service: Service, new_pooler: PoolerFixture
) -> None:
    """Deadlines that pass at the same moment: PgBouncer alone would lose up to half of these."""
    task, other = service.start(FIRST, SECOND, DEFAULT_POOL_SIZE=str(BURST))
    with ExitStack() as opened:
        threads = opened.enter_context(ThreadPoolExecutor(2 * BURST))
        clients = [opened.enter_context(service.connect(task)) for _ in range(BURST)]
        observer = opened.enter_context(
            psycopg.connect(new_pooler.postgres.superuser_dsn, autocommit=True)
        )
        opened.callback(end_statements, observer, new_pooler)
        for _ in range(ROUNDS):
            statements = [threads.submit(each.execute, "SELECT pg_sleep(60)") for each in clients]
            wait_until(lambda: running(observer, new_pooler) == BURST, 10, "running statements")
            service.balance(other)
            for cancel in [threads.submit(each.cancel_safe, timeout=10) for each in clients]:
                cancel.result()
            ended = [statement.exception(10) for statement in statements]
            assert {type(each) for each in ended} == {psycopg.errors.QueryCanceled}


def running(observer: psycopg.Connection[Any], pooler: PoolerFixture) -> int:
    """Count the running statements of a pooler's clients."""
    row = observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'active'",
        [pooler.login.name],
    ).fetchone()
    assert row is not None
    return int(row[0])


def end_statements(observer: psycopg.Connection[Any], pooler: PoolerFixture) -> None:
    """End what still runs."""
    observer.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE usename = %s AND state = 'active'",
        [pooler.login.name],
    )


def test_without_peering_it_is_lost_in_the_wrong_task(
    service: Service, new_pooler: PoolerFixture
) -> None:
    """The control: however often it is sent there, only the right task ends the statement."""
    task, other = service.start_strangers(FIRST, SECOND)
    with sleeping(service, task, new_pooler) as sleeper:
        for _ in range(2 * ROUNDS):
            cancel_through(service, other, sleeper)
        assert sleeper.is_running()
        cancel_through(service, task, sleeper)
        assert sleeper.is_cancelled()


def test_a_peer_is_told_the_cancel_request_and_nothing_else(
    service: Service, new_pooler: PoolerFixture
) -> None:
    """It goes in the clear, as PgBouncer sends every cancel request: 16 bytes, and the end.

    Neither `server_tls_sslmode` nor the rules of access apply (docs/decisions/0010). Should a
    newer PgBouncer ask for TLS here, this test says so.
    """
    (task,) = service.start(FIRST)
    key = bytearray(b"\x01\x00\x00\x02\x03\x04\x05\x07")
    key[1:3] = (9).to_bytes(2, "little")  # the peer's number; the last two bits count the hops
    with socket.create_server(("127.0.0.9", new_pooler.port)) as peer:
        service.register("127.0.0.9")
        wait_until(lambda: 9 in task.peers, 10, "the new peer")
        peer.settimeout(10)
        with socket.create_connection((task.address, new_pooler.port), timeout=10) as client:
            client.sendall(struct.pack("!II", 16, CANCEL_REQUEST) + key)
            passed_on, _ = peer.accept()
            with passed_on:
                received = passed_on.recv(1024)
            assert client.recv(1) == b""
    assert received == struct.pack("!II", 16, CANCEL_REQUEST) + key[:7] + b"\x06"


# Tasks that come and go


def test_a_new_task_and_one_that_has_gone_are_news_without_a_restart(
    service: Service, new_pooler: PoolerFixture
) -> None:
    """PgBouncer reads its peers anew; no process, client or server connection ends for that."""
    first, second = service.start(FIRST, SECOND)
    pids = [pgbouncer_of_task(task).pid for task in (first, second)]
    with service.connect(first) as client:
        backend = backend_of(client)
        (third,) = service.start(THIRD)
        for task in (first, second):
            with sleeping(service, task, new_pooler) as sleeper:
                cancel_through(service, third, sleeper)
                assert sleeper.is_cancelled()
        service.deregister(SECOND)
        service.await_peers([first, third])
        assert backend_of(client) == backend
    assert [pgbouncer_of_task(task).pid for task in (first, second)] == pids


def pgbouncer_of_task(task: Task) -> psutil.Process:
    """Find the PgBouncer of a task."""
    (child,) = psutil.Process(task.pid).children()
    return child


def backend_of(client: psycopg.Connection[Any]) -> int:
    """Ask for the server process behind a client's connection."""
    row = client.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def test_a_task_has_its_number_before_the_first_client(
    service: Service, new_pooler: PoolerFixture
) -> None:
    """A key that was handed out without the number could never be traced back."""
    task = service.launch(FIRST, PEERS_INTERVAL="3600")
    wait_until(task.answers, 30, "PgBouncer")
    config = {row["key"]: row["value"] for row in console_of(task, "SHOW CONFIG")}
    assert config["peer_id"] == "2"
    assert task.peers == {2}


def test_a_task_whose_address_has_no_number_does_not_start(service: Service) -> None:
    """PgBouncer would take the number 0 for no peering at all, without a word."""
    task = service.launch("127.0.64.0")
    assert task.wait(30) == 78
    assert "cannot use its address 127.0.64.0" in task.log.read_text()


# Cloud Map that fails


class Refusing(ThreadingHTTPServer):
    """A Cloud Map that refuses every call, and counts them."""

    daemon_threads = True

    def __init__(self) -> None:
        """Answer in a thread."""
        super().__init__(("127.0.0.1", 0), RefusingHandler)
        self.calls = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class RefusingHandler(BaseHTTPRequestHandler):
    """Answers every POST alike."""

    def do_POST(self) -> None:
        """Refuse."""
        assert isinstance(self.server, Refusing)
        self.server.calls += 1
        body = json.dumps({"__type": "AccessDeniedException", "message": "no permission"}).encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def test_a_cloud_map_that_refuses_is_one_line_in_the_log(service: Service) -> None:
    """The task serves, knows itself, and goes on asking."""
    with Refusing() as cloud_map:
        url = f"http://127.0.0.1:{cloud_map.server_port}"
        task = service.launch(FIRST, PEERS_INTERVAL="0.05", AWS_ENDPOINT_URL_SERVICEDISCOVERY=url)
        wait_until(task.answers, 30, "PgBouncer")
        wait_until(lambda: cloud_map.calls > 5, 10, "more looks")
        assert task.peers == {2}
        assert task.stop() == 0
        cloud_map.shutdown()
    log = task.log.read_text()
    assert log.count("the last valid peers stay in use") == 1
    assert "AccessDeniedException" in log


def test_a_silent_cloud_map_keeps_nobody_waiting(
    service: Service, new_pooler: PoolerFixture
) -> None:
    """While a look has no answer, a rotation is noticed and a stop is obeyed."""
    pooler = new_pooler
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        task = service.launch(FIRST, REFRESH_INTERVAL="0.2", AWS_ENDPOINT_URL_SERVICEDISCOVERY=url)
        look, _ = silent.accept()
        with look:
            wait_until(task.answers, 30, "PgBouncer")
            pooler.rotate_password("the-next-password")
            wait_until(lambda: logs_in_through(service, task), 5, "a login with the new password")
            assert task.stop(5) == 0


def logs_in_through(service: Service, task: Task) -> bool:
    """Tell whether a new client gets an answer."""
    try:
        with service.connect(task) as client:
            return answer(client) == 1
    except psycopg.OperationalError:
        return False
