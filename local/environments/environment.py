"""Drive one execution environment through its own Runtime API endpoint."""

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from local.deployed import Start
from local.environments.protocol import ProtocolError, Request, RequestReader, render_response

API_PREFIX = "/2018-06-01/runtime/"
MAX_PAYLOAD_BYTES = 6_291_556  # of a response: AWS's 6 MB, and its 100 bytes of envelope
INIT_LIMIT_SECONDS = 60.0  # AWS allows 10 s on a core of its own; here the cores are shared

Failure = Literal["handled", "timeout", "exit", "init"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an invocation came to: the function's payload, or the payload of an error."""

    payload: bytes
    failure: Failure | None = None
    request_id: str = ""

    @staticmethod
    def failed(failure: Failure, error_type: str, message: str, request_id: str = "") -> "Outcome":
        """Describe an error in the shape in which Lambda reports it."""
        error = {"errorType": error_type, "errorMessage": message}
        return Outcome(json.dumps(error).encode(), failure, request_id)


@dataclass(slots=True)
class Invocation:
    """One event on its way through an environment."""

    event: bytes
    function_arn: str
    timeout: float  # seconds
    request_id: str
    outcome: asyncio.Future[Outcome]
    answer: Outcome | None = None


class Environment:
    """One execution environment: a process, and the port on which it asks for work.

    States: starting → idle ⇄ busy → ended. It is frozen (SIGSTOP) while it is idle, as on AWS.
    An invocation is complete when the environment asks for the next one, as on AWS: the answer
    alone would free the caller a moment before the environment is free.
    """

    def __init__(
        self,
        start: Start,
        on_idle: Callable[["Environment"], None],
        on_end: Callable[["Environment"], None],
    ) -> None:
        self.start = start
        self.pid: int | None = None
        self.idle_since = 0.0
        self.ended = False
        self.over = asyncio.Event()
        self.connections: set[_Connection] = set()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(_consume)  # nobody may be waiting when it fails
        self.init_error: bytes | None = None
        self._on_idle = on_idle
        self._on_end = on_end
        self._server: asyncio.Server | None = None
        self._waiting: _Connection | None = None
        self._invocation: Invocation | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd = -1
        self._reap: Callable[[], object] = lambda: None

    async def listen(self) -> str:
        """Open the Runtime API for this environment; its address identifies it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self._timer = loop.call_later(INIT_LIMIT_SECONDS, self.kill)
        port: int = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def watch(self, pid: int, reap: Callable[[], object] = lambda: None) -> None:
        """Follow the process `pid`; `reap` collects it where it is a child of this process."""
        self.pid = pid
        self._reap = reap
        loop = asyncio.get_running_loop()
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._end()
        except (AttributeError, OSError):  # macOS: the end of its connection is all there is
            self._pidfd = -1
        else:
            loop.add_reader(self._pidfd, self._end)

    @property
    def idle(self) -> bool:
        """Tell whether it waits for work."""
        return self._waiting is not None and self._invocation is None and not self.ended

    async def invoke(self, event: bytes, function_arn: str, seconds: float) -> Outcome:
        """Run one event; never raises for what the function does."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        request_id = str(uuid.uuid4())
        self._invocation = Invocation(event, function_arn, seconds, request_id, outcome)
        if self.ended:
            self._fail_invocation()
        elif self._waiting is not None:
            self._deliver()
        return await outcome

    def kill(self) -> None:
        """End the process and all that it has started."""
        if self.pid is not None and not self.ended:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            if self._pidfd < 0:
                self._end()
        elif self.pid is None:
            self._end()

    def freeze(self) -> None:
        """Stop the process until its next event."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process run."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)

    def handle(self, connection: "_Connection", request: Request) -> None:
        """Answer one request of the runtime client."""
        path = request.path.removeprefix(API_PREFIX)
        if path == "invocation/next":
            self._ask_next(connection)
        elif path in {"init/error", "restore/error"}:
            self.init_error = request.body
            connection.reply(202, {}, b'{"status":"OK"}')
        elif path.startswith("invocation/"):
            self._take_answer(connection, path, request)
        else:
            connection.reply(404, {}, b"{}")

    def _ask_next(self, connection: "_Connection") -> None:
        self._waiting = connection
        if not self.ready.done():
            self._cancel_timer()
            self.ready.set_result(None)
        invocation = self._invocation
        if invocation is not None and invocation.answer is not None:
            self._complete(invocation.answer)
        if self._invocation is not None:
            self._deliver()
            return
        self.idle_since = time.monotonic()
        self._on_idle(self)
        if self._invocation is None:
            self.freeze()

    def _deliver(self) -> None:
        connection, invocation = self._waiting, self._invocation
        assert connection is not None  # noqa: S101  # the callers look
        assert invocation is not None  # noqa: S101
        self._waiting = None
        deadline = time.time() + invocation.timeout
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(invocation.timeout, self._time_out)
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
        }
        connection.reply(200, headers, invocation.event)
        self.thaw()

    def _take_answer(self, connection: "_Connection", path: str, request: Request) -> None:
        _, request_id, verb = path.split("/", 2)
        invocation = self._invocation
        if invocation is None or request_id != invocation.request_id:
            connection.reply(400, {}, b'{"errorType":"InvalidRequestID"}')
            return
        if verb == "error":
            invocation.answer = Outcome(request.body, "handled", request_id)
        elif len(request.body) > MAX_PAYLOAD_BYTES:
            message = "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
            invocation.answer = Outcome.failed(
                "handled", "Function.ResponseSizeTooLarge", message, request_id
            )
            connection.reply(413, {}, b'{"errorType":"RequestEntityTooLarge"}')
            return
        else:
            invocation.answer = Outcome(request.body, None, request_id)
        connection.reply(202, {}, b'{"status":"OK"}')

    def _time_out(self) -> None:
        invocation = self._invocation
        if invocation is None:
            return
        text = f"RequestId: {invocation.request_id} Error: Task timed out after"
        text = f"{text} {invocation.timeout:.2f} seconds"
        invocation.answer = Outcome.failed("timeout", "Sandbox.Timedout", text)
        self.kill()

    def _complete(self, outcome: Outcome) -> None:
        self._cancel_timer()
        invocation, self._invocation = self._invocation, None
        if invocation is not None and not invocation.outcome.done():
            invocation.outcome.set_result(outcome)

    def _fail_invocation(self) -> None:
        invocation = self._invocation
        if invocation is None:
            return
        if invocation.answer is not None:
            self._complete(invocation.answer)
        elif self.init_error is not None:
            self._complete(Outcome(self.init_error, "init", invocation.request_id))
        else:
            text = f"RequestId: {invocation.request_id} Error: Runtime exited"
            self._complete(Outcome.failed("exit", "Runtime.ExitError", text, invocation.request_id))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lose(self, connection: "_Connection") -> None:
        """Take note that a connection of the process has closed."""
        self.connections.discard(connection)
        if self._waiting is connection:
            self._waiting = None
        if self._pidfd < 0 and not connection.helper:
            self._end()

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._cancel_timer()
        self._reap()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort()
        if not self.ready.done():
            text = (self.init_error or b"the process ended before it asked for work").decode()
            self.ready.set_exception(
                RuntimeError(f"an execution environment did not start: {text}")
            )
        self._fail_invocation()
        self._on_end(self)
        self.over.set()


class _Connection(asyncio.Protocol):
    """One connection of a runtime client."""

    def __init__(self, environment: Environment) -> None:
        self.helper = True  # http.client's connections come and go; libcurl's asks for work
        self._environment = environment
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # asyncio's promise for TCP
        self._transport = transport
        self._environment.connections.add(self)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for request in self._reader.feed(data):
                if request.path.endswith("/invocation/next"):
                    self.helper = False
                self._environment.handle(self, request)
        except ProtocolError:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's face
        self._environment.lose(self)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send one response in one write."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(render_response(status, headers, body))


def _consume(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
