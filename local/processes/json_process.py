"""A process of this project that reads orders and writes answers as lines of JSON."""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.local import processes

_ANSWER_SECONDS = 30.0


class JsonProcess:
    """A module that answers each line of its input with a line, and ends with its input."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        """Take the module to run; nothing is started yet."""
        self._command = [sys.executable, "-m", module, *arguments]
        self._name = module
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.returncode is None

    async def ask(
        self, order: dict[str, Any], restarted: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the answer to an order; a process that was just started gets `restarted` instead.

        Raises RuntimeError, with the end of its log, when it ends instead of answering.
        """
        async with self._asking:
            process = self._process
            if process is None or process.returncode is not None:
                process = self._process = await self._launch()
                order = order if restarted is None else restarted
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    line = await _exchange(process, order)
            except (TimeoutError, asyncio.CancelledError):
                # A late answer would be mistaken for the answer to the next order.
                await self.close()
                raise
            if not line:
                await process.wait()
                log = processes.last_lines(self._log)
                raise RuntimeError(f"{self._name} has ended:\n{log}")
            answer: dict[str, Any] = json.loads(line)
            return answer

    def kill(self) -> None:
        """End the process."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """End the process and wait for its end."""
        self.kill()
        process, self._process = self._process, None
        if process is not None:
            await process.wait()

    async def _launch(self) -> asyncio.subprocess.Process:
        with processes.open_log(self._log) as log:
            return await asyncio.create_subprocess_exec(
                *self._command,
                cwd=PACKAGE.parent,
                env=processes.base_environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )


async def _exchange(process: asyncio.subprocess.Process, order: dict[str, Any]) -> bytes:
    assert process.stdin is not None  # noqa: S101 - it was started with a pipe
    assert process.stdout is not None  # noqa: S101 - and with another
    with suppress(ConnectionError):
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
    return await process.stdout.readline()
