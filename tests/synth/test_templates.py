"""What the templates of every stage say, and what they must not."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from lambda_pg import Settings
from lambda_pg._profiles import FLOW_IDLE

from lambda_pg_cdk.layer.build import Target
from lambda_pg_cdk.operations.migration_provider.handler import ANSWERING, STARTING
from lambda_pg_cdk.pgbouncer.settings import Settings as PoolerSettings
from lambda_pg_cdk.stage import sources
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.parameters import FOR_SQL, PARAMETERS
from lambda_pg_cdk.stage.sources import pooler_context
from lambda_pg_cdk.tools.image import LOCKS
from lambda_pg_cdk.tools.synth import COMBINATIONS, new_stage
from tests.support.templates import Stage, synthesise, synthesise_once

SECRET = "AWS::SecretsManager::Secret"


@pytest.fixture(scope="session")
def changed() -> Stage:
    """The stage `dev` of another app, with an issuer and the longest time for a migration."""
    override = {
        "app": "web-shop",
        "identity": {"issuer": "https://issuer.example", "audience": ["app"]},
        "functions": {"migration_timeout": 720},
    }
    return synthesise_once("dev", override)


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
    for name, function in stage.all("AWS::Lambda::Function").items():
        # CDK's own function for the database's logs keeps its own for a day.
        if "LogRetention" not in name:
            assert "LogGroup" in function["Properties"]["LoggingConfig"], name
    (database,) = stage.all("Custom::LogRetention").values()
    assert "/aws/rds/instance/" in json.dumps(database["Properties"]["LogGroupName"])


def test_the_database_enforces_what_the_budget_assumes(prod: Stage) -> None:
    """The number of connections is explicit, and TLS is forced."""
    (group,) = prod.all("AWS::RDS::DBParameterGroup").values()
    parameters = group["Properties"]["Parameters"]
    assert parameters["max_connections"] == "750"
    assert parameters["rds.force_ssl"] == "1"
    (instance,) = prod.all("AWS::RDS::DBInstance").values()
    properties = instance["Properties"]
    assert properties["StorageEncrypted"] is True
    assert properties["PubliclyAccessible"] is False
    assert properties["DeletionProtection"] is True
    assert properties["MultiAZ"] is True
    assert instance["DeletionPolicy"] == "Snapshot"


@pytest.mark.parametrize("name", ["instance-pgbouncer", "aurora-pgbouncer"])
def test_servers_log_no_values(combinations: dict[str, Stage], name: str) -> None:
    """Slow statements without parameters, failing ones without keys and rows."""
    kinds = ("AWS::RDS::DBParameterGroup", "AWS::RDS::DBClusterParameterGroup")
    (group,) = [found for kind in kinds for found in combinations[name].all(kind).values()]
    assert {
        "log_min_duration_statement": "1000",
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
        "log_error_verbosity": "terse",
    }.items() <= group["Properties"]["Parameters"].items()


def test_servers_get_security_fixes(app: Stage) -> None:
    """The newest version, and later ones by themselves, in a window that the backup is not in."""
    for kind in ("AWS::RDS::DBInstance", "AWS::RDS::DBCluster"):
        for name, server in app.all(kind).items():
            properties = server["Properties"]
            if kind == "AWS::RDS::DBInstance":
                assert properties["AutoMinorVersionUpgrade"] is True, name
            assert properties["PreferredMaintenanceWindow"] == "sun:03:00-sun:04:00", name
            if "DBClusterIdentifier" not in properties or kind == "AWS::RDS::DBCluster":
                assert properties["PreferredBackupWindow"] == "02:00-03:00", name
                assert properties["EngineVersion"] == "17.11", name


def test_stacks_with_data_are_protected(prod: Stage) -> None:
    """In prod, the network and the database refuse to be deleted."""
    manifest = json.loads((prod.folder / "manifest.json").read_text())
    protected = {
        name: artifact["properties"].get("terminationProtection")
        for name, artifact in manifest["artifacts"].items()
        if artifact["type"] == "aws:cloudformation:stack"
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


def test_nothing_that_may_be_replaced_is_exported(app: Stage) -> None:
    """Of database and pooler nothing is imported, so either can become another one."""
    for name in app.templates:
        imported = re.findall(r"LambdaPg-\w+-(\w+):Exports", json.dumps(app.templates[name]))
        assert set(imported) <= {"Network", "Api"}, name


def test_the_migration_runs_again_for_another_database(prod: Stage) -> None:
    """Its version names the server, and the custom resource names the version."""
    (run,) = prod.resources("Api", "Custom::Migration").values()
    version = prod.templates["Api"]["Resources"][run["Properties"]["Function"]["Ref"]]
    description = json.dumps(version["Properties"]["Description"])
    assert "databasehost" in description
    assert "databaseresourceid" in description
    # Another secret has another password, which only a migration sets.
    assert "databaseapplicationsecretarn" in description


@pytest.mark.parametrize("folder", ["users", "notes", "health"])
def test_a_version_names_everything_that_it_takes_from_other_stacks(
    prod: Stage, folder: str
) -> None:
    """Each published value in a function's template stands in its version's description, too."""
    api = prod.templates["Api"]["Resources"]
    function = json.dumps(prod.functions()[folder])
    used = set(re.findall(r"SsmParameterValue(\w+?)C96584B6F00A464EAD1953AFF4B05118", function))
    (description,) = [
        json.dumps(each["Properties"]["Description"])
        for name, each in api.items()
        if each["Type"] == "AWS::Lambda::Version" and name.startswith(folder.title())
    ]
    assert len(used) >= 3
    for value in used:
        assert value in description, value


def test_groups_without_rules_of_their_own_are_not_open(stage: Stage) -> None:
    """EC2 lets a group out to everywhere whose template has no rule."""
    for name, group in stage.all("AWS::EC2::SecurityGroup").items():
        rules = group["Properties"].get("SecurityGroupEgress", [])
        assert rules, name
        assert all(rule.get("IpProtocol") != "-1" for rule in rules), name


def test_pooler_and_database_have_names_in_the_private_zone(stage: Stage) -> None:
    """Both names are fixed, whatever is behind them is replaced."""
    records = stage.all("AWS::Route53::RecordSet").values()
    names = {(record["Properties"]["Name"], record["Properties"]["Type"]) for record in records}
    zone = f"{stage.name}.lambda-pg.internal."
    assert names == {(f"pooler.{zone}", "A"), (f"database.{zone}", "CNAME")}


def test_the_api_routes(local: Stage, prod: Stage) -> None:
    """Every route but health asks for a token; the control of the storm is local only."""
    expected = {
        **dict.fromkeys(("ANY /users", "GET /users", "POST /users"), "JWT"),
        **dict.fromkeys(("ANY /users/{id}", "GET /users/{id}", "PATCH /users/{id}"), "JWT"),
        **dict.fromkeys(("ANY /notes", "POST /notes"), "JWT"),
        **dict.fromkeys(("ANY /notes/{id}", "GET /notes/{id}"), "JWT"),
        "ANY /health": "NONE",
    }
    assert routes(prod) == expected
    open_routes = ("POST /sql", "OPTIONS /sql", "GET /openapi.json", "GET /swagger")
    assert routes(local) == {
        **expected,
        **dict.fromkeys(open_routes, "NONE"),
        "ANY /baseline/users/{id}": "JWT",
    }


def routes(stage: Stage) -> dict[str, str]:
    """Read the kind of authorization of each route of the stage's own API."""
    found = [each["Properties"] for each in stage.all("AWS::ApiGatewayV2::Route").values()]
    (own,) = {json.dumps(each["ApiId"]) for each in found if each["RouteKey"] == "ANY /health"}
    return {
        each["RouteKey"]: each.get("AuthorizationType", "NONE")
        for each in found
        if json.dumps(each["ApiId"]) == own
    }


def test_payloads_have_format_2(stage: Stage) -> None:
    """Functions get the payload that the local front end sends, within the API's timeout."""
    for integration in stage.all("AWS::ApiGatewayV2::Integration").values():
        assert integration["Properties"]["PayloadFormatVersion"] == "2.0"
        assert integration["Properties"]["TimeoutInMillis"] == 29000


def test_an_issuer_of_one_s_own_replaces_cognito(stages: dict[str, Stage], changed: Stage) -> None:
    """With an issuer given there is no user pool, and its audience is asked for."""
    assert not changed.all("AWS::Cognito::UserPool")
    assert stages["dev"].all("AWS::Cognito::UserPool")
    (authorizer,) = changed.all("AWS::ApiGatewayV2::Authorizer").values()
    assert authorizer["Properties"]["JwtConfiguration"] == {
        "Issuer": "https://issuer.example",
        "Audience": ["app"],
    }


def test_the_migration_runs_before_the_functions_change(stage: Stage) -> None:
    """The functions that take traffic and their aliases wait for the migration."""
    (run,) = stage.resources("Api", "Custom::Migration")
    for resource in stage.resources("Api", "AWS::Lambda::Function").values():
        waits = run in resource.get("DependsOn", [])
        assert waits == (tags_of(resource) in {"users", "notes", "health", "sql"})
    for resource in stage.resources("Api", "AWS::Lambda::Alias").values():
        assert run in resource["DependsOn"]


def test_the_migration_finds_its_way_open(stage: Stage) -> None:
    """The rules that let it into the database are there before it is invoked."""
    (run,) = stage.resources("Api", "Custom::Migration").values()
    rules = stage.resources("Api", "AWS::EC2::SecurityGroupIngress")
    (mine,) = [name for name in rules if name.startswith("Migrate")]
    assert mine in run["DependsOn"]


def test_each_wait_for_the_migration_is_longer_than_it_runs(
    stages: dict[str, Stage], combinations: dict[str, Stage]
) -> None:
    """Each wait has room for the one inside it."""
    for each in (*stages.values(), *combinations.values()):
        check_waits(each)


def test_each_wait_for_the_longest_migration_is_longer_than_it_runs(changed: Stage) -> None:
    """With as much time as a stage may give it."""
    (run,) = changed.resources("Api", "Custom::Migration").values()
    assert run["Properties"]["Seconds"] == 720
    check_waits(changed)


def test_no_custom_resource_hangs_for_an_hour(app: Stage) -> None:
    """CloudFormation's default is an hour. CDK's own for log groups has no setting for it."""
    for template in app.templates.values():
        for name, resource in template["Resources"].items():
            ours = resource["Type"].startswith(("Custom::", "AWS::CloudFormation::Custom"))
            if ours and resource["Type"] != "Custom::LogRetention":
                assert 900 < int(resource["Properties"]["ServiceTimeout"]) < 2400, name


def check_waits(stage: Stage) -> None:
    """Compare each function's time with its provider's, and that with CloudFormation's."""
    functions = stage.functions()
    for stack, kind, folder in (
        ("Api", "Custom::Migration", "migrate"),
        ("Pooler", "Custom::Login", "rotate"),
    ):
        runs = stage.resources(stack, kind).values()
        events = stage.resources(stack, "AWS::Lambda::EventInvokeConfig").values()
        assert len(runs) == len(events)
        for run, event in zip(runs, events, strict=True):
            seconds = run["Properties"]["Seconds"]
            provider = functions["migration_provider"]["Timeout"]
            assert seconds == functions[folder]["Timeout"]
            # A function of a VPC takes about a minute to wake up.
            assert provider >= seconds + STARTING + ANSWERING + 60
            assert event["Properties"]["MaximumRetryAttempts"] == 0
            age = event["Properties"]["MaximumEventAgeInSeconds"]
            assert int(run["Properties"]["ServiceTimeout"]) > age + provider


def test_no_sdk_that_repeats_invocations_runs_the_migration(combination: Stage) -> None:
    """Neither CDK's Trigger nor its provider framework: both invoke again after a lost answer."""
    api = combination.templates["Api"]["Resources"]
    (run,) = combination.resources("Api", "Custom::Migration").values()
    provider = api[run["Properties"]["ServiceToken"]["Fn::GetAtt"][0]]
    assert tags_of(provider) == "migration_provider"
    assert not combination.resources("Api", "Custom::Trigger")
    assert "VpcConfig" not in provider["Properties"]


def test_the_provider_may_run_the_migration_and_look_at_its_stack(combination: Stage) -> None:
    """Two permissions: one function in any version, and the stack that it belongs to."""
    allowed = {
        action: statement["Resource"]
        for policy in policies_of(combination, "migration_provider")
        for statement in policy
        for action in listed(statement["Action"])
        if not action.startswith("xray:")
    }
    assert set(allowed) == {"lambda:InvokeFunction", "cloudformation:DescribeStacks"}
    assert allowed["cloudformation:DescribeStacks"] == {"Ref": "AWS::StackId"}
    assert "Migrate" in json.dumps(allowed["lambda:InvokeFunction"])


def tags_of(resource: dict[str, Any]) -> str:
    """Read the folder of a function."""
    tags = resource["Properties"].get("Tags", [])
    return next((tag["Value"] for tag in tags if tag["Key"] == "lambda-pg:function"), "")


@pytest.mark.parametrize("folder", ["users", "notes", "health", "baseline", "migrate"])
def test_the_layer_understands_each_function_s_environment(local: Stage, folder: str) -> None:
    """What the stacks write is what the layer reads, without a problem."""
    environment = resolved(local.functions()[folder]["Environment"]["Variables"])
    settings = Settings.from_env(environment)
    config = load_stage("local")
    assert settings.sslmode == "verify-full"
    assert settings.dbname == config.database.name
    assert settings.application_name == folder
    assert settings.checkout_timeout == config.functions.checkout_timeout
    assert settings.profile == ("pgbouncer" if folder in {"users", "notes", "health"} else "direct")
    assert (settings.ca_pem is not None) == (folder in {"users", "notes", "health"})
    assert settings.strict == (folder in {"users", "notes", "health"})


def resolved(variables: dict[str, Any]) -> dict[str, str]:
    """Replace what CloudFormation fills in at deployment by a value."""
    filled = {
        "PGHOST": "db.internal",
        "PGPORT": "5432",
        "LAMBDA_PG_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:000000000000:secret:x",
        "APP_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:000000000000:secret:y",
        "SQL_ROLES": "{}",
        "LAMBDA_PG_CA_PEM": "-----BEGIN CERTIFICATE-----",
        "DATABASE_RESOURCE_ID": "db-ABCDEFGHIJKL",
    }
    return {
        name: value if isinstance(value, str) else filled[name]
        for name, value in variables.items()
        if name != "PGSSLROOTCERT"
    }


def test_overrides_reach_functions_and_pooler() -> None:
    """The local cloud's addresses are in both ends of each connection."""
    override = {
        "pgbouncer": {"endpoint_host": "127.0.0.1", "port": 16432},
        "database": {"ca_file": "/somewhere/ca.pem"},
        "identity": {"issuer": "http://127.0.0.1:8123", "audience": ["lambda-pg-local"]},
    }
    stage = synthesise_once("local", override)
    functions = stage.functions()
    users = functions["users"]["Environment"]["Variables"]
    pooler = {
        each["Properties"]["Name"]: each["Properties"]["Value"]
        for each in stage.resources("Pooler", "AWS::SSM::Parameter").values()
    }
    assert pooler["/lambda-pg/local/pooler/host"] == "127.0.0.1"
    assert pooler["/lambda-pg/local/pooler/port"] == "16432"
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


def test_the_supervisor_understands_the_task_s_environment(
    stage: Stage, combinations: dict[str, Stage], tmp_path: Path
) -> None:
    """What the stacks write is what the supervisor reads, without a problem."""
    given = {
        "DATABASE_HOST": "db.internal",
        "DATABASE_PORT": "5432",
        "USER_SECRET_ARNS": "arn:aws:secretsmanager:eu-west-1:000000000000:secret:x",
        "SQL_SECRET_ARNS": "arn:aws:secretsmanager:eu-west-1:000000000000:secret:z",
        "CERTIFICATE_SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:000000000000:secret:y",
        "SERVER_TLS_CA_FILE": str(Path(__file__)),
        "ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/x",
    }
    names = ("aurora-pgbouncer", "existing-pgbouncer", "instance-pgbouncer-bastion-with-sql")
    for each in (stage, *(combinations[name] for name in names)):
        environment = pooler_environment(each)
        told = {name: value for name, value in environment.items() if isinstance(value, str)}
        assert set(environment) - set(told) <= set(given)
        sql = {"SQL_SECRET_ARNS"} - set(environment)
        here = {name: value for name, value in given.items() if name not in sql}
        settings = PoolerSettings.from_env({**told, **here})
        assert (settings.sql is None) == bool(sql)
        assert settings.peers is not None
        assert settings.metrics is not None


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
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, flags=re.MULTILINE)
    assert copied
    for pattern in " ".join(copied).split():
        assert list(context.glob(pattern)), pattern
    assert {path.name for path in context.iterdir()} == {"pgbouncer", "layer"}
    assert image["source"]["platform"] == "linux/arm64"


@pytest.mark.parametrize("lock", LOCKS)
def test_other_packages_are_another_image(
    lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewed lock has the next deployment build the image, though no code has changed."""
    files = pooler_context(Target("3.13", "arm64"))
    copy = shutil.copytree(files, tmp_path / "repository")
    monkeypatch.setattr(sources, "PACKAGE", copy)
    before = image_hash(tmp_path / "before")
    assert image_hash(tmp_path / "again") == before
    renewed = copy / "pgbouncer" / lock
    renewed.write_text(renewed.read_text().replace("snapshot 2026", "snapshot 2027"))
    assert image_hash(tmp_path / "after") != before


def image_hash(folder: Path) -> str:
    """Return what CDK names the pooler's image by: a known one is not built again."""
    from aws_cdk import App, Stack
    from aws_cdk import aws_ecr_assets as ecr_assets

    stack = Stack(App(outdir=str(folder)), "Stack")
    context = str(pooler_context(Target("3.13", "arm64")))
    asset = ecr_assets.DockerImageAsset(
        stack, "Image", directory=context, file="pgbouncer/Dockerfile"
    )
    return str(asset.asset_hash)


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
    """Only migration and rotation read the owner's password, which RDS manages."""
    assert not [name for name in stage.resources("Database", SECRET) if "Master" in name]
    (instance,) = stage.all("AWS::RDS::DBInstance").values()
    assert instance["Properties"]["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in instance["Properties"]
    assert readers(stage, "MasterUserSecret") == {"rotate"}
    assert readers(stage, "databaseownersecretarn") == {"migrate"}


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


def test_postgresql_is_reachable_from_pooler_and_direct_functions_only(stage: Stage) -> None:
    """The database's security group lets in the tasks, migration, rotation and the control."""
    direct = {"Rotate", "Migrate", *(["Baseline"] if stage.name == "local" else [])}
    assert admitted(stage, "PostgreSQL") == {"TaskGroup", *direct}


@pytest.mark.parametrize("name", [name for name in COMBINATIONS if "external" not in name])
def test_nobody_else_reaches_any_database(combinations: dict[str, Stage], name: str) -> None:
    """Its pooler, migration, rotation where there is a password, and the bastion where one is."""
    pooler = "Group" if "rds-proxy" in name else "TaskGroup"
    expected = {pooler, "Migrate"}
    if not name.removesuffix("-with-sql").endswith("rds-proxy"):
        expected.add("Rotate")
    if "bastion" in name:
        expected.add("BastionGroup")
    assert admitted(combinations[name], "PostgreSQL") == expected


def test_only_attached_functions_reach_the_pooler(stage: Stage) -> None:
    """The balancer's group lets in the groups of these functions; its tasks the balancer's."""
    attached = {"Users", "Notes", "Health", "Sql"} & {name.title() for name in stage.functions()}
    assert admitted(stage, "the pooler") == attached
    rules = stage.resources("Pooler", "AWS::EC2::SecurityGroupIngress").values()
    inner = [
        each["Properties"]
        for each in rules
        if "TaskGroup" in json.dumps(each["Properties"]["GroupId"])
    ]
    sources = {json.dumps(each["SourceSecurityGroupId"]) for each in inner}
    assert len(sources) == 2
    assert all("BalancerGroup" in source or "TaskGroup" in source for source in sources)


def admitted(stage: Stage, what: str) -> set[str]:
    """List whose groups are let in to `what`, by the construct that they belong to."""
    rules = stage.all("AWS::EC2::SecurityGroupIngress").values()
    found = [each["Properties"] for each in rules]
    sources = [
        each["SourceSecurityGroupId"]["Fn::GetAtt"][0]
        for each in found
        if each.get("Description", "").endswith(f"to {what}")
    ]
    names = (
        *("TaskGroup", "Group", "BastionGroup", "Rotate", "Migrate", "Baseline"),
        *("Users", "Notes", "Health", "Sql"),
    )
    assert all(any(source.startswith(name) for name in names) for source in sources)
    return {name for name in names for source in sources if source.startswith(name)}


def test_no_group_is_open_to_everybody(app: Stage) -> None:
    """Rules let in groups, and the VPC to the interface endpoints."""
    for group in app.all("AWS::EC2::SecurityGroup").values():
        for rule in group["Properties"].get("SecurityGroupIngress", []):
            assert rule["CidrIp"] == "10.0.0.0/16"
            assert group["Properties"]["GroupDescription"] == "Interface endpoints"


def test_what_attached_functions_may_do_is_one_secret_or_one_user(combination: Stage) -> None:
    """No wildcard on secrets nor on rds-db:connect, and nothing of both at once."""
    functions = [name for name in ("users", "notes", "health") if name in combination.functions()]
    assert functions
    allowed = {
        action: statement["Resource"]
        for policy in policies_of(combination, "users")
        for statement in policy
        for action in listed(statement["Action"])
        if action.startswith(("secretsmanager:", "rds-db:"))
    }
    by_token = "LAMBDA_PG_AUTH" in combination.functions()["users"]["Environment"]["Variables"]
    expected = "rds-db:connect" if by_token else "secretsmanager:GetSecretValue"
    assert set(allowed) == {expected}
    resource = allowed[expected]
    assert resource == COMBINATIONS["external"]["external"]["secret_arn"] or list(resource) == [
        "Ref"
    ]


def policies_of(stage: Stage, folder: str) -> list[list[dict[str, Any]]]:
    """Read the statements of a function's own policies."""
    role = stage.functions()[folder]["Role"]["Fn::GetAtt"][0]
    return [
        policy["Properties"]["PolicyDocument"]["Statement"]
        for policy in stage.all("AWS::IAM::Policy").values()
        if {"Ref": role} in policy["Properties"]["Roles"]
    ]


def listed(actions: str | list[str]) -> list[str]:
    """Give actions as a list."""
    return [actions] if isinstance(actions, str) else actions


def test_no_policy_names_all_secrets_or_all_users(app: Stage) -> None:
    """Wildcards are left to actions that know no resource."""
    for name, policy in app.all("AWS::IAM::Policy").items():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            resources = json.dumps(statement["Resource"])
            for action in listed(statement["Action"]):
                if action in {"rds-db:connect", "secretsmanager:GetSecretValue"}:
                    assert "*" not in resources, name


def test_services_invoke_functions_for_this_account_only(stage: Stage) -> None:
    """Each permission of a service names the secret, the rule or the API that it is for."""
    for name, permission in stage.all("AWS::Lambda::Permission").items():
        properties = permission["Properties"]
        assert "SourceArn" in properties, name


def test_layers_reach_only_functions_of_the_same_python(combination: Stage) -> None:
    """Every function with the layer runs the Python that the layer is built for."""
    (layer,) = combination.all("AWS::Lambda::LayerVersion").values()
    for function in combination.functions().values():
        if "Layers" in function:
            assert [function["Runtime"]] == layer["Properties"]["CompatibleRuntimes"]
            assert function["Architectures"] == layer["Properties"]["CompatibleArchitectures"]


def test_the_api_calls_the_published_version(stage: Stage) -> None:
    """Routes lead to the alias, and the alias to a version."""
    integrations = stage.all("AWS::ApiGatewayV2::Integration").values()
    targets = [json.dumps(each["Properties"]["IntegrationUri"]) for each in integrations]
    # The function of /sql has two APIs.
    with_sql = 2 if "sql" in stage.functions() else 0
    assert sum("Live" in target for target in targets) == 3 + with_sql
    for alias in stage.all("AWS::Lambda::Alias").values():
        assert alias["Properties"]["Name"] == "live"
        assert "CurrentVersion" in json.dumps(alias["Properties"]["FunctionVersion"])


def test_traffic_moves_little_by_little_where_the_stage_says_so(
    stages: dict[str, Stage],
) -> None:
    """CodeDeploy moves it and watches an alarm; elsewhere the alias moves at once."""
    assert not stages["dev"].all("AWS::CodeDeploy::DeploymentGroup")
    groups = stages["prod"].all("AWS::CodeDeploy::DeploymentGroup").values()
    assert len(groups) == 3
    for group in groups:
        properties = group["Properties"]
        assert "CodeDeployDefault.LambdaCanary10Percent5Minutes" in json.dumps(properties)
        assert properties["AlarmConfiguration"]["Enabled"] is True
        assert "DEPLOYMENT_STOP_ON_ALARM" in properties["AutoRollbackConfiguration"]["Events"]


def test_snapshots_are_taken_where_the_stage_says_so(stages: dict[str, Stage]) -> None:
    """SnapStart on published versions of what answers requests."""
    for name, expected in (("dev", None), ("prod", {"ApplyOn": "PublishedVersions"})):
        functions = stages[name].functions()
        assert functions["users"].get("SnapStart") == expected
        assert "SnapStart" not in functions["migrate"]


def test_two_apps_and_two_stages_share_no_name(stages: dict[str, Stage], changed: Stage) -> None:
    """Stacks, parameters, alarms and dashboards of each are its own."""
    every = [names_of(stages["dev"]), names_of(stages["prod"]), names_of(changed)]
    assert all(every)
    assert len(set.union(*every)) == sum(map(len, every))


def names_of(stage: Stage) -> set[str]:
    """Collect the physical names of a stage, and its stacks'."""
    kinds = {
        "AWS::SSM::Parameter": "Name",
        "AWS::CloudWatch::Alarm": "AlarmName",
        "AWS::CloudWatch::Dashboard": "DashboardName",
        "AWS::Route53::HostedZone": "Name",
        "AWS::ServiceDiscovery::PrivateDnsNamespace": "Name",
    }
    found = {
        f"{kind} {resource['Properties'][name]}"
        for kind, name in kinds.items()
        for resource in stage.all(kind).values()
        if name in resource["Properties"]
    }
    manifest = json.loads((stage.folder / "manifest.json").read_text())
    stacks = {
        name
        for name, artifact in manifest["artifacts"].items()
        if artifact["type"] == "aws:cloudformation:stack"
    }
    return found | stacks


def test_what_is_published_is_what_the_page_promises(combinations: dict[str, Stage]) -> None:
    """Every value that every stage may publish is, under the stage's path, and function names."""
    found = {
        name.removeprefix("/lambda-pg/dev/")
        for each in combinations.values()
        for parameter in each.all("AWS::SSM::Parameter").values()
        if "/" in (name := str(parameter["Properties"]["Name"]))
    }
    functions = {f"functions/{name}" for name in ("users", "notes", "health", "sql")}
    assert found == {*PARAMETERS, *FOR_SQL, *functions}


def test_an_external_pooler_provisions_no_database_and_no_network(
    combinations: dict[str, Stage],
) -> None:
    """Functions run outside of any VPC, unless the stage names one."""
    external = combinations["external"]
    for kind in ("AWS::RDS::DBInstance", "AWS::EC2::VPC", "AWS::ECS::Service"):
        assert not external.all(kind)
    assert all("VpcConfig" not in function for function in external.functions().values())
    inside = combinations["external-in-network"]
    assert not inside.all("AWS::EC2::VPC")
    outside = {name for name, found in inside.functions().items() if "VpcConfig" not in found}
    assert outside == {"migration_provider"}, "it calls AWS and no database"


def test_an_existing_database_is_only_referred_to(combinations: dict[str, Stage]) -> None:
    """Neither server nor VPC is created; the pooler dials the endpoint given."""
    existing = combinations["existing-pgbouncer"]
    for kind in ("AWS::RDS::DBInstance", "AWS::RDS::DBCluster", "AWS::EC2::VPC"):
        assert not existing.all(kind)
    values = {
        each["Properties"]["Name"]: each["Properties"]["Value"]
        for each in existing.all("AWS::SSM::Parameter").values()
        if "Name" in each["Properties"]
    }
    assert values["/lambda-pg/dev/database/host"] == "database.example.com"


@pytest.mark.parametrize("database", ["instance", "aurora", "existing"])
def test_a_proxy_with_tokens_needs_no_secret(combinations: dict[str, Stage], database: str) -> None:
    """End-to-end IAM: no application secret, no rotation, TLS, and a queue that nests."""
    stage = combinations[f"{database}-rds-proxy"]
    (proxy,) = stage.all("AWS::RDS::DBProxy").values()
    properties = proxy["Properties"]
    assert properties["DefaultAuthScheme"] == "IAM_AUTH"
    assert "Auth" not in properties
    assert properties["RequireTLS"] is True
    assert not stage.all("AWS::SecretsManager::Secret")
    assert not stage.all("AWS::SecretsManager::RotationSchedule")
    (group,) = stage.all("AWS::RDS::DBProxyTargetGroup").values()
    pool = group["Properties"]["ConnectionPoolConfigurationInfo"]
    assert pool["ConnectionBorrowTimeout"] < load_stage("dev").functions.checkout_timeout
    assert pool["MaxConnectionsPercent"] == 70
    variables = stage.functions()["users"]["Environment"]["Variables"]
    assert variables["LAMBDA_PG_AUTH"] == "iam"
    assert "LAMBDA_PG_SECRET_ARN" not in variables


def test_a_proxy_with_the_secret_rotates_it(combinations: dict[str, Stage]) -> None:
    """The other mode: the application's secret on both hops."""
    stage = combinations["instance-rds-proxy-with-secret"]
    (proxy,) = stage.all("AWS::RDS::DBProxy").values()
    (auth,) = proxy["Properties"]["Auth"]
    assert (auth["AuthScheme"], auth["IAMAuth"]) == ("SECRETS", "DISABLED")
    (schedule,) = stage.all("AWS::SecretsManager::RotationSchedule").values()
    assert schedule["Properties"]["RotateImmediatelyOnUpdate"] is False


@pytest.mark.parametrize("database", ["instance", "aurora", "existing"])
def test_a_proxy_with_the_secret_waits_for_its_login(
    combinations: dict[str, Stage], database: str
) -> None:
    """CloudFormation waits until the targets can be logged in to; the migration comes later.

    https://github.com/aws-cloudformation/aws-cloudformation-resource-providers-rds-proxy
    """
    from lambda_pg_cdk.stacks.database import ADMIT

    stage = combinations[f"{database}-rds-proxy-with-secret"]
    ((run, login),) = stage.resources("Pooler", "Custom::Login").items()
    for kind in ("AWS::RDS::DBProxy", "AWS::RDS::DBProxyTargetGroup"):
        for resource in stage.resources("Pooler", kind).values():
            assert run in resource["DependsOn"], kind
    (auth,) = stage.all("AWS::RDS::DBProxy").popitem()[1]["Properties"]["Auth"]
    assert login["Properties"]["Event"] == {
        "Step": ADMIT,
        "SecretId": auth["SecretArn"],
    }


@pytest.mark.parametrize("name", sorted(COMBINATIONS))
def test_a_password_is_hashed_often_where_a_proxy_logs_in_with_it(
    combinations: dict[str, Stage], name: str
) -> None:
    """Both functions that set the password do so. PgBouncer takes one round, and a token none."""
    functions = combinations[name].functions()
    told = {
        folder
        for folder, function in functions.items()
        if function["Environment"]["Variables"].get("MANY_ROUNDS") == "1"
    }
    with_secret = "rds-proxy-with-secret" in name
    assert told == ({"migrate", "rotate"} if with_secret else set())


def test_who_lets_the_login_in_may_run_the_rotation_s_function_alone(
    combinations: dict[str, Stage],
) -> None:
    """And look at its own stack; it is made before, and its permissions are."""
    stage = combinations["instance-rds-proxy-with-secret"]
    pooler = stage.templates["Pooler"]["Resources"]
    ((_, login),) = stage.resources("Pooler", "Custom::Login").items()
    (policy,) = [
        each
        for name, each in stage.resources("Pooler", "AWS::IAM::Policy").items()
        if name.startswith("Login")
    ]
    allowed = {
        action: statement["Resource"]
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        for action in listed(statement["Action"])
        if not action.startswith("xray:")
    }
    assert set(allowed) == {"lambda:InvokeFunction", "cloudformation:DescribeStacks"}
    assert allowed["lambda:InvokeFunction"] == login["Properties"]["Function"]
    assert {pooler[each]["Type"] for each in login["DependsOn"]} >= {
        "AWS::IAM::Policy",
        "AWS::Lambda::Function",
    }


@pytest.mark.parametrize("name", ["instance-rds-proxy", "instance-pgbouncer", "external"])
def test_without_a_proxy_that_has_a_password_no_login_comes_early(
    combinations: dict[str, Stage], name: str
) -> None:
    """A proxy with tokens has no user to log in as before a client comes."""
    assert not combinations[name].all("Custom::Login")


def test_aurora_scales_within_its_settings(combinations: dict[str, Stage]) -> None:
    """A Serverless v2 cluster with IAM, encryption, logs and TLS."""
    stage = combinations["aurora-pgbouncer"]
    (cluster,) = stage.all("AWS::RDS::DBCluster").values()
    properties = cluster["Properties"]
    assert properties["ServerlessV2ScalingConfiguration"] == {"MinCapacity": 1, "MaxCapacity": 8}
    assert properties["StorageEncrypted"] is True
    assert properties["ManageMasterUserPassword"] is True
    (group,) = stage.all("AWS::RDS::DBClusterParameterGroup").values()
    assert group["Properties"]["Parameters"]["rds.force_ssl"] == "1"
    assert "max_connections" not in group["Properties"]["Parameters"]


def test_the_pooler_is_made_for_lambda(prod: Stage) -> None:
    """Two zones, cross-zone, rolling without a gap, autoscaled, not privileged in any way."""
    (service,) = prod.all("AWS::ECS::Service").values()
    properties = service["Properties"]
    assert "DesiredCount" not in properties, "a deployment would take back what scaling added"
    assert properties["DeploymentConfiguration"]["MinimumHealthyPercent"] == 100
    assert properties["DeploymentConfiguration"]["MaximumPercent"] == 200
    assert len(properties["ServiceRegistries"]) == 1
    (target,) = prod.all("AWS::ApplicationAutoScaling::ScalableTarget").values()
    assert (target["Properties"]["MinCapacity"], target["Properties"]["MaxCapacity"]) == (2, 4)
    assert len(prod.all("AWS::ApplicationAutoScaling::ScalingPolicy")) == 2
    (balancer,) = prod.all("AWS::ElasticLoadBalancingV2::LoadBalancer").values()
    attributes = {
        each["Key"]: each["Value"] for each in balancer["Properties"]["LoadBalancerAttributes"]
    }
    assert attributes["load_balancing.cross_zone.enabled"] == "true"
    assert balancer["Properties"]["Scheme"] == "internal"
    (task,) = prod.all("AWS::ECS::TaskDefinition").values()
    (container,) = task["Properties"]["ContainerDefinitions"]
    assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    assert "Privileged" not in container


def test_the_balancer_forgets_a_flow_later_than_the_layer_uses_it(prod: Stage) -> None:
    """No function sends into a flow that is gone."""
    (listener,) = prod.all("AWS::ElasticLoadBalancingV2::Listener").values()
    attributes = {
        each["Key"]: int(each["Value"]) for each in listener["Properties"]["ListenerAttributes"]
    }
    assert attributes["tcp.idle_timeout.seconds"] > FLOW_IDLE


def test_every_alarm_leads_to_a_runbook_that_exists(app: Stage) -> None:
    """The link's anchor is a heading of docs/operations.md."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    headings = re.findall(r"(?m)^#+ (.+)$", page)
    anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
    for name, alarm in app.all("AWS::CloudWatch::Alarm").items():
        links = re.findall(r"docs/operations\.md#([a-z0-9-]+)", json.dumps(alarm))
        if "TargetTracking" in name:
            continue
        assert links, name
        assert set(links) <= anchors, name


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_costs_page_counts_what_is_deployed(stages: dict[str, Stage], name: str) -> None:
    """Secrets (the owner's, which RDS makes, too), private zones and alarms."""
    page = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    rows = page.partition(f"### {name}\n")[2].partition("\n#")[0]
    stage = stages[name]
    policies = len(stage.all("AWS::ApplicationAutoScaling::ScalingPolicy"))
    zones = ("AWS::Route53::HostedZone", "AWS::ServiceDiscovery::PrivateDnsNamespace")
    counted = {
        "secret": len(stage.all(SECRET)) + 1,
        "zone": sum(len(stage.all(kind)) for kind in zones),
        "alarm": len(stage.all("AWS::CloudWatch::Alarm")) + 2 * policies,
    }
    for word, count in counted.items():
        assert f"`{count} \N{MULTIPLICATION SIGN} {word}`" in rows, (word, count)


LEFT = {
    "AWS::RDS::DBInstance": "final snapshot",
    "AWS::RDS::DBCluster": "final snapshot",
    "AWS::Lambda::LayerVersion": "versions of the layer",
    "AWS::Cognito::UserPool": "user pool",
}
"""What the costs page calls that which `cdk destroy` leaves of a resource."""


@pytest.mark.parametrize("database", ["instance", "aurora"])
def test_the_costs_page_names_what_destroy_leaves(prod: Stage, database: str) -> None:
    """Snapshots and what is retained go on costing, or are in the way of somebody."""
    page = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    section = page.partition("`cdk destroy` leaves")[2].partition("\nNot counted:")[0]
    aurora = COMBINATIONS["aurora-pgbouncer"]
    stage = prod if database == "instance" else synthesise_once("prod", aurora)
    left = {
        resource["Type"]
        for template in stage.templates.values()
        for resource in template["Resources"].values()
        if resource.get("DeletionPolicy") in {"Retain", "Snapshot", "RetainExceptOnCreate"}
    }
    assert left
    for kind in left:
        assert LEFT[kind] in section, kind
    backups = [each["Properties"] for each in stage.all("AWS::RDS::DBInstance").values()]
    if any(each.get("DeleteAutomatedBackups") is False for each in backups):
        assert "automated backups" in section


def test_without_nat_the_endpoints_are_there(combinations: dict[str, Stage]) -> None:
    """Private subnets without NAT reach the registry, the logs and the secrets."""
    stage = combinations["instance-pgbouncer-without-nat"]
    assert not stage.all("AWS::EC2::NatGateway")
    endpoints = json.dumps(stage.all("AWS::EC2::VPCEndpoint"))
    for service in ("ecr.api", "ecr.dkr", "logs", "secretsmanager", ".s3"):
        assert service in endpoints


def test_a_stage_over_its_budget_does_not_synthesise(tmp_path: Path) -> None:
    """Synth stops with the arithmetic."""
    from lambda_pg_cdk import AppError

    with pytest.raises(AppError, match="max_db_connections"):
        new_stage("local", tmp_path, {"pgbouncer": {"max_db_connections": 60}}).synth()


def test_a_stage_that_cannot_log_everybody_in_does_not_synthesise(tmp_path: Path) -> None:
    """A quarter of a core is too little for the first function of the stage `dev` already."""
    from lambda_pg_cdk import AppError

    with pytest.raises(AppError, match="the time for all logins that can start at once is"):
        new_stage("dev", tmp_path, {"pgbouncer": {"cpu": 256, "memory": 512}}).synth()


def test_app_is_short() -> None:
    """app.py only names the stage: at most 15 lines."""
    text = (Path(__file__).parents[2] / "app.py").read_text()
    assert len(text.splitlines()) <= 15
    assert "App" in text
