"""A short chaos, and five layers broken on purpose: each fails in the row that guards it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.chaos.run import IDLE, Chaos, Trial, control, options, trial
from local.cloud import LocalCloud
from local.paths import another_state_dir

RETRY = (
    "_recovery.py",
    "        window.pause(error, absent=absent)\n",
    "        raise DatabaseUnavailableError('a mutant does not retry') from error\n",
)
LIVENESS = (
    "_pool.py",
    "if connection.idle_since <= now < connection.fresh_until and not connection.poll(0):",
    "if connection.idle_since <= now < connection.fresh_until:",
)
REFRESH = (
    "_login.py",
    "other = self._credentials.after_refusal(credentials, max(0.1, until - monotonic()))",
    "other = None",
)
ONLY_IDEMPOTENT = "            if failure is Failure.LOST and idempotent:\n"
SAYS_DONE = (
    "_database.py",
    ONLY_IDEMPOTENT,
    f"            if failure is Failure.NOT_RUN:\n                return cursor\n{ONLY_IDEMPOTENT}",
)
REPEATS_ALL = (
    "_database.py",
    ONLY_IDEMPOTENT,
    "            if failure is Failure.LOST:\n",
)
ROTATED = trial(faults.ROTATED)
REPLACED = trial(faults.POOLER_REPLACED)
KILLED = trial(faults.BACKENDS_KILLED)


@pytest.fixture(scope="module")
def wired() -> Iterator[LocalCloud]:
    """A cloud with wires and the ledger."""
    with LocalCloud(another_state_dir(), options()) as started:
        yield started


def test_no_fault_of_a_moment_loses_anything(wired: LocalCloud) -> None:
    """Idle connections reset, all backends killed, two rotations: every goal is held.

    The function without layer and pooler fails meanwhile.
    """
    chaos = Chaos(wired, print)
    with control(wired) as statuses:
        rows = [chaos.run(each) for each in (IDLE, KILLED)]
        wired.postgres("restart")
    rows.append(chaos.run(ROTATED))
    assert [row["missed"] for row in rows] == [[], [], []]
    assert any(status != 200 for status in statuses)


@pytest.mark.parametrize(
    ("mutation", "guard", "reason"),
    [
        pytest.param(LIVENESS, IDLE, "notes of unknown outcome", id="liveness"),
        pytest.param(RETRY, REPLACED, "nothing may in a fault that is survived", id="retry"),
        pytest.param(REFRESH, ROTATED, "nothing may in a fault that is survived", id="refresh"),
    ],
)
def test_a_layer_without_a_part_fails_in_the_row_that_guards_it(
    wired: LocalCloud, project: Path, mutation: tuple[str, str, str], guard: Trial, reason: str
) -> None:
    """Chaos sees what is missing: the faults are real, and so are the goals."""
    mutate(project, *mutation)
    wired.deploy(app=project)
    row: dict[str, Any] = Chaos(wired, print).run(guard)
    assert any(reason in missed for missed in row["missed"]), row
    assert row["lost"] == row["duplicated"] == 0, "even a broken layer loses nothing here"


@pytest.mark.parametrize(
    ("mutation", "guard", "finding"),
    [
        pytest.param(SAYS_DONE, trial(faults.POOL_FULL_LONG), "lost", id="lost"),
        pytest.param(REPEATS_ALL, trial(faults.ANSWERS_LOST), "duplicated", id="duplicated"),
    ],
)
def test_what_a_layer_loses_or_does_twice_is_found(
    wired: LocalCloud, project: Path, mutation: tuple[str, str, str], guard: Trial, finding: str
) -> None:
    """One that takes a refusal for success loses; one that repeats every statement duplicates."""
    mutate(project, *mutation)
    wired.deploy(app=project)
    row: dict[str, Any] = Chaos(wired, print).run(guard)
    assert row[finding] > 0, row
    assert any(missed.startswith(f"{row[finding]} {finding}") for missed in row["missed"]), row


def mutate(project: Path, name: str, part: str, without: str) -> None:
    """Take a part of the layer out of a copy of the project; it has to be there, once."""
    file = project / "layer" / "python" / "lambda_pg" / name
    text = file.read_text()
    assert text.count(part) == 1, f"{name} is not what this mutant was made for"
    file.write_text(text.replace(part, without))
