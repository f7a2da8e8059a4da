"""What a local cloud leaves behind: nothing, however it ends."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE, State, is_locked
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # a deployment takes minutes where the machine is busy


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where PostgreSQL keeps its segments


@dataclass
class Place:
    """A cloud of the test's own, run by the command line."""

    folder: Path
    temporary: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    cloud_ids: set[str] = field(default_factory=set)
    started: set[psutil.Process] = field(default_factory=set)
    segments: set[Path] = field(default_factory=set)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and return at once."""
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
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and its output."""
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let children hear Ctrl-C even where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# Another terminal, a build, a browser: children that end, orphans that outlive their parents.
PASSERS_BY = "while :; do (sleep 0.3 &) ; sleep 0.1; done"


@pytest.fixture
def passers_by() -> Iterator[None]:
    """Have other processes of this machine come and go."""
    shell = subprocess.Popen(["sh", "-c", PASSERS_BY], start_new_session=True)
    yield
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()


@pytest.fixture
def place(interruptible: None, passers_by: None) -> Iterator[Place]:
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


def test_down_leaves_nothing(place: Place) -> None:
    """After a whole deployment: no process, no file, no shared memory; and twice is as good."""
    code, said = place.run("up")
    assert code == 0, said
    assert "The console is at http://127.0.0.1:" in said
    assert place.remember() <= place.processes()
    assert place.files()
    assert place.run("down") == (0, "stopped; its data is removed\n")
    assert not place.folder.exists()
    place.settles()
    assert place.run("down") == (0, "nothing was running\n")


def test_what_is_left_is_found_among_the_processes_of_the_machine(place: Place) -> None:
    """Otherwise the other tests prove nothing: each way to know a process finds one by itself."""
    assert place.run("up", "--no-deploy")[0] == 0
    running = place.remember()
    by_birth, place.started = place.started, set()
    assert {each for each in running if each.name() != "postgres"} <= place.processes()
    assert running <= place.processes()  # backends too, whose environments are overwritten
    cloud_ids, place.cloud_ids = place.cloud_ids, set()
    assert {each.name() for each in place.processes()} >= {"postgres"}
    place.started, place.cloud_ids = by_birth, cloud_ids
    assert place.run("down")[0] == 0
    place.settles()
    (cloud_id,) = cloud_ids
    with subprocess.Popen(["sleep", "60"], env={**os.environ, CLOUD_ID_VARIABLE: cloud_id}) as left:
        wait_until(lambda: place.processes() == {psutil.Process(left.pid)}, 10, "what is left")
        left.kill()
    assert place.processes() == set()


@pytest.mark.parametrize("step", ["control plane: MiniStack", "cdk synth"])
def test_ctrl_c_during_the_start_leaves_nothing(place: Place, step: str) -> None:
    """Interrupted in the middle of a step, `up` ends everything before it ends itself."""
    process = place.start("up")
    assert process.stdout is not None
    for line in process.stdout:
        if f"… {step}" in line:
            break
    assert place.remember()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    place.settles()
    assert not place.folder.exists()


def test_killing_the_starting_command_leaves_nothing(place: Place) -> None:
    """The cloud stops itself when the command that started it is killed."""
    process = place.start("up")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    assert place.remember()
    process.kill()
    process.communicate()
    place.settles()


def test_a_killed_daemon_leaves_no_process(place: Place) -> None:
    """After kill -9 the guardian ends the rest; the next start cleans up and works."""
    assert place.run("up", "--no-deploy")[0] == 0
    place.remember()
    os.kill(State.load(place.folder).daemon, signal.SIGKILL)
    wait_until(lambda: not is_locked(place.folder), 20, "the end of the guardian")
    assert place.processes() == set()
    code, said = place.run("status")
    assert (code, "no local cloud is running" in said) == (1, True)
    assert place.run("up", "--no-deploy")[0] == 0
    place.remember()
    assert place.run("down")[0] == 0
    place.settles()


def test_down_cleans_up_after_a_killed_guardian_too(place: Place) -> None:
    """With guardian and daemon killed, the rest is found by the cloud's id in its environment."""
    assert place.run("up", "--no-deploy")[0] == 0
    place.remember()
    state = State.load(place.folder)
    os.kill(state.guardian, signal.SIGKILL)
    os.kill(state.daemon, signal.SIGKILL)
    assert place.run("down")[0] == 0
    place.settles()
    assert CLOUD_ID_VARIABLE not in os.environ
