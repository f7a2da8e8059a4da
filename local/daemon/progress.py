"""Report progress to the process that started the cloud, as lines of JSON."""

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Progress:
    """Writes reports to standard output, which may be closed already."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self.finished = False

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Report the beginning and the end of a step, with its duration."""
        self._say(begin=name)
        began = time.monotonic()
        yield
        self._say(end=name, seconds=round(time.monotonic() - began, 2))

    def note(self, text: str) -> None:
        """Report a note."""
        self._say(note=text)

    def ready(self) -> None:
        """Report that everything runs."""
        self.finished = True
        self._say(ready=True)

    def fail(self, error: BaseException) -> None:
        """Report why the cloud does not start."""
        self._say(failed=f"{type(error).__name__}: {error}")

    def _say(self, **message: Any) -> None:
        try:
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            self._descriptor = os.open(os.devnull, os.O_WRONLY)
