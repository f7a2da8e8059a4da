"""Start execution environments of one function: cold, or restored from a snapshot."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lambda_pg_cdk.local.deployment.deployed import Function, Start
from lambda_pg_cdk.local.environments.environment import Environment

_BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
# -S: no site-packages, neither the virtual environment's nor the system's; -P: not this folder.
_INTERPRETER = [sys.executable, "-S", "-P"]
_SNAPSHOT_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_MAX_ANSWER_BYTES = 1024 * 1024  # of a template: an import error has a stack trace
_BEFORE_SNAPSHOT = "Runtime.BeforeSnapshotError"  # awslambdaric's, after a successful import


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """What all environments of this cloud share."""

    runtime: Path  # awslambdaric and boto3 only
    folder: Path  # for the functions' temporary files
    logs: Path
    variables: Mapping[str, str]  # region, credentials, endpoint, the cloud's id


def reserved_variables(function: Function, start: Start) -> dict[str, str]:
    """Return the variables that Lambda sets, which the function's variables cannot replace."""
    kind = "snap-start" if start == "restored" else "on-demand"
    return {
        "_HANDLER": function.handler,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.runtime}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": function.version,
        "AWS_LAMBDA_INITIALIZATION_TYPE": kind,
        "AWS_LAMBDA_LOG_GROUP_NAME": function.log_group,
        "AWS_LAMBDA_LOG_STREAM_NAME": f"local/{function.folder}",
        "LAMBDA_TASK_ROOT": str(function.code),
        "PYTHONDONTWRITEBYTECODE": "1",  # /var/task and /opt are read-only on AWS
    }


def search_path(function: Function, runtime: Path) -> str:
    """Return the import path in AWS's order: function, layers, runtime."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    layers = [
        path
        for layer in function.layers
        for path in (layer / "python" / "lib" / version / "site-packages", layer / "python")
    ]
    return os.pathsep.join(str(path) for path in [function.code, *layers, runtime])


def process_variables(function: Function, start: Start, context: LaunchContext) -> dict[str, str]:
    """Return all variables of a function's process: only PATH is inherited."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        **context.variables,
        **function.variables,
        **reserved_variables(function, start),
        "HOME": str(context.folder),
        "TMPDIR": str(context.folder),
        "LAMBDA_RUNTIME_DIR": str(context.runtime),
        "PYTHONPATH": search_path(function, context.runtime),
    }


class InitError(RuntimeError):
    """The function failed to initialise; `payload` is the error in Lambda's format."""

    def __init__(self, text: str, payload: bytes) -> None:
        super().__init__(text)
        self.payload = payload


class UnfitError(RuntimeError):
    """The function was initialised but has no snapshot: it can only start cold."""


class TemplateLostError(RuntimeError):
    """The template process ended before it restored the environment."""


class NoRoomError(RuntimeError):
    """The machine refused to start another process."""


class Launcher:
    """Start environments of one function."""

    def __init__(self, function: Function, context: LaunchContext) -> None:
        self._function = function
        self._context = context
        self._template: _Template | None = None
        self._taking: asyncio.Task[_Template] | None = None

    async def start(self, environment: Environment) -> None:
        """Start the process of an environment, cold or restored."""
        address = await environment.listen()
        if environment.start == "cold":
            self._start_cold(environment, address)
        else:
            template = await self.snapshot()
            pid = await template.restore({"AWS_LAMBDA_RUNTIME_API": address})
            environment.watch(pid, lambda: template.reap(pid))

    def _start_cold(self, environment: Environment, address: str) -> None:
        variables = process_variables(self._function, "cold", self._context)
        with self._open_log() as log:
            process = subprocess.Popen(
                [*_INTERPRETER, str(_BOOTSTRAP), "cold", self._function.handler],
                env={**variables, "AWS_LAMBDA_RUNTIME_API": address},
                cwd=self._function.code,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        environment.watch(process.pid, process.wait)

    def _open_log(self) -> "LogFile":
        return LogFile(self._context.logs / f"{self._function.folder}.log")

    def write_log(self, message: str) -> None:
        """Add a line to the function's log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._open_log() as log:
            os.write(log, f"{now} {message}\n".encode())

    async def snapshot(self) -> "_Template":
        """Return the template process; start it if needed; raise `InitError` or `UnfitError`.

        All callers that wait share one attempt, and its error. The next caller tries again.
        """
        if self._template is not None and not self._template.over:
            return self._template
        if self._taking is None:
            self._taking = asyncio.create_task(self._take())
        return await asyncio.shield(self._taking)

    async def _take(self) -> "_Template":
        try:
            await self._end_template()
            variables = process_variables(self._function, "restored", self._context)
            with self._open_log() as log:
                self._template = await _Template.take(self._function, variables, log)
            return self._template
        finally:
            self._taking = None

    async def _end_template(self) -> None:
        template, self._template = self._template, None
        if template is not None:
            await template.close()

    async def close(self) -> None:
        """End the template process; running environments go on."""
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait([self._taking])
        await self._end_template()


class LogFile:
    """An appending log file, open while processes are started with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> int:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class _Template:
    """A process that has imported a handler and forks environments from itself."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.over = False  # it takes no more orders
        self._process = process
        self._orders: deque[asyncio.Future[int]] = deque()
        self._reading: asyncio.Task[None] | None = None

    @staticmethod
    async def take(function: Function, variables: dict[str, str], log: int) -> "_Template":
        """Start the process and wait for its snapshot; raise `InitError` or `UnfitError`."""
        process = await asyncio.create_subprocess_exec(
            *_INTERPRETER,
            str(_BOOTSTRAP),
            "template",
            function.handler,
            env=variables,
            cwd=function.code,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            limit=_MAX_ANSWER_BYTES,
        )
        template = _Template(process)
        try:
            async with asyncio.timeout(_SNAPSHOT_SECONDS):
                first = await template._answer()
        except TimeoutError:
            first = {"error": f"importing the handler took more than {_SNAPSHOT_SECONDS:.0f} s"}
        except BaseException:  # cancelled: close it
            await template.close()
            raise
        if "ready" not in first:
            await template.close()
            raise _no_snapshot(function, first)
        template._reading = asyncio.create_task(template._read())
        return template

    async def restore(self, variables: dict[str, str]) -> int:
        """Fork one environment and return its process id.

        Orders do not wait for earlier answers: the answers come in order.
        Raises `TemplateLostError` or `NoRoomError`.
        """
        if self.over:
            raise TemplateLostError("the template process has ended")
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        order: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._orders.append(order)
        self._process.stdin.write(json.dumps({"variables": variables}).encode() + b"\n")
        return await order

    def reap(self, pid: int) -> None:
        """Have the template process collect an environment that has ended."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        if not self.over and not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps({"ended": pid}).encode() + b"\n")

    async def _read(self) -> None:
        while (answer := await self._answer()).keys() & {"pid", "no_room"}:
            self._take_answer(self._orders.popleft(), answer)
        self.over = True  # first: a further order would get no answer
        while self._orders:
            order = self._orders.popleft()
            if not order.done():
                text = f"the template process could not restore: {json.dumps(answer)}"
                order.set_exception(TemplateLostError(text))

    def _take_answer(self, order: asyncio.Future[int], answer: dict[str, object]) -> None:
        if "no_room" in answer:
            if not order.done():
                text = f"no room for another execution environment: {answer['no_room']}"
                order.set_exception(NoRoomError(text))
            return
        pid = int(str(answer["pid"]))
        if not order.done():
            order.set_result(pid)
        else:  # the caller has gone
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.reap(pid)

    async def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        line = await self._process.stdout.readline()
        if not line:
            return {"error": "the template process has ended; the function's log has the reason"}
        answer: dict[str, object] = json.loads(line)
        return answer

    async def close(self) -> None:
        """Let it finish its orders, and end it."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _CLOSE_SECONDS)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading


def _no_snapshot(function: Function, answer: dict[str, object]) -> InitError | UnfitError:
    """Return the error: the function fails to initialise, or a snapshot cannot hold it."""
    text = f"no snapshot of {function.folder}: {json.dumps(answer)}"
    if answer.get("error_type") == _BEFORE_SNAPSHOT:
        return UnfitError(text)
    error = answer["error"]
    details = error if isinstance(error, dict) else {"errorType": "Runtime.InitError"}
    return InitError(text, json.dumps({"errorMessage": str(error), **details}).encode())
