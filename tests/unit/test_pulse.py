"""When a PgBouncer counts as one that hangs: by what each look has seen, and by nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lambda_pg_cdk.pgbouncer.pulse import IDLE_LOOKS, MOST_LOOKS, Usage, Verdict, usage_of
from tests.support.waiting import wait_until

STOPPED = Usage("T", 100)
SLEEPING = Usage("S", 100)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")


def silent_looks(verdict: Verdict, *usages: Usage | None) -> list[bool]:
    """Look without an answer, once for each usage; return whether it hangs after each."""
    return [bool(verdict.look(answered=False, usage=usage)) for usage in usages]


@pytest.mark.parametrize("usage", [STOPPED, SLEEPING, Usage("D", 100)], ids=lambda u: u.state)
def test_no_answer_and_no_work_is_a_hang_after_three_looks(usage: Usage) -> None:
    """Stopped, waiting for a lock, or for a disk: nobody is served."""
    verdict = Verdict()
    verdict.look(answered=True, usage=usage)
    assert silent_looks(verdict, *[usage] * IDLE_LOOKS) == [False] * (IDLE_LOOKS - 1) + [True]
    assert f"process state {usage.state}" in verdict.look(answered=False, usage=usage)


def test_one_that_uses_the_processor_is_busy() -> None:
    """Also where it is found stopped at each look, as by what bounds its share of a core."""
    verdict = Verdict()
    working = [Usage("T", ticks) for ticks in range(MOST_LOOKS - 1)]
    assert not any(silent_looks(verdict, *working))
    assert verdict.answers


def test_one_that_waits_for_the_processor_is_busy() -> None:
    """On a machine with too much to do it may get none for seconds."""
    assert not any(silent_looks(Verdict(), *[Usage("R", 100)] * (MOST_LOOKS - 1)))


def test_one_that_works_for_minutes_without_an_answer_hangs_too() -> None:
    """As in an endless loop. An answer begins the count again."""
    verdict = Verdict()
    working = [Usage("R", ticks) for ticks in range(MOST_LOOKS)]
    assert not any(silent_looks(verdict, *working[:-1]))
    assert not verdict.look(answered=True, usage=STOPPED)
    assert silent_looks(verdict, *working) == [False] * (MOST_LOOKS - 1) + [True]


def test_an_answer_now_and_then_is_enough() -> None:
    """Looks and answers need not alternate: only several silent looks in a row count."""
    verdict = Verdict()
    for _ in range(10):
        assert not any(silent_looks(verdict, *[SLEEPING] * (IDLE_LOOKS - 1)))
        assert not verdict.look(answered=True, usage=SLEEPING)


def test_without_proc_only_the_long_limit_counts() -> None:
    """Nothing tells a hang from work there."""
    looks = silent_looks(Verdict(), *[None] * MOST_LOOKS)
    assert looks == [False] * (MOST_LOOKS - 1) + [True]


def test_a_silent_look_makes_the_container_unhealthy_until_the_next_answer() -> None:
    """What the health check is shown."""
    verdict = Verdict()
    assert verdict.answers
    silent_looks(verdict, SLEEPING, SLEEPING)
    assert not verdict.answers
    verdict.look(answered=True, usage=SLEEPING)
    assert verdict.answers


@on_linux
def test_the_kernel_tells_state_and_time_used() -> None:
    """Also of a process whose name has a bracket and spaces in it."""
    own = usage_of(os.getpid())
    assert own is not None
    assert own.state == "R"
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    later = usage_of(os.getpid())
    assert later is not None
    assert later.ticks >= own.ticks + 5
    script = "import time\nopen('/proc/self/comm', 'w').write('a) S 1 2')\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script]) as sleeper:
        try:
            name = Path(f"/proc/{sleeper.pid}/comm")
            wait_until(lambda: name.read_text() == "a) S 1 2\n", 10, "its name")
            wait_until(lambda: (usage_of(sleeper.pid) or STOPPED).state == "S", 10, "its rest")
        finally:
            sleeper.kill()


@on_linux
def test_a_process_that_has_gone_has_no_usage() -> None:
    """Its end is seen elsewhere."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert usage_of(process.pid) is None
