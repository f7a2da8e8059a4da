"""Drive one execution environment: send events, take answers, freeze, thaw and end it."""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Literal

from lambda_pg_cdk.local.deployment.deployed import Start
from lambda_pg_cdk.local.environments.invocation import Invocation, Outcome
from lambda_pg_cdk.local.environments.process import EnvironmentProcess, Reap
from lambda_pg_cdk.local.environments.runtime_api import MAX_PAYLOAD_BYTES, RuntimeApi

INIT_LIMIT_SECONDS = 60.0  # AWS allows 10 s on a separate core; here the cores are shared

State = Literal["cold", "restored", "busy", "frozen"]
"""An environment starts (cold or restored), runs an event (busy) or waits for one (frozen)."""


class Environment:
    """One execution environment: a process, and the port on which it asks for work.

    States: starting → idle ⇄ busy → ended. It is frozen (SIGSTOP) while it is idle, as on AWS.
    An invocation is complete when the environment asks for the next one, as on AWS: right after
    the answer the environment is not free yet.
    """

    def __init__(
        self,
        start: Start,
        on_idle: Callable[["Environment"], None],
        on_end: Callable[["Environment"], None],
    ) -> None:
        self.start = start
        self.idle_since = 0.0
        self.over = asyncio.Event()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(_consume)  # it may fail while nothing waits for it
        self.init_error: bytes | None = None
        self._on_idle = on_idle
        self._on_end = on_end
        self._api = RuntimeApi(self)
        self._waiting: Callable[[Invocation], None] | None = None
        self._invocation: Invocation | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._process = EnvironmentProcess()

    @property
    def pid(self) -> int | None:
        """The process id; None before its process has started."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether its process has ended, or was killed before it started."""
        return self.over.is_set()

    async def listen(self) -> str:
        """Open the Runtime API for this environment; its address identifies it."""
        address = await self._api.listen()
        self._timer = asyncio.get_running_loop().call_later(INIT_LIMIT_SECONDS, self.kill)
        return address

    def watch(self, pid: int, reap: Reap = lambda: None) -> None:
        """Follow the process `pid`; `reap` collects it where it is a child of this process."""
        self._process.attach(pid, reap)
        if self.ended:  # it was killed before its process started
            self._process.discard()
            return
        try:
            self._process.follow(self._end)
        except ProcessLookupError:
            self._end()
        if self.idle:  # it asked for work before its template reported the process id
            self._process.freeze()

    @property
    def idle(self) -> bool:
        """Whether it waits for work."""
        return self._waiting is not None and self._invocation is None and not self.ended

    @property
    def state(self) -> State:
        """What it does now."""
        if not self.ready.done():
            return self.start
        return "frozen" if self._invocation is None else "busy"

    async def invoke(self, event: bytes, function_arn: str, seconds: float) -> Outcome:
        """Run one event; errors of the function are in the outcome and never raised."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        request_id = str(uuid.uuid4())
        self._invocation = Invocation(event, function_arn, seconds, request_id, outcome)
        if self.ended:
            self._fail_invocation()
        elif self._waiting is not None:
            self._deliver()
        return await outcome

    def give_up(self, reason: Exception) -> None:
        """End it; the caller of an event that has not begun gets `reason`."""
        invocation = self._invocation
        if invocation is not None and not self.ready.done() and not invocation.outcome.done():
            invocation.outcome.set_exception(reason)
        self.kill()

    def fail_init(self, error: bytes) -> None:
        """End it because its init phase failed; `error` is Lambda's answer."""
        self.init_error = error
        self.kill()

    def kill(self) -> None:
        """End the process and all that it has started."""
        if not self.ended:
            self._process.kill()
        if not self._process.followed:
            self._end()

    def ask_next(self, deliver: Callable[[Invocation], None]) -> None:
        """Note that it is free; `deliver` is called with its next event."""
        self._waiting = deliver
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
            self._process.freeze()

    def _deliver(self) -> None:
        deliver, invocation = self._waiting, self._invocation
        assert deliver is not None  # noqa: S101 - the callers look
        assert invocation is not None  # noqa: S101 - the callers look
        self._waiting = None
        invocation.deadline = time.time() + invocation.timeout
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(invocation.timeout, self._time_out)
        self._process.thaw()  # first: frozen, it would not read a large event
        deliver(invocation)

    def take_answer(self, request_id: str, body: bytes | None, *, failed: bool) -> int:
        """Keep the answer of an invocation, None if it is too large; return the HTTP status."""
        invocation = self._invocation
        if invocation is None or request_id != invocation.request_id:
            return 400
        if body is None:
            message = (
                "Response payload size exceeded maximum allowed payload size "
                f"({MAX_PAYLOAD_BYTES} bytes)."
            )
            invocation.answer = Outcome.failed(
                "handled", "Function.ResponseSizeTooLarge", message, request_id
            )
            return 413
        invocation.answer = Outcome(body, "handled" if failed else None, request_id)
        return 202

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

    def lose_client(self) -> None:
        """Note that the connection that asks for work has closed."""
        self._waiting = None
        if not self._process.followed:
            self._end()

    def _end(self) -> None:
        if self.ended:
            return
        self.over.set()
        self._cancel_timer()
        self._process.close()
        self._api.close()
        if not self.ready.done():
            text = (self.init_error or b"the process ended before it asked for work").decode()
            self.ready.set_exception(
                RuntimeError(f"an execution environment did not start: {text}")
            )
        self._fail_invocation()
        self._on_end(self)


def _consume(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
