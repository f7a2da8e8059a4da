"""Which tests run in one process, as tests/conftest.py says."""

from types import ModuleType

import pytest

from lambda_pg_cdk import PROJECT

TESTS = PROJECT / "tests"


@pytest.fixture
def conftest(pytestconfig: pytest.Config) -> ModuleType:
    """The conftest of all tests, which pytest has loaded."""
    found = [each for each in pytestconfig.pluginmanager.get_plugins() if hasattr(each, "group_of")]
    (module,) = found
    assert isinstance(module, ModuleType)
    return module


def test_end_to_end_tests_are_in_two_groups(conftest: ModuleType) -> None:
    """One process starts clouds, the other one uses its own cloud for every test."""
    names = {path.name for path in (TESTS / "e2e").glob("test_*.py")}
    groups = {name: conftest.group_of(f"tests/e2e/{name}") for name in names}
    assert set(groups.values()) == set(conftest.END_TO_END)
    assert groups["test_down.py"] != groups["test_api.py"]


def test_tests_of_templates_are_a_group(conftest: ModuleType) -> None:
    """One process starts the CDK, and all of them use its templates."""
    names = {path.name for path in (TESTS / "synth").glob("test_*.py")}
    assert {conftest.group_of(f"tests/synth/{name}") for name in names} == {conftest.SYNTHESIS}


def test_another_file_is_a_group(conftest: ModuleType) -> None:
    """Its fixtures are made once."""
    assert conftest.group_of("tests/unit/test_groups.py") == "tests/unit/test_groups.py"


def test_files_that_are_named_are_there(conftest: ModuleType) -> None:
    """A renamed file would lose its place without a word."""
    named = [*conftest.LAST_IN_A_CLOUD, *conftest.LONGEST]
    named += [f"e2e/{name}" for name in conftest.SEVERAL_CLOUDS]
    assert [name for name in named if not (TESTS / name).is_file()] == []
