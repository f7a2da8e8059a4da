"""A TCP proxy that causes network faults on demand.

    with FaultProxy("127.0.0.1", 5432) as proxy:
        connection = psycopg.connect(host="127.0.0.1", port=proxy.port)
        with proxy.stall():
            ...  # connected, but the server does not answer

A fault begins when its method is called, also on open connections, and ends with its `with` block
or with `end()`. Bytes are passed on unchanged, so TLS works.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, Self, cast

Direction = Literal["to_server", "to_client"]
Connections = Literal["all", "open", "new"]
"""The connections of a fault: those open at its beginning, those opened during it, or all."""
Ending = Literal["reset", "close", "stall"]

BACKLOG: Final = 4096
HELD_LIMIT: Final = 256 * 1024
"""Bytes held back in one direction before its sender has to wait."""
ANSWER_SECONDS: Final = 10.0

SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
"""From <asm-generic/socket.h>: Python's socket module has no names for them."""

DROP_EVERYTHING: Final = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K: keep 0 bytes
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class FaultProxy:
    """Listen on an address of this machine for one server, in a separate thread.

    Large because each fault is a method, and all of them act on the same set of links.
    """

    _loop: asyncio.AbstractEventLoop
    _thread: threading.Thread

    def __init__(
        self, host: str, port: int, *, listen_port: int = 0, listen_address: str = "127.0.0.1"
    ) -> None:
        """Take the server's address; the proxy opens at `listen_port`, or at a free one."""
        self.server = (host, port)
        self.address = listen_address
        self.port = listen_port
        self.accepted = 0
        """The number of clients that have connected so far."""
        self._listener: socket.socket | None = None
        self._links: set[_Link] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._for_new: list[_Effect] = []
        self._observers: list[Callable[[bytes], None]] = []

    def __enter__(self) -> Self:
        """Open the proxy."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._thread.start()
        self._do(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        """Reset what is open, and close the proxy."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(ANSWER_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def open_connections(self) -> int:
        """The number of clients whose connection is open."""
        return len(self._links)

    # Lasting faults

    def latency(self, seconds: float, *, connections: Connections = "all") -> Fault:
        """Delay everything, in both directions."""
        return self._begin(_Latency(seconds), connections)

    def stall(
        self, direction: Direction | None = None, *, connections: Connections = "all"
    ) -> Fault:
        """Pass nothing on, in one direction or both, and let the kernel acknowledge it.

        A process that hangs looks the same: keepalives and `tcp_user_timeout` do not notice it.
        Held-back bytes are passed on when the fault ends.
        """
        return self._begin(_Stall(direction), connections)

    def blackhole(self, *, connections: Connections = "all") -> Fault:
        """Drop every packet of the clients before the kernel can acknowledge it.

        A flow that a load balancer has dropped, or a machine without power, looks the same. New
        clients get no answer to their SYN. Raises OSError if `can_blackhole` is false.
        """
        if not can_blackhole():
            raise OSError(
                "a blackhole needs Linux's socket filters and, on newer kernels, CAP_NET_ADMIN: "
                "run as root, or use stall(), which works everywhere"
            )
        return self._begin(_Blackhole(), connections)

    def cut_after(
        self,
        count: int,
        direction: Direction = "to_client",
        *,
        then: Ending = "reset",
        connections: Connections = "all",
    ) -> Fault:
        """Pass on `count` more bytes in one direction, then end each connection.

        It ends with a RST to both sides, with a FIN to both sides, or in a stall.
        """
        return self._begin(_Cut(count, direction, then), connections)

    def refuse(self) -> Fault:
        """Refuse new connections; open ones go on."""
        self._do(self._close_listener)
        return Fault(lambda: self._do(self._listen))

    # Instant faults

    def reset(self) -> None:
        """End every open connection with a RST to both sides."""
        self._do(self._reset)

    def half_close(self, direction: Direction) -> None:
        """Send a FIN on every open connection in one direction; later bytes are lost."""

        def act() -> None:
            for link in set(self._links):
                link.end(direction).half_close()

        self._do(act)

    # Observation

    def on_client_data(self, observe: Callable[[bytes], None]) -> Fault:
        """Call `observe` in the proxy's thread with the bytes of clients, before passing them on.

        It may begin and end faults, which apply to these bytes.
        """
        self._do(lambda: self._observers.append(observe))
        return Fault(lambda: self._do(lambda: self._observers.remove(observe)))

    def _observe(self, data: bytes) -> None:
        for observe in tuple(self._observers):
            observe(data)

    def _begin(self, effect: _Effect, connections: Connections) -> Fault:
        self._do(lambda: self._apply(effect, connections))
        return Fault(lambda: self._do(lambda: self._lift(effect)))

    def _apply(self, effect: _Effect, connections: Connections) -> None:
        if connections != "new":
            for link in set(self._links):
                effect.apply(link)
        if connections != "open":
            self._for_new.append(effect)
            self._filter_listener()

    def _lift(self, effect: _Effect) -> None:
        if effect in self._for_new:
            self._for_new.remove(effect)
            self._filter_listener()
        for link in set(self._links):
            effect.lift(link)

    def _do(self, action: Callable[[], None]) -> None:
        """Run an action in the proxy's thread, and wait until it has taken effect."""
        if threading.current_thread() is self._thread:
            action()
            return

        async def act() -> None:
            action()
            await asyncio.sleep(0)  # sockets are closed in the loop's next round

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(ANSWER_SECONDS)

    def _listen(self) -> None:
        self._listener = socket.create_server((self.address, self.port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._filter_listener()
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _filter_listener(self) -> None:
        if self._listener is not None:
            dropped = any(isinstance(effect, _Blackhole) for effect in self._for_new)
            _drop_packets(self._listener, dropped=dropped)

    def _reset(self) -> None:
        for link in set(self._links):
            link.reset()

    async def _stop(self) -> None:
        self._close_listener()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        self._reset()
        await asyncio.sleep(0)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # the client has gone while it waited
        self.accepted += 1
        link = _Link(self._loop, client, self._observe, self._links.discard)
        self._links.add(link)
        for effect in self._for_new:
            effect.apply(link)
        task = self._loop.create_task(link.open(self.server))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)


class Fault:
    """A fault that has begun: leave its `with` block, or call `end`, to end it."""

    def __init__(self, end: Callable[[], None]) -> None:
        """Take the function that ends it."""
        self._end: Callable[[], None] | None = end

    def __enter__(self) -> Self:
        """Return the fault, which has begun already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the fault."""
        self.end()

    def end(self) -> None:
        """End the fault, unless it was ended before."""
        end, self._end = self._end, None
        if end is not None:
            end()


class _Link:
    """A client's connection, and its connection to the server."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        observe: Callable[[bytes], None],
        on_end: Callable[[_Link], None],
    ) -> None:
        self.loop = loop
        self.client = _End(self, client, observe)
        self.server = _End(self, socket.socket(), None)
        self._on_end = on_end
        self._over = False

    async def open(self, server: tuple[str, int]) -> None:
        """Connect to the server; reset the client if that fails."""
        for end in (self.client, self.server):
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self.loop.connect_accepted_socket(lambda: self.client, self.client.socket)
            await self.loop.sock_connect(self.server.socket, server)
            await self.loop.create_connection(lambda: self.server, sock=self.server.socket)
        except OSError:
            self._over = True
        finally:
            self._opened()

    def end(self, direction: Direction) -> _End:
        """Return the end where a direction begins."""
        return self.client if direction == "to_server" else self.server

    def other(self, end: _End) -> _End:
        """Return the opposite end."""
        return self.server if end is self.client else self.client

    def reset(self) -> None:
        """End both connections with a RST; one that is still being opened ends after that."""
        self._finish()
        for end in (self.client, self.server):
            if end.transport is not None and end.socket.fileno() >= 0:
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                end.transport.abort()

    def close(self) -> None:
        """End both connections with a FIN, after the bytes passed on so far."""
        self._finish()
        for end in (self.client, self.server):
            if end.transport is not None:
                end.transport.close()

    def _finish(self) -> None:
        self._over = True
        self._on_end(self)

    def _opened(self) -> None:
        """Close ends that did not open, or a link that has ended meanwhile."""
        for end in (self.client, self.server):
            if end.transport is None:
                end.socket.close()
                self._over = True
        if self._over:
            self.reset()


class _End(asyncio.Protocol):
    """One socket of a link, and the direction that begins there."""

    def __init__(
        self, link: _Link, sock: socket.socket, observe: Callable[[bytes], None] | None
    ) -> None:
        self.socket = sock
        self.transport: asyncio.Transport | None = None
        self.delays: dict[_Effect, float] = {}
        self.stalls: set[_Effect] = set()
        self.cuts: dict[_Cut, int] = {}
        """Remaining bytes of each cut."""
        self._link = link
        self._observe = observe
        self._held: deque[tuple[float, bytes]] = deque()  # no bytes: the end of the stream
        self._congested = False
        self._ended = False

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # Not at once: CPython 3.11.2 begins to read after this call, even if it is paused.
        self._link.loop.call_soon(self.update)
        self._link.other(self).update()

    def data_received(self, data: bytes) -> None:
        if self._observe is not None:
            self._observe(data)
        self._hold(data)

    def eof_received(self) -> bool:
        self._hold(b"")
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._link.reset()

    def pause_writing(self) -> None:
        self._link.other(self).congest(congested=True)

    def resume_writing(self) -> None:
        self._link.other(self).congest(congested=False)

    # Called by faults

    def stall(self, effect: _Effect) -> None:
        """Pass nothing on until the effect is released."""
        self.stalls.add(effect)
        self.update()

    def release(self, effect: _Effect) -> None:
        """Remove an effect that delayed or stalled, and pass on what no other effect holds."""
        self.delays.pop(effect, None)
        self.stalls.discard(effect)
        self.update()

    def half_close(self) -> None:
        """End the stream here, before all held-back and later bytes."""
        self._held.appendleft((0.0, b""))
        self.update()

    # Passing on

    def congest(self, *, congested: bool) -> None:
        """Note whether the other end's socket is full."""
        self._congested = congested
        self.update()

    def update(self) -> None:
        """Pass on what is due; stop reading at the limit of held-back bytes."""
        self._pass_on()
        if self.transport is None:
            return
        held = sum(len(data) for _, data in self._held)
        if self.stalls or self._congested or held >= HELD_LIMIT:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _hold(self, data: bytes) -> None:
        self._held.append((self._link.loop.time() + sum(self.delays.values()), data))
        self.update()

    def _pass_on(self) -> None:
        sink = self._link.other(self).transport
        while self._held and not self.stalls and sink is not None and not sink.is_closing():
            due, data = self._held[0]
            if due > self._link.loop.time():
                self._link.loop.call_at(due, self.update)
                return
            self._held.popleft()
            if not data:
                self._end(sink)
            elif not self._ended:
                self._write(sink, data)

    def _end(self, sink: asyncio.Transport) -> None:
        self._ended = True
        with suppress(OSError):  # its peer has reset it during a delay
            sink.write_eof()
        if self._link.other(self)._ended:
            self._link.close()

    def _write(self, sink: asyncio.Transport, data: bytes) -> None:
        """Write the bytes that all cuts allow, then carry out the first cut that is reached."""
        cut = min(self.cuts, key=lambda each: self.cuts[each], default=None)
        passed = data if cut is None else data[: self.cuts[cut]]
        if passed:
            sink.write(passed)
        for each in self.cuts:
            self.cuts[each] -= len(passed)
        if cut is not None and len(passed) < len(data):
            self._held.appendleft((0.0, data[len(passed) :]))
            cut.carry_out(self._link)


class _Effect(ABC):
    """What a fault does to a link while it lasts."""

    @abstractmethod
    def apply(self, link: _Link) -> None:
        """Begin on one link."""

    def lift(self, link: _Link) -> None:
        """End on one link, even if it was not applied there."""
        for end in (link.client, link.server):
            end.release(self)


@dataclass(eq=False)
class _Latency(_Effect):
    seconds: float

    def apply(self, link: _Link) -> None:
        for end in (link.client, link.server):
            end.delays[self] = self.seconds


@dataclass(eq=False)
class _Stall(_Effect):
    direction: Direction | None

    def apply(self, link: _Link) -> None:
        for end in [link.end(self.direction)] if self.direction else [link.client, link.server]:
            end.stall(self)


class _Blackhole(_Effect):
    def apply(self, link: _Link) -> None:
        for end in (link.client, link.server):
            end.stall(self)
        _drop_packets(link.client.socket, dropped=True)

    def lift(self, link: _Link) -> None:
        super().lift(link)
        dropped = any(isinstance(effect, _Blackhole) for effect in link.client.stalls)
        _drop_packets(link.client.socket, dropped=dropped)


@dataclass(eq=False)
class _Cut(_Effect):
    count: int
    direction: Direction
    then: Ending

    def apply(self, link: _Link) -> None:
        link.end(self.direction).cuts[self] = self.count

    def carry_out(self, link: _Link) -> None:
        match self.then:
            case "reset":
                link.reset()
            case "close":
                link.close()
            case "stall":
                link.client.stall(self)
                link.server.stall(self)

    def lift(self, link: _Link) -> None:
        link.end(self.direction).cuts.pop(self, None)
        super().lift(link)


def can_blackhole() -> bool:
    """Tell whether this process may drop the packets of its sockets."""
    with socket.socket() as sock:
        try:
            _drop_packets(sock, dropped=True)
        except OSError:
            return False
    return sys.platform == "linux"


def _drop_packets(sock: socket.socket, *, dropped: bool) -> None:
    """Make the kernel drop packets for a socket before TCP reads them, or stop that."""
    if dropped:
        code = ctypes.create_string_buffer(DROP_EVERYTHING)
        program = struct.pack("HP", 1, ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    elif sys.platform == "linux":
        with suppress(FileNotFoundError):  # it had no filter
            sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
