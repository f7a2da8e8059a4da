"""What the last release's templates have that holds data is neither replaced nor deleted unseen.

`make release` writes tests/synth/released.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from lambda_pg_cdk.tools import released
from lambda_pg_cdk.tools.released import APPS, Resources, differences, replacing, resources_of
from tests.support.templates import Stage

ACCEPTED: Mapping[str, str] = {}
"""Differences that the next version makes on purpose, as "app stack.id", and where the changelog
and docs/upgrading.md say so. Empty after a release."""


@pytest.fixture
def today(
    prod: Stage, combinations: Mapping[str, Stage]
) -> Callable[[str], dict[str, dict[str, Any]]]:
    """Return what gives an app's templates."""

    def templates(app: str) -> dict[str, dict[str, Any]]:
        stage = prod if app == prod.name else combinations[app]
        return dict(stage.templates)

    return templates


Templates = Callable[[str], dict[str, dict[str, Any]]]


@pytest.mark.parametrize("app", APPS)
def test_nothing_that_holds_data_is_replaced(app: str, today: Templates) -> None:
    """Each resource of the last release is there, with what would replace it unchanged."""
    release, before = released.load(app)
    found = dict(differences(before, resources_of(today(app))))
    unexpected = {name: why for name, why in found.items() if f"{app} {name}" not in ACCEPTED}
    assert not unexpected, f"since {release}: {unexpected}. Accept it in ACCEPTED, and say so"


@pytest.mark.parametrize("app", APPS)
def test_nothing_is_accepted_in_advance(app: str, today: Templates) -> None:
    """What does not differ need not be accepted."""
    _, before = released.load(app)
    found = {f"{app} {name}" for name, _ in differences(before, resources_of(today(app)))}
    assert {name for name in ACCEPTED if name.startswith(f"{app} ")} <= found


def test_each_kind_is_kept() -> None:
    """The kept apps have what can lose data: a list without it would hold nothing."""
    kinds = {each["Type"] for app in APPS for each in released.load(app)[1].values()}
    assert {
        "AWS::RDS::DBInstance",
        "AWS::RDS::DBCluster",
        "AWS::RDS::DBProxy",
        "AWS::SecretsManager::Secret",
        "AWS::Cognito::UserPool",
        "AWS::Logs::LogGroup",
    } <= kinds


def test_the_kept_release_is_named() -> None:
    """A tag, or the state before the first one."""
    names = {released.load(app)[0] for app in APPS}
    assert len(names) == 1
    assert re.fullmatch(r"v\d+\.\d+\.\d+\S*|before the first release", names.pop())


def database(kept: Resources) -> str:
    """Name the database of an app."""
    return next(name for name, each in kept.items() if each["Type"] == "AWS::RDS::DBInstance")


def test_a_replaced_database_is_reported(today: Templates) -> None:
    """A new name of its subnet group moves an instance: RDS makes a new, empty one."""
    templates = copy.deepcopy(today("prod"))
    stack, name = database(resources_of(templates)).split(".")
    templates[stack]["Resources"][name]["Properties"]["DBSubnetGroupName"] = "another"
    found = dict(differences(resources_of(today("prod")), resources_of(templates)))
    assert list(found) == [f"{stack}.{name}"]
    assert "DBSubnetGroupName is 'another'" in found[f"{stack}.{name}"]
    assert "a deployment replaces it" in found[f"{stack}.{name}"]


def test_another_logical_id_is_reported(today: Templates) -> None:
    """CloudFormation makes a new resource, and deletes the one with the old id."""
    templates = copy.deepcopy(today("prod"))
    stack, name = database(resources_of(templates)).split(".")
    resources = templates[stack]["Resources"]
    resources["Renamed"] = resources.pop(name)
    found = dict(differences(resources_of(today("prod")), resources_of(templates)))
    assert found == {f"{stack}.{name}": "AWS::RDS::DBInstance is gone: a deployment deletes it"}


def test_data_that_is_no_longer_kept_is_reported(today: Templates) -> None:
    """Without its policy a deleted stack takes its database along."""
    templates = copy.deepcopy(today("prod"))
    stack, name = database(resources_of(templates)).split(".")
    templates[stack]["Resources"][name]["DeletionPolicy"] = "Delete"
    found = dict(differences(resources_of(today("prod")), resources_of(templates)))
    assert "DeletionPolicy is Delete" in found[f"{stack}.{name}"]


def test_a_change_in_place_is_not_reported(today: Templates) -> None:
    """A larger instance keeps its data."""
    templates = copy.deepcopy(today("prod"))
    stack, name = database(resources_of(templates)).split(".")
    templates[stack]["Resources"][name]["Properties"]["DBInstanceClass"] = "db.m7g.xlarge"
    assert not list(differences(resources_of(today("prod")), resources_of(templates)))


def test_the_schema_says_what_replaces_a_database() -> None:
    """As CloudFormation's reference does."""
    assert {"DBSubnetGroupName", "KmsKeyId", "StorageEncrypted", "DBName"} <= set(
        replacing("AWS::RDS::DBInstance")
    )
