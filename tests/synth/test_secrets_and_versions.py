"""Who may decrypt which secret and log in by token, and what makes a function's version new."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from lambda_pg_cdk.tools.synth import COMBINATIONS
from tests.support.templates import Stage, synthesise_once

KEY = "arn:aws:kms:eu-west-1:111122223333:key/fedcba98-7654-3210-fedc-ba9876543210"


def references(value: object) -> set[str]:
    """Find what a part of a template takes from elsewhere, as text."""
    if isinstance(value, dict):
        for name in ("Ref", "Fn::GetAtt"):
            if name in value:
                return {json.dumps(value[name])}
        return {found for part in value.values() for found in references(part)}
    if isinstance(value, list):
        return {found for part in value for found in references(part)}
    return set()


def versions(stage: Stage) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Give each function's version with its function: a name, and their properties."""
    for template in stage.templates.values():
        resources = template.get("Resources", {})
        for name, resource in resources.items():
            if resource["Type"] == "AWS::Lambda::Version":
                function = resources[resource["Properties"]["FunctionName"]["Ref"]]
                yield name, resource["Properties"], function["Properties"]


def test_what_makes_a_version_new_makes_its_function_new(app: Stage) -> None:
    """Lambda publishes no version where only its description is another one, and deploying fails.

    https://docs.aws.amazon.com/lambda/latest/api/API_PublishVersion.html
    """
    found = list(versions(app))
    assert len(found) == 4 + ("sql" in app.functions())
    for name, version, function in found:
        named = references(version["Description"])
        configured = {**function, "Description": None, "Tags": None}
        assert named <= references(configured), name


def test_a_database_restored_under_its_name_is_a_new_configuration(stage: Stage) -> None:
    """Its resource id is all that is new then."""
    variables = stage.functions()["migrate"]["Environment"]["Variables"]
    assert "resourceid" in json.dumps(variables["DATABASE_RESOURCE_ID"])


def statements(stage: Stage, action: str) -> dict[str, list[dict[str, Any]]]:
    """Find, by function's folder, the statements that allow an action."""
    roles = {
        function["Role"]["Fn::GetAtt"][0]: folder for folder, function in stage.functions().items()
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for policy in stage.all("AWS::IAM::Policy").values():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            actions = statement["Action"]
            if action in ([actions] if isinstance(actions, str) else actions):
                for role in policy["Properties"]["Roles"]:
                    found.setdefault(roles.get(role["Ref"], role["Ref"]), []).append(statement)
    return found


def via_secrets_manager(key: str) -> dict[str, Any]:
    """Write the one statement that lets Secrets Manager decrypt in a function's name."""
    return {
        "Action": "kms:Decrypt",
        "Condition": {"StringEquals": {"kms:ViaService": "secretsmanager.eu-west-1.amazonaws.com"}},
        "Effect": "Allow",
        "Resource": key,
    }


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("existing-pgbouncer", {"migrate", "rotate"}),
        ("existing-rds-proxy", {"migrate"}),
        ("existing-rds-proxy-with-secret", {"migrate", "rotate"}),
    ],
)
def test_an_owner_s_secret_under_a_customer_s_key_can_be_read(name: str, readers: set[str]) -> None:
    """By those who read the secret, through Secrets Manager, and by nobody else."""
    override = json.loads(json.dumps(COMBINATIONS[name]))
    override["database"]["existing"]["kms_key_arn"] = KEY
    found = statements(synthesise_once("dev", override), "kms:Decrypt")
    assert found == {reader: [via_secrets_manager(KEY)] for reader in readers}


def test_a_pooler_s_secret_under_a_customer_s_key_can_be_read(
    combinations: dict[str, Stage],
) -> None:
    """Functions and migration decrypt it, and functions of other apps find out the key."""
    stage = combinations["external-in-network"]
    key = COMBINATIONS["external-in-network"]["external"]["kms_key_arn"]
    found = statements(stage, "kms:Decrypt")
    assert found == {
        each: [via_secrets_manager(key)] for each in ("users", "notes", "health", "migrate")
    }
    published = {
        each["Properties"]["Name"]: each["Properties"]["Value"]
        for each in stage.resources("Pooler", "AWS::SSM::Parameter").values()
    }
    assert published["/lambda-pg/dev/pooler/key-arn"] == key


def test_without_a_customer_s_key_nobody_decrypts(combinations: dict[str, Stage]) -> None:
    """AWS's own key needs no permission."""
    for name in ("existing-pgbouncer", "external", "instance-rds-proxy"):
        assert not statements(combinations[name], "kms:Decrypt"), name


@pytest.mark.parametrize("name", ["instance-rds-proxy", "aurora-rds-proxy"])
def test_the_owner_has_a_second_way_in(combinations: dict[str, Stage], name: str) -> None:
    """Where the application's user is one of IAM's, RDS may refuse its maker's password."""
    from lambda_pg_cdk.stacks.servers import MASTER

    stage = combinations[name]
    (statement,) = statements(stage, "rds-db:connect")["migrate"]
    resource = json.dumps(statement["Resource"])
    assert re.search(rf":dbuser:.*databaseresourceid.*/{MASTER}\"", resource)
    assert stage.functions()["migrate"]["Environment"]["Variables"]["OWNER_BY_TOKEN"] == "1"


@pytest.mark.parametrize("name", ["existing-rds-proxy", "instance-pgbouncer", "external"])
def test_nobody_else_may_log_in_as_the_owner(combinations: dict[str, Stage], name: str) -> None:
    """The app does not know the owner of an existing server; with passwords it need not."""
    stage = combinations[name]
    assert "migrate" not in statements(stage, "rds-db:connect")
    assert "OWNER_BY_TOKEN" not in stage.functions()["migrate"]["Environment"]["Variables"]
