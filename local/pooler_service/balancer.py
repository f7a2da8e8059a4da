"""Spread TCP flows over the pooler's tasks, as a network load balancer does.

It is a separate process: in the daemon's loop, every byte of a storm would wait behind its
requests. It reads its targets from standard input, one JSON object a line, answers each line with
its flows, and ends with its input.

It uses sockets and a selector, without asyncio: asyncio costs several times more for each message,
and when a transport stops reading depends on the Python version (3.11.2 ignores `pause_reading()`
in `connection_made`). A client is not read before its target is connected.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import socket
import struct
import sys
from collections import deque
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from time import monotonic
from typing import Any, Final

from lambda_pg_cdk.local import processes

BACKLOG: Final = 4096  # a storm's connections come at once
CONNECT_SECONDS: Final = 3.0
HELD_BYTES: Final = 64 * 1024
"""Bytes that a blocked side may hold before the other side is no longer read."""
OWN_FILES: Final = 64
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
_buffer = bytearray(64 * 1024)  # one for all: what is read is passed on before the next read
_view = memoryview(_buffer)


class Targets:
    """The targets and their flows. A draining target keeps its flows and gets no new ones."""

    def __init__(self) -> None:
        """Begin without targets."""
        self._registered: list[str] = []
        self.flows: dict[str, int] = {}

    def update(self, registered: list[str]) -> None:
        """Send new flows to these targets only."""
        self._registered = registered
        for address in registered:
            self.flows.setdefault(address, 0)
        for address in [a for a, count in self.flows.items() if not count and a not in registered]:
            del self.flows[address]

    def __bool__(self) -> bool:
        """Tell whether there is a target for a new flow."""
        return bool(self._registered)

    def choices(self) -> list[str]:
        """Return the targets for a new flow in random order, like the hash of a load balancer.

        The number of flows does not count: a target that hangs loses its clients, and would get
        all new flows.
        """
        choices = self._registered.copy()
        random.shuffle(choices)
        return choices

    def begin(self, address: str) -> None:
        """Count a flow before it is connected, so that a burst spreads."""
        self.flows[address] = self.flows.get(address, 0) + 1

    def end(self, address: str) -> None:
        """Stop counting a flow."""
        self.flows[address] -= 1
        if not self.flows[address] and address not in self._registered:
            del self.flows[address]


class Side:
    """One of the two connections of a flow: what it reads, the other one writes."""

    other: Side

    def __init__(self, flow: Flow, sock: socket.socket) -> None:
        """Take a connected, non-blocking socket without Nagle's delay; `watch` begins to read."""
        self.socket = sock
        self.held = bytearray()
        """What the socket has not taken yet."""
        self.ended = False  # nothing more comes in
        self._flow = flow
        self._selector = flow.balancer.selector
        self._watched = 0
        self._paused = False  # the other side holds too much

    def watch(self) -> None:
        """Watch for exactly the events that matter now."""
        reading = EVENT_READ if not (self.ended or self._paused) else 0
        wanted = reading | (EVENT_WRITE if self.held else 0)
        if wanted == self._watched:
            return
        if not self._watched:
            self._selector.register(self.socket, wanted, self.handle)
        elif not wanted:
            self._selector.unregister(self.socket)
        else:
            self._selector.modify(self.socket, wanted, self.handle)
        self._watched = wanted

    def handle(self, events: int) -> None:
        """Move bytes; a flow that breaks is reset on both sides."""
        if self._flow.over:  # an earlier event of this round ended it
            return
        try:
            if events & EVENT_WRITE:
                self._write_held()
            if events & EVENT_READ:
                self._read()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._flow.close(with_reset=True)

    def _read(self) -> None:
        count = self.socket.recv_into(_buffer)
        if count:
            self.other.write(_view[:count])
        else:
            self.ended = True
            self.watch()
            self.other.write(b"")

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes, and hold what the socket does not take; then end a stream that is over."""
        if data and not self.held:
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        if data:
            self.held += data
            self.watch()
            self.other.pause(len(self.held) > HELD_BYTES)
        elif not self.held:
            self._end_if_over()

    def _write_held(self) -> None:
        del self.held[: self.socket.send(self.held)]
        if not self.held:
            self.watch()
            self._end_if_over()
        if not self._flow.over:
            self.other.pause(len(self.held) > HELD_BYTES)

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on."""
        if paused != self._paused:
            self._paused = paused
            self.watch()

    def _end_if_over(self) -> None:
        """End this stream once all bytes are sent; the second end ends the flow."""
        if not self.other.ended:
            return
        self.socket.shutdown(socket.SHUT_WR)
        if self.ended and not self.other.held:
            self._flow.close()

    def close(self, *, with_reset: bool) -> None:
        """Close the socket, with a reset if asked for."""
        if self._watched:
            self._selector.unregister(self.socket)
        close(self.socket, with_reset=with_reset)


class Flow:
    """A client's connection, and the connection to the chosen target."""

    def __init__(self, balancer: Balancer, client: socket.socket) -> None:
        """Take the client's connection; it is not read before a target is connected."""
        self.balancer = balancer
        self.over = False
        self.sides: list[Side] = []
        self._client = client
        self._untried = balancer.targets.choices()
        self._address = ""
        self._dialling: socket.socket | None = None

    def dial(self) -> None:
        """Connect to the next target, or reset the client when every target was tried."""
        while self._untried:
            self._address = self._untried.pop(0)
            self.balancer.targets.begin(self._address)
            dialling = self._dialling = socket.socket()
            dialling.setblocking(False)
            target = (self._address, self.balancer.target_port)
            outcome = dialling.connect_ex(target)
            if outcome == errno.EINPROGRESS:  # on loopback it is done by now: ask again
                outcome = dialling.connect_ex(target)
            if outcome in {0, errno.EISCONN}:
                self._begin(dialling)
                return
            if outcome == errno.EALREADY:
                self.balancer.selector.register(dialling, EVENT_WRITE, self._dialled)
                self.balancer.give_up_later(self, dialling)
                return
            self._fail()
        self.close(with_reset=True)

    def _dialled(self, _events: int) -> None:
        dialling = self._dialling
        assert dialling is not None  # noqa: S101 - it is watched as long as it is there
        self.balancer.selector.unregister(dialling)
        if dialling.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail()
            self.dial()
        else:
            self._begin(dialling)

    def give_up(self, dialling: socket.socket) -> None:
        """Try the next target if this one has not answered yet."""
        if self._dialling is dialling:
            self.balancer.selector.unregister(dialling)
            self._fail()
            self.dial()

    def _fail(self) -> None:
        assert self._dialling is not None  # noqa: S101 - the callers have just looked
        self._dialling.close()
        self._dialling = None
        self.balancer.targets.end(self._address)
        self._address = ""

    def _begin(self, target: socket.socket) -> None:
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._dialling = None
        self.sides = client_side, target_side = [Side(self, self._client), Side(self, target)]
        client_side.other, target_side.other = target_side, client_side
        for side in self.sides:
            side.watch()

    def close(self, *, with_reset: bool = False) -> None:
        """End the flow on both sides."""
        self.over = True
        for side in self.sides:
            side.close(with_reset=with_reset)
        if not self.sides:
            close(self._client, with_reset=with_reset)
        if self._address:
            self.balancer.targets.end(self._address)
        self.balancer.flows.discard(self)


class Balancer:
    """The listener, the targets and all flows."""

    def __init__(self, port: int, target_port: int, most_flows: int) -> None:
        """Reserve the port, so that no other program takes it while there are no targets."""
        self.target_port = target_port
        self.targets = Targets()
        self.flows: set[Flow] = set()
        self.selector = DefaultSelector()
        self._port = port
        self._most_flows = most_flows
        self._dialling: deque[tuple[float, Flow, socket.socket]] = deque()
        self._listener: socket.socket | None = None
        self._reservation = _bound(port)

    def update(self, registered: list[str]) -> None:
        """Send new flows to these targets; without any, connections are refused."""
        self.targets.update(registered)
        if self.targets and self._listener is None:
            self._listener = _bound(self._port)
            self._listener.setblocking(False)
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # of all clients
            self._listener.listen(BACKLOG)
            self.selector.register(self._listener, EVENT_READ, self._accept)
        elif not self.targets and self._listener is not None:
            self.selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, _events: int) -> None:
        """Accept all waiting clients; reset those above the limit."""
        while self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except OSError:  # no client waits, or it has gone already
                return
            client.setblocking(False)
            if len(self.flows) >= self._most_flows:
                close(client, with_reset=True)
                continue
            flow = Flow(self, client)
            self.flows.add(flow)
            flow.dial()

    def give_up_later(self, flow: Flow, dialling: socket.socket) -> None:
        """Let a flow try its next target if it still dials this one after CONNECT_SECONDS."""
        self._dialling.append((monotonic() + CONNECT_SECONDS, flow, dialling))

    def turn(self, seconds: float | None = None) -> None:
        """Handle the next events; wait for them at most `seconds`, or for ever."""
        if self._dialling:
            left = max(0.0, self._dialling[0][0] - monotonic())
            seconds = left if seconds is None else min(left, seconds)
        for key, events in self.selector.select(seconds):
            key.data(events)
        while self._dialling and self._dialling[0][0] <= monotonic():
            _, flow, dialling = self._dialling.popleft()
            flow.give_up(dialling)

    def close(self) -> None:
        """Free the port, and reset the flows that are left."""
        for flow in list(self.flows):
            flow.close(with_reset=True)
        self.update([])
        self._reservation.close()
        self.selector.close()


def close(sock: socket.socket, *, with_reset: bool) -> None:
    """Close a socket; with a reset, unsent bytes are lost."""
    if with_reset:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def serve(port: int, target_port: int) -> None:
    """Carry out the orders on standard input, until its end."""
    balancer = Balancer(port, target_port, most_flows(processes.raise_open_files_limit()))
    partial, ended = b"", False

    def listen(_events: int) -> None:
        nonlocal partial, ended
        more = os.read(0, 65536)
        ended = not more
        *lines, partial = (partial + more).split(b"\n")
        for line in lines:
            obey(balancer, json.loads(line))

    balancer.selector.register(0, EVENT_READ, listen)
    while not ended:
        balancer.turn()


def obey(balancer: Balancer, order: dict[str, Any]) -> None:
    """Carry out one order, and answer it."""
    if "registered" in order:
        balancer.update(order["registered"])
    os.write(1, json.dumps({"flows": balancer.targets.flows}).encode() + b"\n")


def most_flows(open_files: int) -> int:
    """Return how many flows, with two connections each, a limit of open files allows."""
    unlimited = open_files in {resource.RLIM_INFINITY, -1}
    return 1_000_000 if unlimited else (open_files - OWN_FILES) // 2


def wake_less_often() -> None:
    """Let this process run with the next turn of a processor, not at once for each message.

    In a storm it finds several messages then, and has not interrupted their senders. That takes two
    thirds of the processor time (measured). On a free processor it runs at once, as before.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    wake_less_often()
    serve(int(sys.argv[1]), int(sys.argv[2]))
