"""The process of one execution environment: follow, freeze, thaw and kill it."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

Reap = Callable[[], object]


class EnvironmentProcess:
    """A process in its own group. There is none before `attach`."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self._pidfd = -1
        self._reap: Reap = lambda: None

    @property
    def followed(self) -> bool:
        """Whether its end is noticed (Linux); elsewhere only its connection closes."""
        return self._pidfd >= 0

    def attach(self, pid: int, reap: Reap) -> None:
        """Take the process; `reap` collects it where it is a child of this process."""
        self.pid = pid
        self._reap = reap

    def follow(self, on_end: Callable[[], None]) -> None:
        """Call `on_end` when it ends, if this system can tell; raise ProcessLookupError."""
        assert self.pid is not None  # noqa: S101 - it is attached
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise
        except (AttributeError, OSError):  # macOS has no such descriptor
            return
        asyncio.get_running_loop().add_reader(self._pidfd, on_end)

    def discard(self) -> None:
        """Kill and collect it before it is followed."""
        self._signal(signal.SIGKILL)
        self._reap()

    def kill(self) -> None:
        """Kill it and its children."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Collect it after its end, and stop following it."""
        self._reap()
        if self.followed:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
