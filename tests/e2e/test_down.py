"""What a local cloud leaves behind: nothing, however it ends."""

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE, State, is_locked
from tests.support.place import Place, state_folder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # a deployment takes minutes where the machine is busy


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
    """Give a state folder for a cloud of the test's own."""
    with state_folder() as made:
        yield made


def test_down_leaves_nothing(whole: Place, passers_by: None) -> None:
    """After a whole deployment: no process, no file, no shared memory; and twice is as good."""
    assert "The console is at http://127.0.0.1:" in whole.output
    assert whole.remember() <= whole.processes()
    assert whole.files()
    assert whole.run("down") == (0, "stopped; its data is removed\n")
    assert not whole.folder.exists()
    whole.settles()
    assert whole.run("down") == (0, "nothing was running\n")


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


def test_killed_parts_leave_no_process(place: Place) -> None:
    """After kill -9 of the daemon the guardian ends the rest; the next start cleans up and works.

    With both killed, the rest is found by the cloud's id in its environment.
    """
    assert place.run("up", "--no-deploy")[0] == 0
    ways_to_know_a_process(place)
    os.kill(State.load(place.folder).daemon, signal.SIGKILL)
    wait_until(lambda: not is_locked(place.folder), 20, "the end of the guardian")
    assert place.processes() == set()
    code, said = place.run("status")
    assert (code, "no local cloud is running" in said) == (1, True)

    assert place.run("up", "--no-deploy")[0] == 0
    place.remember()
    state = State.load(place.folder)
    os.kill(state.guardian, signal.SIGKILL)
    os.kill(state.daemon, signal.SIGKILL)
    assert place.run("down")[0] == 0
    place.settles()
    assert CLOUD_ID_VARIABLE not in os.environ
    what_is_left_is_found(place)


def ways_to_know_a_process(place: Place) -> None:
    """Check that each way to know a running cloud's process finds one by itself."""
    running = place.remember()
    by_birth, place.started = place.started, set()
    assert {each for each in running if each.name() != "postgres"} <= place.processes()
    assert running <= place.processes()  # backends too, whose environments are overwritten
    cloud_ids, place.cloud_ids = place.cloud_ids, set()
    assert {each.name() for each in place.processes()} >= {"postgres"}
    place.started, place.cloud_ids = by_birth, cloud_ids


def what_is_left_is_found(place: Place) -> None:
    """Check that a process of an ended cloud is found: otherwise these tests prove nothing."""
    cloud_id = next(iter(place.cloud_ids))
    with subprocess.Popen(["sleep", "60"], env={**os.environ, CLOUD_ID_VARIABLE: cloud_id}) as left:
        wait_until(lambda: place.processes() == {psutil.Process(left.pid)}, 10, "what is left")
        left.kill()
    assert place.processes() == set()
