"""A cloud that the command line starts, and everything that it may leave behind."""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE, State

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where PostgreSQL keeps its segments


@dataclass
class Place:
    """A state folder, and the cloud in it that the command line starts and stops."""

    folder: Path
    temporary: Path
    output: str = ""
    """What `up` has printed, of a cloud that several tests share."""
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    cloud_ids: set[str] = field(default_factory=set)
    started: set[psutil.Process] = field(default_factory=set)
    segments: set[Path] = field(default_factory=set)

    def start(self, *arguments: str, umask: int = -1) -> subprocess.Popen[str]:
        """Start a command and return at once; -1 keeps the umask."""
        process = subprocess.Popen(
            [sys.executable, "-m", "lambda_pg_cdk.local", *arguments],
            env={
                **os.environ,
                "LAMBDA_PG_STATE_DIR": str(self.folder),
                "TMPDIR": str(self.temporary),
            },
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=umask,
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str, umask: int = -1) -> tuple[int, str]:
        """Run a command to its end; return its exit code and its output."""
        process = self.start(*arguments, umask=umask)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    @property
    def cloud(self) -> LocalCloud:
        """The cloud, for the methods that ask a running one."""
        return LocalCloud(self.folder)

    def remember(self) -> set[psutil.Process]:
        """Note what a running cloud is known by afterwards; return its processes.

        Its id; its processes, by number and time of birth; its segments of shared memory.
        """
        state = State.load(self.folder)
        self.cloud_ids.add(state.cloud_id)
        guardian = psutil.Process(state.guardian)
        found = {guardian, *guardian.children(recursive=True)}
        self.started |= found
        for process in found:
            with suppress(psutil.Error):
                for mapped in process.memory_maps():
                    path = Path(mapped.path.removesuffix(" (deleted)"))
                    if path.is_relative_to(SHARED_MEMORY):
                        self.segments.add(path)
        return found

    def owns(self, process: psutil.Process) -> bool:
        """Tell whether a process is this cloud's, whatever else the machine runs.

        By the cloud's id in its environment, by its working directory, or as it was seen before.
        PostgreSQL's backends are known by the directory: their titles overwrite their environments.
        """
        with suppress(psutil.Error):
            if process in self.started:  # also tells a number that was given again
                return process.status() != psutil.STATUS_ZOMBIE
        with suppress(psutil.Error):
            if process.environ().get(CLOUD_ID_VARIABLE) in self.cloud_ids:
                return True
        with suppress(psutil.Error):
            return Path(process.cwd()).is_relative_to(self.folder)
        return False

    def processes(self) -> set[psutil.Process]:
        """Return the processes of this cloud that are there."""
        return {process for process in psutil.process_iter() if self.owns(process)}

    def files(self) -> set[Path]:
        """Return the files of this cloud that are there: in its folders and in shared memory."""
        folders = (self.temporary, self.folder)
        kept = {path for folder in folders if folder.exists() for path in folder.iterdir()}
        return kept | {segment for segment in self.segments if segment.exists()}

    def settles(self) -> None:
        """Wait until nothing of the cloud is there, or fail with what is."""
        deadline = time.monotonic() + 20
        while (left := self.processes()) or self.files():
            if time.monotonic() > deadline:
                pytest.fail(f"left behind: {[_describe(each) for each in left]} {self.files()}")
            time.sleep(0.1)


def _describe(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.pid}: {' '.join(process.cmdline())[:200]}"
    return f"{process.pid}: gone"


@contextmanager
def state_folder() -> Iterator[Place]:
    """Give a state folder, and end by force what a failing test has left."""
    base = Path(tempfile.gettempdir()) / f"lpg-{secrets.token_hex(4)}"
    temporary = base / "tmp"
    temporary.mkdir(parents=True)
    yield (made := Place(base / "state", temporary))
    made.run("down")
    for process in made.running:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    temporary.rmdir()
    base.rmdir()
