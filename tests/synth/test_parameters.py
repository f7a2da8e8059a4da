"""What somebody gets who may write the parameters, and who is let in to keys and interfaces."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.stage.parameters import PARAMETERS
from lambda_pg_cdk.tools.synth import COMBINATIONS
from tests.support.templates import Stage
from tests.synth.walk import pages
from tests.synth.walk.deployed import Deployed, as_list, labels, statements

EVIL = "arn:aws:lambda:eu-west-1:666677778888:layer:evil:7"
IN_NETWORK = sorted(set(COMBINATIONS) - {"external", "external-with-sql"})


def attacked(stage: Stage) -> Deployed:
    """Write another value into each parameter; a layer's is another account's ARN."""
    templates = copy.deepcopy(dict(stage.templates))
    for template in templates.values():
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::SSM::Parameter":
                name = resource["Properties"]["Name"]
                layer = str(name).endswith("/layer/arn")
                resource["Properties"]["Value"] = EVIL if layer else "evil"
    return Deployed(templates)


@pytest.mark.parametrize("name", sorted(COMBINATIONS))
def test_a_layer_of_another_account_is_attached_to_nothing(
    combinations: dict[str, Stage], name: str
) -> None:
    """Whatever the parameter says, the layer is one of this account, or there is none."""
    app = attacked(combinations[name])
    found = [
        layer
        for function in app.of_kind("AWS::Lambda::Function")
        for layer in app.texts(function, "Layers.*")
    ]
    assert len(found) >= 3
    assert set(found) == {"arn:aws:lambda:eu-west-1:111122223333:layer:evil:7"}


@pytest.mark.parametrize("name", IN_NETWORK)
def test_the_app_s_own_functions_stay_in_the_app_s_network(
    combinations: dict[str, Stage], name: str
) -> None:
    """Neither subnets nor the VPC of their groups come from a parameter."""
    app = attacked(combinations[name])
    for function in app.of_kind("AWS::Lambda::Function"):
        assert "evil" not in app.texts(function, "VpcConfig.SubnetIds"), function
    for group in app.of_kind("AWS::EC2::SecurityGroup"):
        assert "evil" not in app.texts(group, "VpcId"), group


@pytest.mark.parametrize("name", sorted(COMBINATIONS))
def test_what_the_settings_say_comes_from_no_parameter(
    combinations: dict[str, Stage], name: str
) -> None:
    """PgBouncer's name and port, an external pooler's secret, an existing database's address."""
    app = attacked(combinations[name])
    looked_up = {
        (function.properties["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"], variable)
        for function in app.of_kind("AWS::Lambda::Function")
        for variable, value in function.properties.get("Environment", {})
        .get("Variables", {})
        .items()
        if app.text(function.stack, value) == "evil"
    }
    for folder in ("users", "notes", "health"):
        assert (folder, "PGPORT") not in looked_up
        if "pgbouncer" in name:
            assert (folder, "PGHOST") not in looked_up
        if "external" in name:
            assert (folder, "LAMBDA_PG_SECRET_ARN") not in looked_up
    if name.startswith("existing"):
        for variable in ("PGHOST", "PGPORT", "LAMBDA_PG_SECRET_ARN"):
            assert ("migrate", variable) not in looked_up


def test_the_page_says_what_stays_privileged(prod: Stage) -> None:
    """The statement to copy denies each action that changes a parameter, on all of a stage's."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = page.partition("## Who may write the parameters\n")[2].partition("\n## ")[0]
    policy = json.loads(section.partition("```json\n")[2].partition("```")[0])
    denied = {action for _, one in statements(policy) for action in as_list(one["Action"])}
    assert denied == {
        "ssm:DeleteParameter",
        "ssm:DeleteParameters",
        "ssm:PutParameter",
    }
    (on,) = {resource for _, one in statements(policy) for resource in as_list(one["Resource"])}
    pattern = re.escape(on).replace(r"\*", ".*").replace("ACCOUNT", r"\d{12}")
    for value in PARAMETERS:
        assert re.fullmatch(
            pattern, f"arn:aws:ssm:eu-west-1:111122223333:parameter/lambda-pg/prod/{value}"
        )
    for value in ("layer/arn", "pooler/ca", "pooler/host", "database/host"):
        assert f"`{value}`" in section


def test_only_their_readers_read_the_pooler_s_private_keys(stage: Stage) -> None:
    """The secrets' own policies deny it to every other principal, and deny nothing else."""
    app = Deployed(stage.templates)
    readers: dict[str, set[str]] = {}
    for policy in app.of_kind("AWS::SecretsManager::ResourcePolicy"):
        (secret,) = app.texts(policy, "SecretId")
        for _, one in statements(policy.properties):
            if one["Action"] != "secretsmanager:GetSecretValue":
                continue
            assert (one["Effect"], one["Principal"]) == ("Deny", {"AWS": "*"})
            assert list(one["Condition"]) == ["ArnNotEquals"]
            arns = one["Condition"]["ArnNotEquals"]["aws:PrincipalArn"]
            roles = [label for arn in arns for label in labels(app.text(policy.stack, arn))]
            readers[secret] = {app.by_label[role].name for role in roles}
    (authority,) = [names for secret, names in readers.items() if "Authority" in secret]
    (leaf,) = [names for secret, names in readers.items() if "Leaf" in secret]
    assert {re.sub(r"[0-9A-F]{8}$", "", each) for each in authority} == {"CertificateServiceRole"}
    assert {re.sub(r"[0-9A-F]{8}$", "", each) for each in leaf} == {
        "CertificateServiceRole",
        "TaskTaskRole",
    }


@pytest.mark.parametrize("name", IN_NETWORK)
def test_no_code_in_the_network_manages_interfaces(
    combinations: dict[str, Stage], name: str
) -> None:
    """Each role that Lambda makes interfaces with denies that to the function's own code."""
    from lambda_pg_cdk.stacks.functions import INTERFACES

    stage = combinations[name]
    inside = [each for each in stage.functions().values() if "VpcConfig" in each]
    assert len(inside) >= 3
    for function in inside:
        role = {"Ref": function["Role"]["Fn::GetAtt"][0]}
        denials: list[Any] = [
            one
            for policy in stage.all("AWS::IAM::Policy").values()
            if role in policy["Properties"]["Roles"]
            for _, one in statements(policy["Properties"])
            if one["Effect"] == "Deny"
        ]
        (denial,) = denials
        assert set(denial["Action"]) == set(INTERFACES)
        assert denial["Resource"] == "*"
        assert denial["Condition"] == {"Null": {"lambda:SourceFunctionArn": "false"}}
    allowed = pages.MANAGED_POLICIES["service-role/AWSLambdaVPCAccessExecutionRole"].actions
    assert {each for each in allowed if each.startswith("ec2:")} <= set(INTERFACES)


@pytest.mark.parametrize("name", ["instance-pgbouncer-without-nat", "instance-pgbouncer"])
def test_who_logs_in_directly_reaches_aws_by_the_endpoints_alone(
    combinations: dict[str, Stage], name: str
) -> None:
    """Where the stage has them: no address but two security groups."""
    app = Deployed(combinations[name].templates)
    for folder in ("Migrate", "Rotate"):
        (group,) = [
            each
            for each in app.of_kind("AWS::EC2::SecurityGroup")
            if each.properties["GroupDescription"] == f"Function {folder}"
        ]
        anywhere = "0.0.0.0/0" in app.texts(group, "SecurityGroupEgress.*.CidrIp")
        assert anywhere == (name == "instance-pgbouncer"), folder
        reached = app.texts(group, "SecurityGroupEgress.*.DestinationSecurityGroupId")
        reached += [
            app.texts(each, "DestinationSecurityGroupId")[0]
            for each in app.of_kind("AWS::EC2::SecurityGroupEgress")
            if group.label in app.texts(each, "GroupId")
        ]
        endpoints = [each for each in reached if "Endpoints" in each]
        assert bool(endpoints) == (name == "instance-pgbouncer-without-nat"), folder


def test_functions_reach_an_external_pooler_on_its_port_alone(
    combinations: dict[str, Stage],
) -> None:
    """And AWS; the migration the port of the direct address."""
    app = Deployed(combinations["external-in-network"].templates)
    ports = {
        group.properties["GroupDescription"]: {
            (rule["FromPort"], rule["ToPort"]) for rule in group.properties["SecurityGroupEgress"]
        }
        for group in app.of_kind("AWS::EC2::SecurityGroup")
    }
    assert ports == {
        "Function Users": {(443, 443), (6543, 6543)},
        "Function Notes": {(443, 443), (6543, 6543)},
        "Function Health": {(443, 443), (6543, 6543)},
        "Function Migrate": {(443, 443), (5432, 5432)},
    }
