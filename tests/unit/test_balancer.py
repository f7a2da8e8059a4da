"""The balancer as a process: which target a flow goes to, and that its bytes arrive as sent."""

import asyncio
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.pooler_service import balancer as balancer_module
from lambda_pg_cdk.local.pooler_service.balancer import Targets, most_flows
from lambda_pg_cdk.local.pooler_service.front import Front
from lambda_pg_cdk.local.processes import json_process

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
SECONDS = 10.0


class Balancer:
    """A balancer of the test's own, and targets that accept when the test does."""

    def __init__(self, log: Path, open_files: int | None = None) -> None:
        """Start it; it has no targets yet."""
        self.port = processes.free_port()
        self._listeners: dict[str, socket.socket] = {}
        self.opened: list[socket.socket] = []

        def limit() -> None:
            if open_files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "lambda_pg_cdk.local.pooler_service.balancer",
                    *2 * [str(self.port)],
                ],
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                preexec_fn=limit,  # noqa: PLW1509 - no thread has been started yet
            )
        self.ask()

    def ask(self, **order: list[str]) -> dict[str, int]:
        """Say something; return how many flows each target has."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline())["flows"])

    def listen(self, *addresses: str, backlog: int = 128) -> None:
        """Have targets listen there, and take new flows."""
        for address in addresses:
            listener = socket.create_server((address, self.port), backlog=backlog)
            listener.settimeout(SECONDS)
            self._listeners[address] = listener
        self.register(*addresses)

    def register(self, *addresses: str) -> None:
        """Let exactly these take new flows."""
        self.ask(registered=list(addresses))

    def stop_listening(self, address: str) -> None:
        """Have a target refuse connections."""
        self._listeners.pop(address).close()

    def connect(self) -> socket.socket:
        """Open a flow."""
        client = socket.create_connection(("127.0.0.1", self.port), SECONDS)
        self.opened.append(client)
        return client

    def accept(self, address: str) -> socket.socket:
        """Take the next flow that comes to a target."""
        server, _ = self._listeners[address].accept()
        server.settimeout(SECONDS)
        self.opened.append(server)
        return server

    def flow(self, address: str) -> tuple[socket.socket, socket.socket]:
        """Open a flow that goes to a target; return both ends."""
        client = self.connect()
        return client, self.accept(address)

    def until_flows(self, **expected: int) -> None:
        """Wait until the targets have so many flows; names are the last digit's: `a=1`."""
        names = {"a": A, "b": B, "c": C}
        wanted = {names[name]: count for name, count in expected.items()}
        processes.wait_until(lambda: self.ask() == wanted, SECONDS, f"{wanted}, not {self.ask()}")

    def close(self) -> None:
        """End it."""
        for each in [*self.opened, *self._listeners.values()]:
            each.close()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(SECONDS)


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Balancer]:
    """A balancer without targets; nothing went wrong in it at the end."""
    made = Balancer(tmp_path / "log")
    yield made
    made.close()
    assert made.process.returncode == 0
    assert (tmp_path / "log").read_text() == ""


def receive(source: socket.socket, count: int) -> bytes:
    """Read so many bytes, or fewer when the stream ends."""
    data = b""
    while len(data) < count:
        chunk = source.recv(count - len(data))
        if not chunk:
            break
        data += chunk
    return data


# Where a flow goes


def test_bytes_go_both_ways(balancer: Balancer) -> None:
    """As they were sent."""
    balancer.listen(A)
    client, server = balancer.flow(A)
    client.sendall(b"question")
    assert receive(server, 8) == b"question"
    server.sendall(b"answer")
    assert receive(client, 6) == b"answer"


def test_what_comes_before_the_target_is_connected_waits(balancer: Balancer) -> None:
    """A target with a full queue answers a second later; nothing is lost meanwhile."""
    balancer.listen(A, backlog=0)
    balancer.connect()
    balancer.until_flows(a=1)
    client = balancer.connect()
    client.sendall(b"early")
    balancer.until_flows(a=2)
    balancer.accept(A)
    assert receive(balancer.accept(A), 5) == b"early"


def test_an_end_that_comes_before_the_target_is_connected_waits_too(balancer: Balancer) -> None:
    """It is passed on after the bytes before it, and the answer still comes."""
    balancer.listen(A, backlog=0)
    balancer.connect()
    balancer.until_flows(a=1)
    client = balancer.connect()
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    balancer.until_flows(a=2)
    balancer.accept(A)
    server = balancer.accept(A)
    assert receive(server, 6) == b"early"
    server.sendall(b"answer")
    assert receive(client, 6) == b"answer"


def test_a_burst_spreads_over_all_targets(balancer: Balancer) -> None:
    """By chance: each of three has a third, give or take five standard deviations."""
    balancer.listen(A, B, C)
    for _ in range(150):
        balancer.connect()
    processes.wait_until(lambda: sum(balancer.ask().values()) == 150, SECONDS, "150 flows")
    flows = balancer.ask()
    assert all(20 <= flows[address] <= 80 for address in (A, B, C)), flows
    for address, count in flows.items():
        for _ in range(count):
            balancer.accept(address)
    for end in balancer.opened:
        end.close()
    balancer.until_flows(a=0, b=0, c=0)


def test_a_target_that_its_clients_leave_is_not_preferred() -> None:
    """One that hangs has few flows; it gets half of the new ones, and not all of them."""
    targets = Targets()
    targets.update([A, B])
    for _ in range(50):
        targets.begin(B)
    first = [targets.choices()[0] for _ in range(1000)]
    assert 400 <= first.count(A) <= 600


def test_a_target_that_comes_later_takes_the_next_flows(balancer: Balancer) -> None:
    """Those that are there stay where they are."""
    balancer.listen(A)
    first = [balancer.flow(A) for _ in range(3)]
    balancer.listen(B)
    balancer.flow(B)
    balancer.until_flows(a=3, b=1)
    for client, server in first:
        client.sendall(b"still here")
        assert receive(server, 10) == b"still here"


def test_a_draining_target_keeps_its_flows_and_gets_no_more(balancer: Balancer) -> None:
    """It is forgotten with its last flow."""
    balancer.listen(A)
    client, server = balancer.flow(A)
    balancer.listen(B)
    for _ in range(3):
        balancer.flow(B)
    balancer.until_flows(a=1, b=3)
    client.sendall(b"x")
    assert receive(server, 1) == b"x"
    client.close()
    assert receive(server, 1) == b""
    server.close()
    balancer.until_flows(b=3)


def test_a_target_that_refuses_is_passed_over(balancer: Balancer) -> None:
    """The client does not notice."""
    balancer.listen(A, B)
    balancer.stop_listening(A)
    for _ in range(4):
        client, server = balancer.flow(B)
        server.sendall(b"x")
        assert receive(client, 1) == b"x"
    balancer.until_flows(a=0, b=4)


def test_without_targets_connections_are_refused(balancer: Balancer) -> None:
    """At once, as without a listener; with the next target they are taken again."""
    with pytest.raises(ConnectionRefusedError):
        balancer.connect()
    balancer.listen(A)
    balancer.flow(A)
    balancer.register()
    with pytest.raises(ConnectionRefusedError):
        balancer.connect()
    balancer.register(A)
    balancer.flow(A)
    balancer.until_flows(a=2)


def test_the_port_stays_reserved_without_targets(balancer: Balancer) -> None:
    """No other program can take it meanwhile, not even by chance."""
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind(("127.0.0.1", balancer.port))


def test_a_client_is_reset_where_every_target_refuses(balancer: Balancer) -> None:
    """It learns that at once."""
    balancer.listen(A)
    balancer.stop_listening(A)
    with pytest.raises(ConnectionResetError):
        balancer.connect().recv(1)
    balancer.until_flows(a=0)


# What a flow is


def test_each_direction_ends_by_itself(balancer: Balancer) -> None:
    """A client that has finished sending still gets the answer, and so does a target."""
    balancer.listen(A)
    client, server = balancer.flow(A)
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert receive(server, 100) == b"question"
    server.sendall(b"answer")
    server.close()
    assert receive(client, 100) == b"answer"
    balancer.until_flows(a=0)
    client, server = balancer.flow(A)
    server.shutdown(socket.SHUT_WR)
    assert receive(client, 1) == b""
    client.sendall(b"more")
    assert receive(server, 4) == b"more"


@pytest.mark.parametrize("from_client", [True, False], ids=["client", "target"])
def test_a_reset_is_passed_on_as_one(balancer: Balancer, from_client: bool) -> None:
    """The remaining side gets a reset, not the end of a stream."""
    balancer.listen(A)
    client, server = balancer.flow(A)
    server.sendall(b"x")
    assert receive(client, 1) == b"x"
    broken, left = (client, server) if from_client else (server, client)
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    broken.close()
    with pytest.raises(ConnectionResetError):
        left.recv(1)
    balancer.until_flows(a=0)


def test_what_was_sent_before_the_end_arrives(balancer: Balancer) -> None:
    """Megabytes to a slow reader, and then the end."""
    balancer.listen(A)
    client, server = balancer.flow(A)
    data = os.urandom(8_000_000)

    def send() -> None:
        server.sendall(data)
        server.close()

    sender = threading.Thread(target=send)
    sender.start()
    client.shutdown(socket.SHUT_WR)
    assert receive(client, len(data) + 1) == data
    sender.join()


def test_a_reader_that_does_not_read_holds_up_the_sender(balancer: Balancer) -> None:
    """The balancer keeps little of it: the sender's own buffers fill, and it waits."""
    balancer.listen(A)
    client, server = balancer.flow(A)
    client.setblocking(False)
    sent = fill(client)
    assert sent < 64_000_000
    received = 0
    while received < sent:
        received += len(server.recv(1_000_000))
    assert received == sent


def fill(client: socket.socket) -> int:
    """Send until nothing more is taken for a while; return how much was."""
    sent, chunk = 0, b"x" * 100_000
    while sent < 100_000_000:
        _, writable, _ = select.select([], [client], [], 0.5)
        if not writable:
            return sent
        with suppress(BlockingIOError):
            sent += client.send(chunk)
    return sent


def test_small_messages_are_not_held_back() -> None:
    """Both connections of a flow have Nagle's algorithm off: it would wait 40 ms now and then."""
    port = processes.free_port()
    here = balancer_module.Balancer(port, port, 1)
    with socket.create_server((A, port)):
        here.update([A])
        client = socket.create_connection(("127.0.0.1", port), SECONDS)
        while not (sides := [side for flow in here.flows for side in flow.sides]):
            here.turn(SECONDS)
        told = [each.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sides]
        client.close()
        here.close()
    assert [bool(option) for option in told] == [True, True]


def test_a_target_on_loopback_is_connected_to_without_another_turn() -> None:
    """The kernel has done so by then: to be woken for it would cost as much as a message."""
    port = processes.free_port()
    here = balancer_module.Balancer(port, port, 1)
    with socket.create_server((A, port)):
        here.update([A])
        client = socket.create_connection(("127.0.0.1", port), SECONDS)
        here.turn(SECONDS)
        sides = [len(flow.sides) for flow in here.flows]
        client.close()
        here.close()
    assert sides == [2]


# Bounds and ends


def test_a_flow_too_many_is_reset_and_the_others_go_on(tmp_path: Path) -> None:
    """The process runs out of flows before it runs out of files."""
    small = Balancer(tmp_path / "log", open_files=84)
    try:
        small.listen(A)
        flows = [small.flow(A) for _ in range(10)]
        with pytest.raises(ConnectionResetError):
            small.connect().recv(1)
        for client, server in flows:
            client.sendall(b"x")
            assert receive(server, 1) == b"x"
        flows[0][0].close()
        flows[0][1].close()
        small.until_flows(a=9)
        small.flow(A)
    finally:
        small.close()
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such policy")
def test_its_messages_do_not_interrupt_their_senders(balancer: Balancer) -> None:
    """It has the kernel's policy for batches: it wakes up less often in a storm."""
    assert os.sched_getscheduler(balancer.process.pid) == os.SCHED_BATCH


def test_it_ends_with_its_input(balancer: Balancer) -> None:
    """So it never outlives the daemon, however that ends; flows end with it."""
    balancer.listen(A)
    client, _ = balancer.flow(A)
    assert balancer.process.stdin is not None
    balancer.process.stdin.close()
    assert balancer.process.wait(SECONDS) == 0
    with suppress(ConnectionResetError):
        assert client.recv(1) == b""


# The daemon's side


@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError])
def test_an_answer_that_nobody_waited_for_is_never_taken_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """It may still come: the process that owes it is ended, and another takes its place."""

    async def lose_an_answer(front: Front) -> None:
        """Give up while the balancer is frozen, which goes on afterwards if it is still there."""
        if not front.running:
            await front.start()
        process = front._process._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(
                json_process, "_ANSWER_SECONDS", 0.1 if error is TimeoutError else SECONDS
            )
            asking = asyncio.ensure_future(front.flows())
            await asyncio.sleep(0)
            if error is asyncio.CancelledError:
                asking.cancel()
            with pytest.raises(error):
                await asking
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)

    async def story() -> None:
        port = processes.free_port()
        front = Front(tmp_path / "log", port, port)
        try:
            for _ in range(2):
                await lose_an_answer(front)
            await front.register([A])
            assert await front.flows() == {A: 0}
        finally:
            await front.close()

    asyncio.run(story())


def test_flows_are_counted_by_target() -> None:
    """A target without a flow that takes none is forgotten; one that comes back is counted on."""
    targets = Targets()
    assert not targets
    targets.update([A, B])
    targets.begin(A)
    targets.begin(A)
    targets.begin(B)
    assert sorted(targets.choices()) == [A, B]
    targets.update([B])
    assert targets.choices() == [B]
    targets.end(A)
    assert targets.flows == {A: 1, B: 1}
    targets.update([A, B])
    targets.end(A)
    assert targets.flows == {A: 0, B: 1}
    targets.update([B])
    assert targets.flows == {B: 1}


@pytest.mark.parametrize("unlimited", [-1, resource.RLIM_INFINITY])
def test_flows_are_bounded_by_open_files(unlimited: int) -> None:
    """Two for each flow, and some for the process itself."""
    assert most_flows(1064) == 500
    assert most_flows(unlimited) >= 100_000
