"""What the templates of every stage say, and what they must not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App
from lambda_pg import Settings

from stacks.budget import BudgetError
from stacks.config import Config
from tests.synth.conftest import Resources, Stage, context, new_app, synthesise

SECRET = "AWS::SecretsManager::Secret"


def test_two_runs_give_the_same_templates(stages: dict[str, Stage], tmp_path: Path) -> None:
    """Neither the clock nor the folder nor the order of anything shows in a template."""
    again = synthesise("local", tmp_path)
    assert again.templates == stages["local"].templates


def test_nothing_is_looked_up(stage: Stage) -> None:
    """The account is not asked during synth: zones and everything else come from cdk.json."""
    manifest = json.loads((stage.folder / "manifest.json").read_text())
    assert not manifest.get("missing")


def test_zones_are_the_stage_s(prod: Stage) -> None:
    """Subnets lie in the zones that cdk.json names."""
    subnets = prod.all("AWS::EC2::Subnet").values()
    zones = {subnet["Properties"]["AvailabilityZone"] for subnet in subnets}
    assert zones == {"eu-west-1a", "eu-west-1b"}


def test_no_physical_names(stage: Stage) -> None:
    """Names are CloudFormation's, except the parameters that replace exports."""
    named = [
        (logical, name)
        for stack in stage.templates
        for logical, resource in stage.templates[stack]["Resources"].items()
        for name in resource.get("Properties", {})
        if re.fullmatch(r"(Function|Role|Bucket|Table|Cluster|Service|LogGroup|Queue)Name", name)
        and isinstance(resource["Properties"][name], str)
    ]
    assert named == []


def test_logs_are_kept_for_the_stage_s_days(stage: Stage) -> None:
    """No log group keeps events for ever, and every function has one."""
    groups = stage.all("AWS::Logs::LogGroup").values()
    assert {group["Properties"]["RetentionInDays"] for group in groups} == {
        {"local": 1, "dev": 7, "prod": 90}[stage.name]
    }
    for folder, function in stage.functions().items():
        assert "LogGroup" in function["LoggingConfig"], folder


def test_the_database_enforces_what_the_budget_assumes(prod: Stage) -> None:
    """The number of connections is explicit, and TLS is forced."""
    (group,) = prod.all("AWS::RDS::DBParameterGroup").values()
    parameters = group["Properties"]["Parameters"]
    assert parameters["max_connections"] == "400"
    assert parameters["rds.force_ssl"] == "1"
    (instance,) = prod.all("AWS::RDS::DBInstance").values()
    properties = instance["Properties"]
    assert properties["StorageEncrypted"] is True
    assert properties["PubliclyAccessible"] is False
    assert properties["DeletionProtection"] is True
    assert properties["MultiAZ"] is True
    assert instance["DeletionPolicy"] == "Snapshot"


def test_stacks_with_data_are_protected(tmp_path: Path) -> None:
    """In prod, the network and the database refuse to be deleted."""
    app = new_app("prod", tmp_path)
    protected = {
        child.node.id: child.termination_protection  # type: ignore[attr-defined]
        for child in app.node.children
        if child.node.id.startswith("LambdaPg")
    }
    assert protected["LambdaPg-prod-Database"] is True
    assert protected["LambdaPg-prod-Network"] is True


def test_no_export_depends_on_the_database_instance(stage: Stage) -> None:
    """Its address and the CA travel by SSM: an export in use could not change."""
    outputs = json.dumps(
        [stage.templates[stack].get("Outputs", {}) for stack in ("Database", "Pooler")]
    )
    assert "Endpoint" not in outputs
    assert "CaCertificate" not in outputs


def test_pooler_and_database_have_names_in_the_private_zone(stage: Stage) -> None:
    """Both names are fixed, whatever is behind them is replaced."""
    records = stage.all("AWS::Route53::RecordSet").values()
    names = {(record["Properties"]["Name"], record["Properties"]["Type"]) for record in records}
    zone = "lambda-pg.internal."
    assert names == {(f"pooler.{zone}", "A"), (f"database.{zone}", "CNAME")}


def test_the_api_routes(local: Stage, prod: Stage) -> None:
    """Every route but health asks for a token; the control of the storm is local only."""
    expected = {
        "ANY /users": "JWT",
        "ANY /users/{id}": "JWT",
        "ANY /health": "NONE",
    }
    assert routes(prod) == expected
    assert routes(local) == {**expected, "ANY /baseline/users/{id}": "JWT"}


def routes(stage: Stage) -> dict[str, str]:
    """Read each route's kind of authorization."""
    found = stage.all("AWS::ApiGatewayV2::Route").values()
    return {
        route["Properties"]["RouteKey"]: route["Properties"].get("AuthorizationType", "NONE")
        for route in found
    }


def test_payloads_have_format_2(stage: Stage) -> None:
    """Functions get the payload that the local front end sends, within the API's timeout."""
    for integration in stage.all("AWS::ApiGatewayV2::Integration").values():
        assert integration["Properties"]["PayloadFormatVersion"] == "2.0"
        assert integration["Properties"]["TimeoutInMillis"] == 29000


def test_an_issuer_of_one_s_own_replaces_cognito(stages: dict[str, Stage], tmp_path: Path) -> None:
    """With an issuer given there is no user pool, and its audience is asked for."""
    identity = {"issuer": "https://issuer.example", "audience": ["app"]}
    given = synthesise("dev", tmp_path, {"identity": identity})
    assert not given.all("AWS::Cognito::UserPool")
    assert stages["dev"].all("AWS::Cognito::UserPool")
    (authorizer,) = given.all("AWS::ApiGatewayV2::Authorizer").values()
    assert authorizer["Properties"]["JwtConfiguration"] == {
        "Issuer": "https://issuer.example",
        "Audience": ["app"],
    }


def test_the_migration_runs_before_the_functions_change(stage: Stage) -> None:
    """The functions that take traffic wait for the trigger."""
    (trigger,) = stage.resources("Api", "Custom::Trigger")
    for resource in stage.resources("Api", "AWS::Lambda::Function").values():
        waits = trigger in resource.get("DependsOn", [])
        assert waits == (tags_of(resource) in {"users", "health"})


def tags_of(resource: dict[str, Any]) -> str:
    """Read the folder of a function."""
    tags = resource["Properties"].get("Tags", [])
    return next((tag["Value"] for tag in tags if tag["Key"] == "lambda-pg:function"), "")


@pytest.mark.parametrize("folder", ["users", "health", "baseline", "migrate"])
def test_the_layer_understands_each_function_s_environment(local: Stage, folder: str) -> None:
    """What the stacks write is what the layer reads, without a problem."""
    environment = resolved(local.functions()[folder]["Environment"]["Variables"])
    settings = Settings.from_env(environment)
    config = Config.from_context(context("local").get)
    assert settings.sslmode == "verify-full"
    assert settings.dbname == config.database.name
    assert settings.application_name == folder
    assert settings.checkout_timeout == config.functions.checkout_timeout
    assert settings.profile == ("pgbouncer" if folder in {"users", "health"} else "direct")
    assert (settings.ca_pem is not None) == (folder in {"users", "health"})


def resolved(variables: dict[str, Any]) -> dict[str, str]:
    """Put a value in the place of what CloudFormation fills in at deployment."""
    filled = {
        "PGHOST": "db.internal",
        "PGPORT": "5432",
        "LAMBDA_PG_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:000000000000:secret:x",
        "APP_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:000000000000:secret:y",
        "LAMBDA_PG_CA_PEM": "-----BEGIN CERTIFICATE-----",
    }
    return {
        name: value if isinstance(value, str) else filled[name]
        for name, value in variables.items()
        if name != "PGSSLROOTCERT"
    }


def test_overrides_reach_functions_and_pooler(tmp_path: Path) -> None:
    """The local cloud's addresses are in both ends of each connection."""
    override = {
        "pooler": {"endpoint_host": "127.0.0.1", "port": 16432},
        "database": {"ca_file": "/somewhere/ca.pem"},
        "identity": {"issuer": "http://127.0.0.1:8123", "audience": ["lambda-pg-local"]},
    }
    stage = synthesise("local", tmp_path, override)
    functions = stage.functions()
    users = functions["users"]["Environment"]["Variables"]
    assert (users["PGHOST"], users["PGPORT"]) == ("127.0.0.1", "16432")
    assert "PGSSLROOTCERT" not in users
    for folder in ("migrate", "baseline"):
        variables = functions[folder]["Environment"]["Variables"]
        assert variables["PGSSLROOTCERT"] == "/somewhere/ca.pem"
    assert functions["certificate"]["Environment"]["Variables"]["CERTIFICATE_NAMES"] == "127.0.0.1"
    environment = pooler_environment(stage)
    assert environment["LISTEN_PORT"] == "16432"
    assert environment["SERVER_TLS_CA_FILE"] == "/somewhere/ca.pem"


def pooler_environment(stage: Stage) -> dict[str, Any]:
    """Read the environment of the pooler's task."""
    (task,) = stage.all("AWS::ECS::TaskDefinition").values()
    (container,) = task["Properties"]["ContainerDefinitions"]
    return {entry["Name"]: entry["Value"] for entry in container["Environment"]}


def test_the_pooler_writes_only_where_it_must(stage: Stage) -> None:
    """The root filesystem is read-only; no secret is in the environment."""
    (task,) = stage.all("AWS::ECS::TaskDefinition").values()
    (container,) = task["Properties"]["ContainerDefinitions"]
    assert container["ReadonlyRootFilesystem"] is True
    assert [mount["ContainerPath"] for mount in container["MountPoints"]] == ["/run/pgbouncer"]
    assert "Secrets" not in container


def test_the_image_is_built_from_what_its_dockerfile_copies(prod: Stage) -> None:
    """The context holds each copied path and little else, whatever lies in the repository."""
    assets = json.loads((prod.folder / "LambdaPg-prod-Pooler.assets.json").read_text())
    (image,) = assets["dockerImages"].values()
    context = prod.folder / image["source"]["directory"]
    dockerfile = (context / image["source"]["dockerFile"]).read_text()
    copied = re.findall(r"^COPY (\S+) ", dockerfile, flags=re.MULTILINE)
    assert copied
    for pattern in copied:
        assert list(context.glob(pattern)), pattern
    assert {path.name for path in context.iterdir()} == {"pgbouncer", "layer"}
    assert image["source"]["platform"] == "linux/arm64"


def test_a_draining_task_is_not_killed(stage: Stage) -> None:
    """ECS waits longer than the drain takes, and Fargate's limit holds."""
    (task,) = stage.all("AWS::ECS::TaskDefinition").values()
    (container,) = task["Properties"]["ContainerDefinitions"]
    drain = int(pooler_environment(stage)["DRAIN_TIMEOUT"])
    assert drain < container["StopTimeout"] <= 120


def test_only_the_certificate_function_may_use_the_ca_s_key(stage: Stage) -> None:
    """No other function and no task may read the authority's secret."""
    assert readers(stage, secret(stage, "Pooler", "Authority")) == {"certificate"}


def test_requests_cannot_use_the_master_s_secret(stage: Stage) -> None:
    """Only the migration reads the owner's password."""
    assert readers(stage, secret(stage, "Database", "Master")) == {"migrate"}


def secret(stage: Stage, stack: str, part: str) -> str:
    """Find a secret's logical name by a part of it."""
    (found,) = [name for name in stage.resources(stack, SECRET) if part in name]
    return found


def readers(stage: Stage, logical: str) -> set[str]:
    """Find the functions, by folder, and other roles whose policies name a resource."""
    roles = {
        json.dumps(function["Role"]["Fn::GetAtt"][0]): folder
        for folder, function in stage.functions().items()
    }
    return {
        roles.get(json.dumps(role["Ref"]), role["Ref"])
        for policy in stage.all("AWS::IAM::Policy").values()
        for role in policy["Properties"]["Roles"]
        if logical in json.dumps(policy["Properties"]["PolicyDocument"])
    }


def test_no_policy_allows_everything(stage: Stage) -> None:
    """Statements of ours name actions, and never all of a service's."""
    for name, policy in stage.all("AWS::IAM::Policy").items():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            actions = statement["Action"]
            for action in [actions] if isinstance(actions, str) else actions:
                assert not action.endswith(":*"), name


def test_postgresql_is_reachable_from_pooler_and_direct_functions_only(prod: Stage) -> None:
    """The database's security group lets in the tasks and the migration."""
    rules = ingress(prod, "Database")
    assert len(rules) == 2
    assert {"Task", "Migrate"} == {
        word for rule in rules for word in ("Task", "Migrate", "Users") if word in rule
    }


def ingress(stage: Stage, stack: str) -> list[str]:
    """List the rules that let somebody in, as text."""
    rules: Resources = stage.all("AWS::EC2::SecurityGroupIngress")
    found = [json.dumps(rule["Properties"]) for rule in rules.values()]
    return [
        rule for rule in found if f"LambdaPg-{stage.name}-{stack}" in rule.split("SourceSec")[0]
    ]


def test_without_nat_the_endpoints_are_there(tmp_path: Path) -> None:
    """Private subnets without NAT reach the registry, the logs and the secrets."""
    stage = synthesise("dev", tmp_path, {"network": {"egress": "endpoints"}})
    assert not stage.all("AWS::EC2::NatGateway")
    endpoints = json.dumps(stage.all("AWS::EC2::VPCEndpoint"))
    for service in ("ecr.api", "ecr.dkr", "logs", "secretsmanager", ".s3"):
        assert service in endpoints


def test_a_stage_over_its_budget_does_not_synthesise(tmp_path: Path) -> None:
    """Synth stops with the arithmetic."""
    with pytest.raises(BudgetError, match="max_db_connections"):
        new_app("local", tmp_path, {"pooler": {"max_db_connections": 60}})


def test_app_is_short() -> None:
    """app.py only wires: at most 60 lines."""
    text = (Path(__file__).parents[2] / "app.py").read_text()
    assert len(text.splitlines()) <= 60
    assert App.__name__ in text
