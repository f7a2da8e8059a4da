"""What the stacks say of the code that they deploy, as the code itself has it."""

from pathlib import Path

import pytest

from lambda_pg_cdk.operations.migration_provider.handler import ANSWERING, STARTING
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.schema import Rule, describe
from tests.support.functions import load_function


def test_a_deployment_asks_for_a_step_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack's word for it is the function's; so is the name of the metric."""
    from lambda_pg_cdk.stacks.database import ADMIT, REPORT, ROTATION_OFF
    from lambda_pg_cdk.stacks.pooler.pgbouncer import METRICS

    monkeypatch.setenv("PGHOST", "database.test")
    monkeypatch.setenv("LAMBDA_PG_PROFILE", "direct")
    rotate = load_function("operations/rotate")
    assert (rotate.ADMIT, rotate.REPORT) == (ADMIT, REPORT)
    assert (rotate.METRICS, rotate.ROTATION_OFF) == (METRICS, ROTATION_OFF)


def test_the_longest_migration_leaves_time_to_wake_its_function() -> None:
    """About a minute, says AWS: https://docs.aws.amazon.com/lambda/latest/dg/functions-states.html."""
    from lambda_pg_cdk.stacks.migration import LONGEST

    found: dict[str, Rule] = {name: rule for name, rule, _ in describe(Config)}
    longest = found["functions.migration_timeout"].maximum
    assert longest is not None
    assert longest + STARTING + ANSWERING + 60 <= LONGEST


def test_a_function_of_the_storm_has_the_code_that_it_imports() -> None:
    """Its zip has the shared lookup under the name that the handler imports."""
    from aws_cdk import aws_lambda as lambda_

    from benchmarks.app import HOME, LOOKUP
    from lambda_pg_cdk.stacks.assets import Assets

    code = Assets(load_stage("local")).function(HOME / "lambda_pg", *LOOKUP)
    assert isinstance(code, lambda_.AssetCode)
    assert (Path(code.path) / "benchmarks" / "lookup" / "layer.py").exists()
