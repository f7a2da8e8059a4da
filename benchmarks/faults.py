"""What can go wrong, as things that a local cloud can be made to suffer."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psutil

from local.cloud import LocalCloud


@dataclass(frozen=True)
class Fault:
    """One fault: it begins on entering `begin(cloud)` and has ended when that is left.

    `seconds` is how long whoever runs it stays inside; 0 for what happens in a moment.
    """

    name: str
    title: str
    seconds: float
    begin: Callable[[LocalCloud], AbstractContextManager[None]]

    def run(self, cloud: LocalCloud) -> None:
        """Begin, stay, and end."""
        with self.begin(cloud):
            time.sleep(self.seconds)


@contextmanager
def kill_one_pooler_task(cloud: LocalCloud) -> Iterator[None]:
    """End PgBouncer in one task as a machine that loses power does."""
    task = cloud.status()["pooler"]["tasks"][0]
    for process in psutil.Process(task["pid"]).children(recursive=True):
        if process.name() == "pgbouncer":
            os.kill(process.pid, signal.SIGKILL)
    yield


FAULTS = (Fault("pooler-task-killed", "kill -9 of one pooler task", 0, kill_one_pooler_task),)
