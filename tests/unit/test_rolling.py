"""What an ECS service starts and stops, and when: decisions without a process."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_pg_cdk.local.pooler_service.rolling import (
    FIRST_ADDRESS,
    LAST_ADDRESS,
    LONGEST_PAUSE,
    Change,
    Goal,
    State,
    next_address,
    next_change,
    pause_after,
)


@dataclass
class Task:
    """A task without anything behind it."""

    deployment: str
    state: State = "RUNNING"


def old(count: int, state: State = "RUNNING") -> list[Task]:
    """Return tasks of the deployment before."""
    return [Task("old", state) for _ in range(count)]


def new(count: int, state: State = "RUNNING") -> list[Task]:
    """Return tasks of the deployment that is wanted."""
    return [Task("new", state) for _ in range(count)]


def goal(desired: int, minimum: int = 100, maximum: int = 200) -> Goal:
    """Want so many tasks of the new deployment."""
    return Goal("new", desired, minimum, maximum)


@pytest.mark.parametrize(
    ("tasks", "wanted", "start", "stop"),
    [
        pytest.param([], goal(2), 2, 0, id="nothing runs yet"),
        pytest.param(new(2), goal(2), 0, 0, id="all run"),
        pytest.param(new(1), goal(3), 2, 0, id="more are wanted"),
        pytest.param(new(3), goal(1), 0, 2, id="fewer are wanted"),
        pytest.param(new(1), goal(0), 0, 1, id="none are wanted"),
        pytest.param(old(2), goal(2), 2, 0, id="a deployment begins with new ones"),
        pytest.param([*old(2), *new(2, "PENDING")], goal(2), 0, 0, id="new ones are not ready"),
        pytest.param(
            [*old(2), *new(1), *new(1, "PENDING")], goal(2), 0, 1, id="one ready, one replaced"
        ),
        pytest.param([*old(2), *new(2)], goal(2), 0, 2, id="all ready"),
        pytest.param(old(2), goal(2, 50, 100), 0, 1, id="no room above: one ends first"),
        pytest.param(old(1), goal(1, 100, 100), 0, 0, id="neither room above nor below"),
        pytest.param(old(1), goal(1, 0, 100), 0, 1, id="one may be missing"),
        pytest.param(old(4), goal(4, 50, 200), 4, 0, id="room above is used first"),
        pytest.param(old(3), goal(3, 100, 150), 1, 0, id="the upper limit is rounded down"),
        pytest.param(
            [*old(1, "PENDING"), *old(1)], goal(1), 0, 1, id="what never served is not waited for"
        ),
        pytest.param(
            [*new(1), *new(2, "DEACTIVATING"), *new(1, "STOPPING")], goal(2), 1, 0,
            id="what is on its way out does not count",
        ),
    ],
)  # fmt: skip
def test_what_is_started_and_stopped(
    tasks: list[Task], wanted: Goal, start: int, stop: int
) -> None:
    """Both numbers follow from what runs, what is wanted, and the two limits."""
    change = next_change(tasks, wanted)
    assert (change.start, len(change.stop)) == (start, stop)


def test_the_oldest_stay_when_fewer_are_wanted() -> None:
    """And a task that is not ready goes before any that is."""
    tasks = [Task("new"), Task("new"), Task("new", "PENDING"), Task("new")]
    assert next_change(tasks, goal(3)).stop == (tasks[2],)
    assert next_change(tasks, goal(1)).stop == (tasks[2], tasks[3], tasks[1])


@given(
    before=st.integers(0, 6),
    desired=st.integers(0, 6),
    minimum=st.integers(0, 100),
    maximum=st.integers(100, 300),
    seed=st.integers(),
)
def test_a_replacement_keeps_both_limits_and_comes_to_its_end(
    before: int, desired: int, minimum: int, maximum: int, seed: int
) -> None:
    """Whatever the order in which tasks get ready: never too few, never too many, and done."""
    wanted = goal(desired, minimum, maximum)
    tasks, chance = old(before), random.Random(seed)  # noqa: S311 - hypothesis names the seed
    stuck = min(before, desired) > 0 and wanted.most == wanted.fewest  # on ECS as well
    for _ in range(200):
        apply(next_change(tasks, wanted), tasks)
        check_limits(tasks, wanted, before)
        for task in tasks:
            if task.state == "PENDING" and chance.random() < 0.5:
                task.state = "RUNNING"
    if not stuck:
        assert tasks == new(desired)


def apply(change: Change[Task], tasks: list[Task]) -> None:
    """Do what has been decided."""
    for task in change.stop:
        tasks.remove(task)
    tasks.extend(new(change.start, "PENDING"))


def check_limits(tasks: Sequence[Task], wanted: Goal, before: int) -> None:
    """Enough run, unless there were fewer before; and not more than allowed are alive."""
    running = sum(task.state == "RUNNING" for task in tasks)
    assert running >= min(before, wanted.fewest)
    assert len(tasks) <= max(before, wanted.most)


def test_addresses_are_on_loopback_and_none_comes_again_soon() -> None:
    """A replacement meets no address of what it replaces; the range is walked in a circle."""
    given_: list[str] = []
    last = ""
    count = int(LAST_ADDRESS) - int(FIRST_ADDRESS) + 1
    for _ in range(count):
        last = next_address(last, given_[-3:])
        given_.append(last)
    assert (given_[0], given_[-1]) == (str(FIRST_ADDRESS), str(LAST_ADDRESS))
    assert len(set(given_)) == count
    assert all(address.startswith("127.0.0.") for address in given_)
    assert next_address(last, {str(FIRST_ADDRESS)}) == str(FIRST_ADDRESS + 1)
    with pytest.raises(LookupError, match="are taken"):
        next_address(last, given_)


def test_the_pause_before_another_try_grows_to_a_limit() -> None:
    """A first start waits for nothing; a task that fails for ever does not fill the log."""
    pauses = [pause_after(failures) for failures in range(20)]
    assert pauses[:4] == [0, 0.5, 1, 2]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
