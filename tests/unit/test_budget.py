"""The connection budget: what counts, and what a stage over it is told."""

import json
from pathlib import Path

import pytest

from stacks.budget import Budget, BudgetError, Line, budget_of, rolling_tasks
from stacks.config import Config

CONTEXT = json.loads((Path(__file__).parents[2] / "cdk.json").read_text())["context"]


def budget(stage: str, **override: object) -> Budget:
    """Add up a stage with some settings changed."""
    context = {**CONTEXT, "stage": stage, "override": json.dumps(override)}
    return budget_of(Config.from_context(context.get))


@pytest.mark.parametrize("stage", CONTEXT["stages"])
def test_every_stage_of_cdk_json_fits(stage: str) -> None:
    """No stage as committed can exhaust its database."""
    budget(stage).check()


def test_a_deployment_doubles_the_pooler() -> None:
    """Old and new tasks run side by side, each with all of its server connections."""
    first = budget("local").lines[0]
    assert first.connections == 2 * 20
    assert "2 tasks during a deployment (1 at 200 %)" in first.what


@pytest.mark.parametrize(
    ("tasks", "percent", "running"), [(1, 200, 2), (2, 150, 3), (3, 150, 4), (1, 150, 1)]
)
def test_ecs_rounds_the_upper_limit_down(tasks: int, percent: int, running: int) -> None:
    """As the service scheduler does."""
    assert rolling_tasks(tasks, percent) == running


def test_the_last_connection_may_be_used_and_no_more() -> None:
    """A sum equal to max_connections is accepted, one more is not."""
    Budget((Line("a", 60), Line("b", 40)), 100).check()
    with pytest.raises(BudgetError, match="are 1 more"):
        Budget((Line("a", 60), Line("b", 41)), 100).check()


def test_the_refusal_shows_the_arithmetic() -> None:
    """Each group on a line of its own, the sum, the limit and what to change."""
    with pytest.raises(BudgetError) as refused:
        budget("local", pooler={"max_db_connections": 45}).check()
    text = str(refused.value)
    for line in (
        "      90  pooler: 2 tasks",
        "       1  migration",
        "       5  administrators",
        "       5  reserved",
        "     101  all together",
        "     100  database.max_connections",
    ):
        assert line in text
    assert "Lower pooler.max_db_connections" in text


def test_the_baseline_is_outside() -> None:
    """The control of the storm has no budget: that is what it shows."""
    assert budget("local", baseline=True).total == budget("local", baseline=False).total
