"""The relay between PgBouncer and its peers, with a socket for each of them."""

import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambda_pg_cdk.pgbouncer.relay import CODE, REQUEST, Relay

SECONDS = 10


@pytest.fixture
def task() -> Iterator[socket.socket]:
    """A task that listens, with the number 258."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        yield listener


@pytest.fixture
def path() -> Iterator[Path]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="lpg-", dir="/tmp") as folder:
        yield Path(folder) / "relay"


@pytest.fixture
def relay(path: Path, task: socket.socket) -> Relay:
    """A relay that knows the task."""
    relay = Relay(path, task.getsockname()[1])
    relay.addresses = {258: "127.0.0.1"}
    relay.start()
    return relay


def request_for(number: int, *, length: int = REQUEST.size, code: int = CODE) -> bytes:
    """Build a cancel request with a key of the task that has a number."""
    return struct.pack("!IIB", length, code, 7) + number.to_bytes(2, "little") + b"secre"


def connect(path: Path) -> socket.socket:
    """Come as PgBouncer does."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(SECONDS)
    client.connect(str(path))
    return client


def test_a_request_goes_as_it_is_to_the_task_that_its_key_names(
    relay: Relay, path: Path, task: socket.socket
) -> None:
    """Who has sent it is kept until the task is done with it, as PgBouncer itself would do."""
    request = request_for(258)
    with connect(path) as client:
        client.sendall(request)
        received, _ = task.accept()
        with received:
            assert received.recv(1024) == request
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
        client.settimeout(SECONDS)
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "message",
    [
        request_for(9),
        request_for(258, code=80_877_103),
        request_for(258, length=17),
        request_for(258)[:8],
        b"",
    ],
)
def test_what_is_no_request_for_a_known_task_goes_nowhere(
    relay: Relay, path: Path, task: socket.socket, message: bytes
) -> None:
    """It ends without an answer, and no task hears of it."""
    with connect(path) as client:
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    task.setblocking(False)
    with pytest.raises(BlockingIOError):
        task.accept()


def test_a_task_that_is_not_reached_is_named_in_the_log(
    relay: Relay, path: Path, task: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing rule of a security group would otherwise show nowhere."""
    task.close()
    with connect(path) as client:
        client.sendall(request_for(258))
        assert client.recv(1) == b""
    (record,) = caplog.records
    assert "for a statement of 127.0.0.1 may be lost" in record.getMessage()


def test_tasks_can_change_while_it_serves(relay: Relay, path: Path, task: socket.socket) -> None:
    """A new task is reached without another socket."""
    relay.addresses = {16383: "127.0.0.1"}
    with connect(path) as client:
        client.sendall(request_for(16383))
        received, _ = task.accept()
        received.close()
        assert client.recv(1) == b""


def test_a_socket_that_a_killed_supervisor_has_left_is_in_nobodys_way(
    path: Path, task: socket.socket
) -> None:
    """The folder may outlive the process."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    Relay(path, 1).start()
    with connect(path) as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
