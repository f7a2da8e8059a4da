"""A short chaos, and five layers broken on purpose: each fails in the row that guards it.

Changes with keys come last: what strikes them ends poolers and servers.
"""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.chaos.run import IDLE, Chaos, Trial, control, options, trial
from benchmarks.once import run as once
from benchmarks.once.sabotage import PHASES, WEIGHTS, Strike
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.faults import catalogue as faults
from lambda_pg_cdk.local.paths import another_state_dir
from tests.support.mutants import (
    LIVENESS,
    REFRESH,
    REPEATS_ALL,
    RETRY,
    SAYS_DONE,
    Mutant,
    deployed_mutant,
)

ROTATED = trial(faults.ROTATED)
REPLACED = trial(faults.POOLER_REPLACED)
KILLED = trial(faults.BACKENDS_KILLED)

pytestmark = pytest.mark.alone  # its goals are in seconds


@pytest.fixture(scope="module")
def wired() -> Iterator[LocalCloud]:
    """A cloud with wires and the ledger."""
    with LocalCloud(another_state_dir(), options()) as started:
        yield started


def test_no_fault_of_a_moment_loses_anything(wired: LocalCloud) -> None:
    """Idle connections reset, all backends killed, two rotations: every goal is met.

    The function without layer and pooler fails during the faults.
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
        pytest.param(RETRY, REPLACED, "no request may fail in this row", id="retry"),
        pytest.param(REFRESH, ROTATED, "no request may fail in this row", id="refresh"),
    ],
)
def test_a_layer_without_a_part_fails_in_the_row_that_guards_it(
    wired: LocalCloud, mutation: Mutant, guard: Trial, reason: str
) -> None:
    """The row of each fault fails when the layer lacks the part that survives it."""
    with deployed_mutant(wired, mutation, "ledger"):
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
    wired: LocalCloud, mutation: Mutant, guard: Trial, finding: str
) -> None:
    """A layer that reports a failure as success loses writes; one that retries all duplicates."""
    with deployed_mutant(wired, mutation, "ledger"):
        row: dict[str, Any] = Chaos(wired, print).run(guard)
    assert row[finding] > 0, row
    assert any(missed.startswith(f"{row[finding]} {finding}") for missed in row["missed"]), row


def test_changes_with_keys_are_applied_once(wired: LocalCloud) -> None:
    """Clients send until they have an answer, while functions, pooler and backends are struck.

    Each action comes in each phase of a transaction at least once.
    """
    outcome = once.run(wired, new_seed(), 150, seconds=120)
    assert outcome.findings.wrong == {}, outcome
    assert outcome.findings.acknowledged == 150
    assert outcome.findings.lost_answers > 0
    every = {Strike(action, phase) for action in WEIGHTS for phase in PHASES}
    assert {*outcome.struck, *outcome.missed} == every


def test_where_keys_are_forgotten_changes_are_made_twice(wired: LocalCloud) -> None:
    """The control: the same load, and a table of keys that stays empty."""
    outcome = once.run(wired, new_seed(), 100, seconds=120, control=True)
    assert outcome.findings.twice > 0, outcome


def new_seed() -> int:
    """Draw a seed; a failed test shows it."""
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    return seed
