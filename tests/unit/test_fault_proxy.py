"""The fault proxy: what passes, what does not, and that each fault ends when it should."""

import select
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from lambda_pg_cdk.local.faults.proxy import Connections, Direction, FaultProxy, can_blackhole
from tests.support.waiting import wait_until

QUIET = 0.1
"""Seconds without a byte after which a test believes that none comes."""


class Wire:
    """A server under the test's hand, and the proxy in front of it."""

    def __init__(self, proxy: FaultProxy, listener: socket.socket) -> None:
        """Take both; they are opened and closed elsewhere."""
        self.proxy = proxy
        self._listener = listener
        self.opened: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Open a connection; return the client's socket and the server's."""
        client = socket.create_connection(("127.0.0.1", self.proxy.port), 5)
        server, _ = self._listener.accept()
        server.settimeout(5)
        self.opened += [client, server]
        return client, server


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that accepts when the test does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


@pytest.fixture
def wire(listener: socket.socket) -> Iterator[Wire]:
    """A proxy in front of the server."""
    with FaultProxy(*listener.getsockname()) as proxy:
        wire = Wire(proxy, listener)
        yield wire
        for opened in wire.opened:
            opened.close()


def receive(source: socket.socket, count: int) -> bytes:
    """Read so many bytes, or fewer when the stream ends."""
    data = b""
    while len(data) < count:
        chunk = source.recv(count - len(data))
        if not chunk:
            break
        data += chunk
    return data


def is_quiet(source: socket.socket) -> bool:
    """Tell whether nothing arrives for a while, not even an end."""
    before = source.gettimeout()
    source.settimeout(QUIET)
    try:
        source.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        source.settimeout(before)
    return False


def is_reset(source: socket.socket) -> bool:
    """Tell whether the connection ends with a RST."""
    try:
        source.recv(1)
    except ConnectionResetError:
        return True
    return False


def ways(client: socket.socket, server: socket.socket) -> list[tuple[socket.socket, socket.socket]]:
    """List both directions as (source, sink)."""
    return [(client, server), (server, client)]


def test_without_a_fault_everything_passes(wire: Wire) -> None:
    """Bytes and the end of the stream go through in both directions."""
    client, server = wire.connect()
    for source, sink in ways(client, server):
        source.sendall(b"hello")
        assert receive(sink, 5) == b"hello"
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.sendall(b"bye")
    assert receive(client, 3) == b"bye"
    server.close()
    assert client.recv(1) == b""


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_bulk_passes_whole_to_a_slow_reader(wire: Wire, seconds: float) -> None:
    """Several megabytes arrive as they were sent, with latency too, and are not piled up."""
    client, server = wire.connect()
    data = bytes(range(256)) * 20_000
    sender = threading.Thread(target=client.sendall, args=[data])
    with wire.proxy.latency(seconds):
        sender.start()
        time.sleep(0.05)  # the reader is slow
        assert receive(server, len(data)) == data
    sender.join()


def test_latency_delays_both_directions_and_keeps_the_order(wire: Wire) -> None:
    """A round trip takes twice the latency; what is under way is not overtaken."""
    client, server = wire.connect()
    with wire.proxy.latency(0.1):
        started = time.monotonic()
        client.sendall(b"a")
        assert receive(server, 1) == b"a"
        server.sendall(b"b")
        assert receive(client, 1) == b"b"
        assert 0.2 <= time.monotonic() - started < 1
    under_way = threading.Event()
    with wire.proxy.latency(0.3), wire.proxy.on_client_data(lambda _: under_way.set()):
        client.sendall(b"1")
        assert under_way.wait(5)
    client.sendall(b"2")
    assert receive(server, 2) == b"12"


@pytest.mark.parametrize("direction", [None, "to_server", "to_client"])
def test_a_stall_holds_back_and_lets_go(wire: Wire, direction: Direction | None) -> None:
    """Nothing passes in the stalled directions, and everything once the stall has ended."""
    client, server = wire.connect()
    names: list[Direction] = ["to_server", "to_client"]
    with wire.proxy.stall(direction):
        for (source, sink), name in zip(ways(client, server), names, strict=True):
            source.sendall(b"held")
            assert is_quiet(sink) is (direction in {None, name})
    for _, sink in ways(client, server):
        assert receive(sink, 4) == b"held"


def test_a_stalled_peer_takes_only_what_buffers_hold(wire: Wire) -> None:
    """A sender of much is blocked, as by a process that hangs."""
    client, _ = wire.connect()
    client.settimeout(0.3)
    with wire.proxy.stall(), pytest.raises(TimeoutError):
        client.sendall(bytes(50_000_000))


def test_so_does_one_that_is_stalled_from_its_beginning(wire: Wire) -> None:
    """A connection opened during the stall is read no further either."""
    sent = 0
    with wire.proxy.stall():
        client, _ = wire.connect()
        client.setblocking(False)
        while sent < 50_000_000 and select.select([], [client], [], 0.5)[1]:
            sent += client.send(bytes(100_000))
    assert sent < 50_000_000


def test_two_stalls_end_with_the_last(wire: Wire) -> None:
    """Faults of the same kind nest."""
    client, server = wire.connect()
    with wire.proxy.stall():
        with wire.proxy.stall():
            client.sendall(b"x")
        assert is_quiet(server)
    assert receive(server, 1) == b"x"


@pytest.mark.parametrize(
    ("connections", "old_stalled", "new_stalled"),
    [("all", True, True), ("open", True, False), ("new", False, True)],
)
def test_a_fault_applies_to_the_connections_it_names(
    wire: Wire, connections: Connections, old_stalled: bool, new_stalled: bool
) -> None:
    """Those open when it begins, those opened while it lasts, or all."""
    old = wire.connect()
    with wire.proxy.stall(connections=connections):
        new = wire.connect()
        for (client, server), stalled in ((old, old_stalled), (new, new_stalled)):
            client.sendall(b"x")
            assert is_quiet(server) is stalled
    for client, server in (old, new):
        client.sendall(b"y")
        assert receive(server, 2) == b"xy"


needs_filters = pytest.mark.skipif(
    not can_blackhole(), reason="this kernel lets only root drop a socket's packets, or nobody"
)


@needs_filters
def test_a_blackhole_acknowledges_nothing(wire: Wire) -> None:
    """TCP's own timeout ends the connection: in a stall it would not."""
    stalled, _ = wire.connect()
    lost, _ = wire.connect()
    for client in (stalled, lost):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    with wire.proxy.stall():
        stalled.sendall(b"x")
        wait_until(lambda: unacknowledged(stalled) == 0)
        with wire.proxy.blackhole():
            lost.sendall(b"x")
            with pytest.raises(TimeoutError, match="timed out"):
                lost.recv(1)
            assert unacknowledged(stalled) == 0


def unacknowledged(sock: socket.socket) -> int:
    """Count the packets that were sent and not acknowledged (tcp_info.tcpi_unacked)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[24:28], sys.byteorder)


@needs_filters
def test_a_blackhole_answers_no_syn_and_ends(wire: Wire) -> None:
    """A new client waits in connect; afterwards old and new ones are served."""
    client, server = wire.connect()
    with wire.proxy.blackhole():
        client.sendall(b"x")
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", wire.proxy.port), 0.2)
    assert receive(server, 1) == b"x"
    with wire.proxy.blackhole(connections="open"):
        wire.connect()


def test_a_reset_ends_both_sides(wire: Wire) -> None:
    """Client and server see a RST, new clients are served, and nothing stays open."""
    client, server = wire.connect()
    wire.proxy.reset()
    assert is_reset(client)
    assert is_reset(server)
    assert wire.proxy.open_connections == 0
    wire.connect()


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_a_half_close_ends_one_direction(wire: Wire, direction: Direction) -> None:
    """One side reads the end of the stream, and the other still gets what it sends."""
    pair = wire.connect()
    source, sink = pair if direction == "to_server" else pair[::-1]
    wire.proxy.half_close(direction)
    assert sink.recv(1) == b""
    source.sendall(b"lost")
    sink.sendall(b"heard")
    assert receive(source, 5) == b"heard"


def test_refused_clients_come_back_to_the_same_port(wire: Wire) -> None:
    """Open connections go on, new ones are refused, until the fault ends."""
    client, server = wire.connect()
    with wire.proxy.refuse():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", wire.proxy.port), 5)
        client.sendall(b"x")
        assert receive(server, 1) == b"x"
    wire.connect()


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_a_cut_passes_so_many_bytes(wire: Wire, count: int, direction: Direction) -> None:
    """The bytes before the cut arrive, also in several pieces, and a RST follows them."""
    pair = wire.connect()
    source, sink = pair if direction == "to_server" else pair[::-1]
    with wire.proxy.cut_after(count, direction):
        sink.sendall(b"the other way is free")
        assert receive(source, 21) == b"the other way is free"
        for byte in b"abcde"[:count]:
            source.sendall(bytes([byte]))
        assert receive(sink, count) == b"abcde"[:count]
        assert is_quiet(sink)
        source.sendall(b"f")
        assert is_reset(sink)


def test_a_cut_inside_a_chunk_splits_it(wire: Wire) -> None:
    """What was sent at once arrives in part, then the connection is closed."""
    client, server = wire.connect()
    with wire.proxy.cut_after(3, then="close"):
        server.sendall(b"abcdef")
        assert receive(client, 6) == b"abc"
        assert server.recv(1) == b""


def test_a_cut_that_stalls_lets_go_at_its_end(wire: Wire) -> None:
    """Both directions stand still after the cut, and lose nothing."""
    client, server = wire.connect()
    with wire.proxy.cut_after(3, then="stall"):
        server.sendall(b"abcdef")
        assert receive(client, 3) == b"abc"
        client.sendall(b"x")
        assert is_quiet(client)
        assert is_quiet(server)
    assert receive(client, 3) == b"def"
    assert receive(server, 1) == b"x"


def test_a_fault_that_data_triggers_applies_to_that_data(wire: Wire) -> None:
    """The server never gets the bytes at whose sight the fault began."""
    client, server = wire.connect()

    def reset_at_commit(data: bytes) -> None:
        if b"COMMIT" in data:
            wire.proxy.reset()

    with wire.proxy.on_client_data(reset_at_commit):
        client.sendall(b"BEGIN")
        assert receive(server, 5) == b"BEGIN"
        client.sendall(b"COMMIT")
        assert is_reset(server)


def test_a_fault_may_be_ended_by_hand_and_only_once(wire: Wire) -> None:
    """A trigger begins it in the proxy's thread, the test ends it in its own."""
    client, server = wire.connect()
    begun = []
    with wire.proxy.on_client_data(lambda _: begun.append(wire.proxy.stall("to_client"))):
        client.sendall(b"x")
        assert receive(server, 1) == b"x"
    server.sendall(b"y")
    assert is_quiet(client)
    for fault in begun * 2:
        fault.end()
    assert receive(client, 1) == b"y"


def test_clients_of_an_absent_server_are_reset(wire: Wire, listener: socket.socket) -> None:
    """The proxy listens, so it cannot refuse: a RST is the nearest to it."""
    listener.close()
    address = ("127.0.0.1", wire.proxy.port)
    # in connect already, or when it reads
    with pytest.raises(ConnectionResetError), socket.create_connection(address, 5) as client:
        client.recv(1)


def test_the_end_of_a_client_reaches_the_server(wire: Wire) -> None:
    """A closed client is a closed connection to the server, and a reset one a reset one."""
    client, server = wire.connect()
    client.close()
    assert server.recv(1) == b""
    server.close()
    wait_until(lambda: wire.proxy.open_connections == 0)


def test_leaving_the_proxy_leaves_nothing(listener: socket.socket) -> None:
    """Connections are reset, the port is closed and the thread has ended."""
    before = set(threading.enumerate())
    with FaultProxy(*listener.getsockname()) as proxy:
        client, _ = (wire := Wire(proxy, listener)).connect()
    assert is_reset(client)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), 5)
    assert set(threading.enumerate()) <= before
    for opened in wire.opened:
        opened.close()
