"""Each stage's and each combination's templates, synthesised once for all tests."""

from collections.abc import Mapping

import pytest

from lambda_pg_cdk.tools.synth import BASE, COMBINATIONS
from tests.support.templates import STAGES, Stage, Synthesised, synthesise_once


@pytest.fixture(scope="session")
def stages() -> Mapping[str, Stage]:
    """Give all stages."""
    return Synthesised(STAGES, synthesise_once)


@pytest.fixture(scope="session")
def combinations() -> Mapping[str, Stage]:
    """Give what a stage can be made of."""
    return Synthesised(COMBINATIONS, lambda name: synthesise_once(BASE, COMBINATIONS[name]))


@pytest.fixture(scope="session")
def apps(stages: Mapping[str, Stage], combinations: Mapping[str, Stage]) -> Mapping[str, Stage]:
    """Give every stage and every combination."""
    names = (*STAGES, *COMBINATIONS)
    return Synthesised(names, lambda name: (stages if name in STAGES else combinations)[name])


@pytest.fixture(params=sorted(COMBINATIONS))
def combination(request: pytest.FixtureRequest, combinations: Mapping[str, Stage]) -> Stage:
    """Give one combination after the other."""
    return combinations[request.param]


@pytest.fixture(params=(*STAGES, *COMBINATIONS))
def app(request: pytest.FixtureRequest, apps: Mapping[str, Stage]) -> Stage:
    """Give every stage and every combination, one after the other."""
    return apps[request.param]


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
