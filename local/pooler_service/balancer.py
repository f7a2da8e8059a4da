"""Spread TCP flows over the pooler's tasks, as a network load balancer does.

A process of its own: in the daemon's loop, every byte of a storm would wait behind its requests.
It is told its targets on standard input, one JSON object a line, answers each line with what it
has, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, cast

from local import processes

BACKLOG = 4096  # a storm's connections come at once
CONNECT_SECONDS = 3.0
OWN_FILES = 64
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Targets:
    """The targets and their flows. A draining one keeps what it has and gets no more."""

    def __init__(self) -> None:
        """Begin with none."""
        self._registered: list[str] = []
        self.flows: dict[str, int] = {}

    def update(self, registered: list[str]) -> None:
        """Let these take new flows, and no others."""
        self._registered = registered
        for address in registered:
            self.flows.setdefault(address, 0)
        for address in [a for a, count in self.flows.items() if not count and a not in registered]:
            del self.flows[address]

    def __bool__(self) -> bool:
        """Tell whether a new flow has anywhere to go."""
        return bool(self._registered)

    def choices(self) -> list[str]:
        """Return where a new flow may go, in random order: a flow's hash is as good as that.

        As a network load balancer it does not look at how many flows a target has. One that hangs
        loses its clients, and would be given all new ones.
        """
        return random.sample(self._registered, len(self._registered))

    def begin(self, address: str) -> None:
        """Count a flow from before its connection is made, so that a burst spreads."""
        self.flows[address] = self.flows.get(address, 0) + 1

    def end(self, address: str) -> None:
        """Count a flow no more."""
        self.flows[address] -= 1
        if not self.flows[address] and address not in self._registered:
            del self.flows[address]


class Side(asyncio.BufferedProtocol):
    """One of the two connections of a flow: what comes in here goes out at the other."""

    # One for all: what is read is passed on before anything else is.
    _buffer = bytearray(64 * 1024)
    _view = memoryview(_buffer)

    def __init__(self, flow: Flow) -> None:
        """Belong to a flow; the other side is named when it is there."""
        self.flow = flow
        self.other: Side
        self.transport: asyncio.Transport | None = None
        self.ended = False  # nothing more comes in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio has set TCP_NODELAY on it."""
        self.transport = cast(asyncio.Transport, transport)
        if self.flow.client is self:
            self.transport.pause_reading()  # there is nowhere to write to yet
            self.flow.dial()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's interface
        """Lend the buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass bytes on."""
        if self.other.transport is not None:
            self.other.transport.write(bytes(self._view[:nbytes]))

    def eof_received(self) -> bool:
        """Pass the end of one direction on; the other direction goes on by itself."""
        self.ended = True
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return not self.other.ended

    def pause_writing(self) -> None:
        """Take no more from the other side than this one can get rid of."""
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Take more."""
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other side too: in order, or with a reset where this one had one."""
        self.transport = None
        self.flow.lost(self, exc)

    def close(self, exc: Exception | None = None) -> None:
        """End this side."""
        if self.transport is None:
            return
        if exc is None and self.ended:
            self.transport.close()  # what is left to write is written first
        else:
            reset(self.transport)


class Flow:
    """One client's connection, and the one to the target that was chosen for it."""

    def __init__(self, balancer: Balancer) -> None:
        """Wait for the client."""
        self._balancer = balancer
        self.client = Side(self)
        self.target = Side(self)
        self.client.other, self.target.other = self.target, self.client
        self._address = ""
        self._dialling: asyncio.Task[None] | None = None

    def dial(self) -> None:
        """Connect the client to a target, or reset it where none can be had."""
        if self._balancer.open_flow(self):
            self._dialling = asyncio.get_running_loop().create_task(self._dial())
        else:
            self.client.close(ConnectionRefusedError())

    async def _dial(self) -> None:
        targets = self._balancer.targets
        for address in targets.choices():
            targets.begin(address)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connect(address)
            except OSError:  # TimeoutError is one
                targets.end(address)
                continue
            self._address = address
            break
        if self.target.transport is None:
            self.client.close(ConnectionRefusedError())
        elif self.client.transport is None:
            self.target.close(ConnectionResetError())
        else:
            self.client.transport.resume_reading()

    async def _connect(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self.target, address, self._balancer.target_port)

    def lost(self, side: Side, exc: Exception | None) -> None:
        """End the rest of the flow."""
        side.other.close(exc)
        if self.client.transport is self.target.transport is None:
            if self._address:
                self._balancer.targets.end(self._address)
            self._balancer.close_flow(self)


class Balancer:
    """The listener, the targets and all flows."""

    def __init__(self, port: int, target_port: int, most_flows: int) -> None:
        """Reserve the port, so that nobody else has it while there are no targets."""
        self.target_port = target_port
        self._port = port
        self.targets = Targets()
        self._most_flows = most_flows
        self._flows: set[Flow] = set()
        self._listener: asyncio.Server | None = None
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", port))

    async def update(self, registered: list[str]) -> None:
        """Send new flows to these targets; without any, connections are refused."""
        self.targets.update(registered)
        if self.targets and self._listener is None:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: Flow(self).client,
                "127.0.0.1",
                self._port,
                backlog=BACKLOG,
                reuse_port=True,
            )
        elif not self.targets and self._listener is not None:
            self._listener.close()
            self._listener = None

    def open_flow(self, flow: Flow) -> bool:
        """Take a flow; False when there are as many as the process can have."""
        if len(self._flows) >= self._most_flows:
            return False
        self._flows.add(flow)
        return True

    def close_flow(self, flow: Flow) -> None:
        """Forget a flow."""
        self._flows.discard(flow)


def reset(transport: asyncio.Transport) -> None:
    """Close a connection as a broken one is: with a reset, and without what was left to write."""
    with suppress(OSError, AttributeError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


async def serve(port: int, target_port: int) -> None:
    """Do what is said on standard input, until its end."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    balancer = Balancer(port, target_port, most_flows(processes.raise_open_files_limit()))
    async for line in reader:
        order: dict[str, Any] = json.loads(line)
        if "registered" in order:
            await balancer.update(order["registered"])
        answer = {"flows": balancer.targets.flows}
        os.write(1, json.dumps(answer).encode() + b"\n")


def most_flows(open_files: int) -> int:
    """Return for how many flows, with two connections each, a limit of open files is enough."""
    unlimited = open_files in {resource.RLIM_INFINITY, -1}
    return 1_000_000 if unlimited else (open_files - OWN_FILES) // 2


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
