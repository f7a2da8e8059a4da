"""What Cognito's trigger adds to an access token: a user's groups that are scopes of routes."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from aws_lambda_powertools.utilities.data_classes.cognito_user_pool_event import (
    PreTokenGenerationV2TriggerEvent,
)

from lambda_pg_cdk import PACKAGE
from tests.support.functions import load_function


@pytest.fixture
def scopes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the function's module, with the scopes of two routes."""
    monkeypatch.setenv("SCOPES", "users:read users:write")
    return load_function("operations/scopes")


def event(*groups: str) -> dict[str, Any]:
    """Make a request of Cognito for tokens of a user in these groups, in event version 2."""
    return {
        "version": "2",
        "triggerSource": "TokenGeneration_Authentication",
        "region": "eu-west-1",
        "userPoolId": "eu-west-1_EXAMPLE",
        "userName": "f3a1c2d4-0000-4000-8000-000000000001",
        "callerContext": {"awsSdkVersion": "aws-sdk-js-3", "clientId": "1example23456789"},
        "request": {
            "userAttributes": {"sub": "f3a1c2d4-0000-4000-8000-000000000001"},
            "groupConfiguration": {
                "groupsToOverride": list(groups),
                "iamRolesToOverride": [],
                "preferredRole": None,
            },
            "scopes": ["aws.cognito.signin.user.admin"],
        },
        "response": {"claimsAndScopeOverrideDetails": None},
    }


def added(scopes: ModuleType, asked: dict[str, Any]) -> list[str]:
    """Read the scopes that the function adds, as Powertools reads such an answer."""
    answer = PreTokenGenerationV2TriggerEvent(scopes.handler(asked, None))
    details = answer.response.claims_scope_override_details.access_token_generation
    assert details is not None
    return details.scopes_to_add


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (("users:read",), ["users:read"]),
        (("users:write", "users:read"), ["users:write", "users:read"]),
        (("administrators", "users:read"), ["users:read"]),
        (("users:reader", "users", "USERS:READ", "users:read users:write"), []),
        ((), []),
    ],
)
def test_groups_that_are_scopes_are_added(
    scopes: ModuleType, groups: tuple[str, ...], expected: list[str]
) -> None:
    """And no other group, whatever its name is."""
    assert added(scopes, event(*groups)) == expected


@pytest.mark.parametrize("groups", [{}, {"groupsToOverride": None}])
def test_a_user_without_groups_gets_no_scope(scopes: ModuleType, groups: dict[str, Any]) -> None:
    """The list may be missing or null."""
    asked = event()
    asked["request"]["groupConfiguration"] = groups
    assert added(scopes, asked) == []


def test_nothing_else_of_the_tokens_changes(scopes: ModuleType) -> None:
    """No claim, no group and no scope that is there already: an empty group list would remove."""
    asked = event("users:read")
    answer = scopes.handler(event("users:read"), None)
    assert answer == {
        **asked,
        "response": {
            "claimsAndScopeOverrideDetails": {
                "accessTokenGeneration": {"scopesToAdd": ["users:read"]}
            }
        },
    }


def test_what_a_client_sends_along_gives_no_scope(scopes: ModuleType) -> None:
    """Attributes and metadata are the user's and the client's own words."""
    asked = event()
    words = {"scopesToAdd": "users:write", "cognito:groups": "users:write"}
    asked["request"].update(clientMetadata=words, userAttributes=words)
    asked["request"]["scopes"].append("users:write")
    assert added(scopes, asked) == []


def test_it_imports_the_standard_library_only() -> None:
    """Every sign-in waits for it, and it has neither layer nor packages."""
    program = (
        "import sys, os; os.environ['SCOPES'] = ''; before = set(sys.modules)\n"
        "import handler\n"
        "found = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(found - {'handler'} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=PACKAGE / "operations" / "scopes",
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.strip() == "set()"
