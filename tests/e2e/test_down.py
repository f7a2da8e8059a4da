"""What a local cloud leaves behind: nothing, however it ends."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from local.deployment import REPOSITORY
from local.state import MARK, State, is_locked

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class Snapshot:
    """Every process of this machine, every listening address, and the files where litter falls."""

    processes: frozenset[tuple[int, float]]
    listening: frozenset[tuple[str, int]]
    files: frozenset[Path]

    @classmethod
    def take(cls, folders: list[Path]) -> "Snapshot":
        """Look at everything, except for what other clouds of this machine start meanwhile."""
        processes, foreign = set(), set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if _foreign(process):
                    foreign.add(process.pid)
                else:
                    processes.add((process.pid, process.create_time()))
        listening = {
            (found.laddr.ip, found.laddr.port)
            for found in psutil.net_connections("inet")
            if found.laddr and found.status == psutil.CONN_LISTEN and found.pid not in foreign
        }
        files = {path for folder in folders if folder.exists() for path in folder.iterdir()}
        return cls(frozenset(processes), frozenset(listening), frozenset(files))


_BEFORE: set[tuple[int, float]] = set()


def _foreign(process: psutil.Process) -> bool:
    """Tell whether a process is new but descends from one that was there before the test.

    Such as what another terminal runs. What the cloud leaves has lost its parents.
    """
    if (process.pid, process.create_time()) in _BEFORE:
        return False
    if process.status() == psutil.STATUS_ZOMBIE:
        return True
    own = os.getpid()
    for parent in process.parents():
        if parent.pid in {own, 1}:
            return False
        if (parent.pid, parent.create_time()) in _BEFORE and not _subreaper(parent):
            return True
    return False


def _subreaper(process: psutil.Process) -> bool:
    """Tell whether orphans may come to it: init, or a session's manager."""
    return process.pid == 1 or process.name() in {"systemd", "init", "tini", "dumb-init"}


@dataclass
class Place:
    """A cloud of the test's own, run by the command line."""

    folder: Path
    temporary: Path
    watched: list[Path] = field(default_factory=list)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and return at once."""
        process = subprocess.Popen(
            [sys.executable, "-m", "local", *arguments],
            env={
                **os.environ,
                "LAMBDA_PG_STATE_DIR": str(self.folder),
                "TMPDIR": str(self.temporary),
            },
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it said."""
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=100)
        return process.returncode, said

    def snapshot(self) -> Snapshot:
        """Look at the machine."""
        return Snapshot.take(self.watched)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let children hear Ctrl-C even where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def place(interruptible: None) -> Iterator[Place]:
    """Give a state folder, and end by force what a failing test has left."""
    base = Path(tempfile.gettempdir()) / f"lpg-{secrets.token_hex(4)}"
    temporary = base / "tmp"
    temporary.mkdir(parents=True)
    folder = base / "state"
    _BEFORE.clear()
    _BEFORE.update((each.pid, each.create_time()) for each in psutil.process_iter())
    yield (made := Place(folder, temporary, [temporary, base, Path("/dev/shm")]))  # noqa: S108
    made.run("down")
    for process in made.running:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    temporary.rmdir()
    base.rmdir()


def settles(look: Callable[[], Snapshot], before: Snapshot) -> None:
    """Wait until nothing is there that was not there before, or fail with what is."""
    deadline = time.monotonic() + 20
    while True:
        now = look()
        left = (
            now.processes - before.processes,
            now.listening - before.listening,
            now.files - before.files,
        )
        if not any(left):
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {[_told(pid) for pid, _ in left[0]]} {left[1:]}")
        time.sleep(0.1)


def _told(pid: int) -> str:
    with suppress(psutil.Error):
        return f"{pid}: {' '.join(psutil.Process(pid).cmdline())[:200]}"
    return f"{pid}: gone"


def test_down_leaves_nothing(place: Place) -> None:
    """After a whole deployment: no process, no listening port, no file; and twice is as good."""
    before = place.snapshot()
    code, said = place.run("up")
    assert code == 0, said
    assert "The console is at http://127.0.0.1:" in said
    assert place.snapshot().processes > before.processes
    assert place.run("down") == (0, "")
    assert not place.folder.exists()
    settles(place.snapshot, before)
    assert place.run("down") == (0, "")


@pytest.mark.parametrize("step", ["control plane: MiniStack", "cdk synth"])
def test_ctrl_c_during_the_start_leaves_nothing(place: Place, step: str) -> None:
    """Interrupted in the middle of a step, `up` ends everything before it ends itself."""
    before = place.snapshot()
    process = place.start("up")
    assert process.stdout is not None
    for line in process.stdout:
        if f"… {step}" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=40)
    assert process.returncode == 130
    settles(place.snapshot, before)
    assert not place.folder.exists()


def test_killing_the_starting_command_leaves_nothing(place: Place) -> None:
    """Nobody is left to stop it, so the cloud stops itself."""
    before = place.snapshot()
    process = place.start("up")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    process.kill()
    process.communicate()
    settles(place.snapshot, before)


def test_a_killed_daemon_leaves_no_process(place: Place) -> None:
    """After kill -9 the guardian ends the rest; the next start cleans up and works."""
    before = place.snapshot()
    assert place.run("up", "--no-deploy")[0] == 0
    os.kill(State.load(place.folder).daemon, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_locked(place.folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = place.snapshot()
    assert not left.processes - before.processes
    assert not left.listening - before.listening
    code, said = place.run("status")
    assert (code, "no local cloud is running" in said) == (1, True)
    assert place.run("up", "--no-deploy")[0] == 0
    assert place.run("down")[0] == 0
    settles(place.snapshot, before)


def test_down_cleans_up_after_a_killed_guardian_too(place: Place) -> None:
    """With guardian and daemon killed, what is left is found by the mark in its environment."""
    before = place.snapshot()
    assert place.run("up", "--no-deploy")[0] == 0
    state = State.load(place.folder)
    os.kill(state.guardian, signal.SIGKILL)
    os.kill(state.daemon, signal.SIGKILL)
    assert place.run("down")[0] == 0
    settles(place.snapshot, before)
    assert MARK not in os.environ
