"""Each stage's and each combination's templates, synthesised once for all tests."""

from collections.abc import Mapping

import pytest

from lambda_pg_cdk.tools import synth as synthesis
from lambda_pg_cdk.tools.synth import COMBINATIONS
from tests.support.templates import STAGES, Stage, Synthesised, synthesise


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Stage]:
    """Give all stages."""
    return Synthesised(STAGES, lambda name: synthesise(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def combinations(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Stage]:
    """Give what a stage can be made of."""
    return Synthesised(
        COMBINATIONS,
        lambda name: synthesise(synthesis.BASE, tmp_path_factory.mktemp(name), COMBINATIONS[name]),
    )


@pytest.fixture(params=sorted(COMBINATIONS))
def combination(request: pytest.FixtureRequest, combinations: Mapping[str, Stage]) -> Stage:
    """Give one combination after the other."""
    return combinations[request.param]


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest, stages: Mapping[str, Stage]) -> Stage:
    """Give one stage after the other."""
    return stages[request.param]


@pytest.fixture
def local(stages: Mapping[str, Stage]) -> Stage:
    """Give the stage that the local cloud deploys."""
    return stages["local"]


@pytest.fixture
def prod(stages: Mapping[str, Stage]) -> Stage:
    """Give the stage with everything on."""
    return stages["prod"]
