"""The balancer's process, as the daemon sees it."""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from local import processes

_REPOSITORY = Path(__file__).resolve().parents[2]
_ANSWER_SECONDS = 30.0


class Front:
    """The one address that clients connect to; a balancer that dies is started again."""

    def __init__(self, log: Path, port: int) -> None:
        """Name the place; nothing is started yet."""
        self.port = port
        self._log = log
        self._registered: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Tell whether the balancer's process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the balancer, which reserves its port at once; raise RuntimeError."""
        await self._ask({})

    async def register(self, addresses: list[str]) -> None:
        """Send new flows to these targets; flows to others go on."""
        self._registered = addresses
        await self._ask({"registered": addresses})

    async def flows(self) -> dict[str, int]:
        """Return how many flows each target has."""
        return dict((await self._ask({}))["flows"])

    def kill(self) -> None:
        """End the balancer and its flows."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """End the balancer and wait for its end."""
        self.kill()
        process, self._process = self._process, None
        if process is not None:
            await process.wait()

    async def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        async with self._asking:
            process = self._process
            if process is None or process.returncode is not None:
                process = self._process = await self._launch()
                order = {"registered": self._registered}
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    line = await _exchange(process, order)
            except (TimeoutError, asyncio.CancelledError):
                # The answer may still come, and would be taken for the next request's.
                await self.close()
                raise
            if not line:
                await process.wait()
                said = processes.last_lines(self._log)
                raise RuntimeError(f"the balancer on port {self.port} has ended:\n{said}")
            answer: dict[str, Any] = json.loads(line)
            return answer

    async def _launch(self) -> asyncio.subprocess.Process:
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "local.pooler_service.balancer",
                str(self.port),
                cwd=_REPOSITORY,
                env=processes.base_environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )


async def _exchange(process: asyncio.subprocess.Process, order: dict[str, Any]) -> bytes:
    assert process.stdin is not None  # noqa: S101  # it was started with a pipe
    assert process.stdout is not None  # noqa: S101  # and with another
    with suppress(ConnectionError):
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
    return await process.stdout.readline()
