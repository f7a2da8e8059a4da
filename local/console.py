"""The console's process, as the daemon sees it."""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

from local import processes

_REPOSITORY = Path(__file__).resolve().parents[1]
_START_SECONDS = 30.0


class Console:
    """The live console of the cloud in a folder; it ends with its standard input."""

    def __init__(self, folder: Path) -> None:
        """Name the place; nothing is started yet."""
        self._folder = folder
        self._log = folder / "console.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Start it and return its address; raise RuntimeError."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "console",
                str(self._folder),
                cwd=_REPOSITORY,
                env=processes.base_environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None  # noqa: S101  # it was started with a pipe
        async with asyncio.timeout(_START_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the console has ended:\n{processes.last_lines(self._log)}")
        return str(json.loads(line)["url"])

    async def close(self) -> None:
        """End it and wait for its end."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
