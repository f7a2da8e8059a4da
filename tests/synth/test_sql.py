"""What `sql.enabled` deploys: a function with separate logins, limits and routes."""

import json
from typing import Any

import pytest

from lambda_pg_cdk.functions.sql.sql_http.settings import SqlSettings, login_of
from lambda_pg_cdk.stage.budget import most_tasks
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.tools.synth import BASE, COMBINATIONS
from tests.support.apps import OwnApp
from tests.support.templates import Stage

ROLES = ("reader", "writer", "caller")
WITH_SQL = sorted(name for name in COMBINATIONS if name.endswith("-with-sql"))
WITH_PGBOUNCER = "instance-pgbouncer-bastion-with-sql"
PGBOUNCER = [name for name in WITH_SQL if "pgbouncer" in name]
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:{}-AbCdEf"


def settings(name: str) -> Config:
    """Read the settings of a combination."""
    return load_stage(BASE, COMBINATIONS[name])


def variables(stage: Stage, function: str) -> dict[str, Any]:
    """Read the environment of a function."""
    found: dict[str, Any] = stage.functions()[function]["Environment"]["Variables"]
    return found


def written(value: Any) -> Any:
    """Read JSON that CloudFormation joins, with each reference as the text of its name."""
    if isinstance(value, str):
        return json.loads(value)
    parts = value["Fn::Join"][1]
    return json.loads("".join(part if isinstance(part, str) else part["Ref"] for part in parts))


def allowed(stage: Stage, function: str) -> list[tuple[str, str]]:
    """List what a function's own policies allow: the action, and the resource as text."""
    role = {"Ref": stage.functions()[function]["Role"]["Fn::GetAtt"][0]}
    return [
        (action, json.dumps(resource))
        for policy in stage.all("AWS::IAM::Policy").values()
        if role in policy["Properties"]["Roles"]
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
        for action in _listed(statement["Action"])
        for resource in _listed(statement["Resource"])
    ]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def routes(stage: Stage) -> dict[tuple[str, str], dict[str, Any]]:
    """Read the routes of `/sql`: by their API and their key."""
    found = stage.resources("Api", "AWS::ApiGatewayV2::Route").values()
    return {
        (each["Properties"]["ApiId"]["Ref"], each["Properties"]["RouteKey"]): each["Properties"]
        for each in found
        if each["Properties"]["RouteKey"].endswith(" /sql")
    }


def test_a_stage_without_it_has_nothing_of_it(prod: Stage) -> None:
    """No function, route, secret, variable or alarm, in any template."""
    for name, template in prod.templates.items():
        text = json.dumps(template).lower()
        for word in ("/sql", "sql_", "sqlreader", "sqlfront", '"sql"'):
            assert word not in text, name


@pytest.mark.parametrize("name", WITH_SQL)
def test_it_reads_the_secrets_of_its_roles_and_the_table_of_keys(
    combinations: dict[str, Stage], name: str
) -> None:
    """And no other: neither the application's nor the owner's, nor tokens of another user."""
    stage, config = combinations[name], settings(name)
    found = allowed(stage, "sql")
    secrets = {on for action, on in found if action == "secretsmanager:GetSecretValue"}
    users = {on for action, on in found if action == "rds-db:connect"}
    (keys,) = (each for each in secrets if "Keys" in each)
    logins = users if config.by_token else secrets - {keys}
    assert len(logins) == len(config.sql.roles)
    for role in config.sql.roles:
        assert sum(f"{role}" in each for each in logins) == 1
    assert len(secrets | users) == len(config.sql.roles) + 1
    assert not any("application" in each or "owner" in each for each in secrets | users)
    assert not any(action.endswith("PutSecretValue") for action, _ in found)


@pytest.mark.parametrize("name", WITH_SQL)
def test_the_function_understands_its_environment(
    combinations: dict[str, Stage], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stacks write is what the function and the layer read, for each role."""
    config = settings(name)
    told = variables(combinations[name], "sql")
    roles = written(told["SQL_ROLES"])
    assert set(roles) == set(config.sql.roles)
    if not config.by_token:
        roles = {role: ARN.format(role) for role in roles}
    filled = {
        key: value if isinstance(value, str) else "x"
        for key, value in told.items()
        if key not in {"PGSSLROOTCERT", "LAMBDA_PG_CA_PEM"}
    }
    environ = {**filled, "SQL_ROLES": json.dumps(roles), "AWS_REGION": "eu-west-1"}
    if "PGPORT" in environ:
        environ["PGPORT"] = str(config.pooler_port)
    read = SqlSettings.from_env(environ)
    assert read.key_lifetime == config.sql.key_lifetime
    assert read.gzip == config.sql.gzip
    assert config.database.name in read.databases
    for role in config.sql.roles:
        login = login_of(environ, read.roles[role])
        assert login.slots == len(config.sql.roles)
        if config.by_token:
            assert login.user == f"sql_{role}"
        else:
            assert login.secret_arn == ARN.format(role)
        if config.pooler != "external":
            assert login.dbname == config.sql_database


@pytest.mark.parametrize("name", WITH_SQL)
def test_the_keys_route_needs_no_token_and_has_its_throttle(
    combinations: dict[str, Stage], name: str
) -> None:
    """The stage's API has both methods, without an authorizer; the stage waits for them."""
    stage, sql = combinations[name], settings(name).sql
    template = stage.templates["Api"]["Resources"]
    (default,) = (
        each
        for each in stage.resources("Api", "AWS::ApiGatewayV2::Stage").values()
        if "RouteSettings" in each["Properties"]
    )
    api = default["Properties"]["ApiId"]["Ref"]
    for key in ("POST /sql", "OPTIONS /sql"):
        assert routes(stage)[api, key]["AuthorizationType"] == "NONE"
        throttle = default["Properties"]["RouteSettings"][key]
        assert throttle["ThrottlingRateLimit"] == sql.rate_limit
        assert throttle["ThrottlingBurstLimit"] == sql.burst_limit
        assert throttle["DetailedMetricsEnabled"]
    waits = [template[each]["Properties"].get("RouteKey") for each in default["DependsOn"]]
    assert {"POST /sql", "OPTIONS /sql"} <= set(waits)
    function = stage.functions()["sql"]
    assert function["ReservedConcurrentExecutions"] == sql.reserved_concurrency
    assert function["Timeout"] == sql.timeout


@pytest.mark.parametrize("name", WITH_SQL)
def test_a_token_has_an_api_of_its_own(combinations: dict[str, Stage], name: str) -> None:
    """There every POST has the JWT authorizer; the other API has no route that takes both."""
    stage = combinations[name]
    guarded = {key: each for key, each in routes(stage).items() if each.get("AuthorizerId")}
    jwt = settings(name).sql.jwt
    assert [key for _, key in guarded] == (["POST /sql"] if jwt else [])
    apis = stage.resources("Api", "AWS::ApiGatewayV2::Api")
    assert len(apis) == (2 if jwt else 1)
    opened = ["CorsConfiguration" in each["Properties"] for each in apis.values()]
    assert sum(opened) == bool(settings(name).api.origins), (
        "the function answers for its second API"
    )
    for (api, _), route in guarded.items():
        assert route["AuthorizationType"] == "JWT"
        authorizer = stage.templates["Api"]["Resources"][route["AuthorizerId"]["Ref"]]
        assert authorizer["Properties"]["ApiId"]["Ref"] == api
        assert "SqlTokenUrl" in stage.templates["Api"]["Outputs"]


@pytest.mark.parametrize("name", WITH_SQL)
def test_the_first_table_of_keys_never_changes(combinations: dict[str, Stage], name: str) -> None:
    """Another text in the template would overwrite the keys of every stage."""
    (keys,) = combinations[name].resources("Api", "AWS::SecretsManager::Secret").values()
    assert keys["Properties"]["SecretString"] == '{"keys": {}}'
    assert "GenerateSecretString" not in keys["Properties"]


def test_a_protected_stage_keeps_its_keys(tmp_path: Any) -> None:
    """They are data that only their owner has."""
    override = {
        **COMBINATIONS[WITH_PGBOUNCER],
        "termination_protection": True,
    }
    email = {"observability": {"email": "on-call@example.com"}}
    own = OwnApp(tmp_path, {**override, **email})
    own.stage.synth()
    (keys,) = own.resources("Api", "AWS::SecretsManager::Secret").values()
    assert keys["DeletionPolicy"] == "Retain"


def test_an_app_has_each_api_and_does_not_take_their_routes(tmp_path: Any) -> None:
    """It can map a domain name to each; routing the same requests again is an error."""
    own = OwnApp(tmp_path, COMBINATIONS[WITH_PGBOUNCER])
    own.stage.check()
    found = own.stage.sql_token_api
    assert found is not None
    assert found.node.path != own.stage.api.node.path
    own.stage.route("POST /sql", own.function())
    with pytest.raises(SystemExit, match=r"'POST /sql' matches .*the stage's own"):
        own.stage.check()


def test_without_sql_there_is_no_second_api(tmp_path: Any) -> None:
    """The face says so."""
    assert OwnApp(tmp_path).stage.sql_token_api is None


@pytest.mark.parametrize("name", WITH_SQL)
def test_migration_and_rotation_know_the_same_secrets(
    combinations: dict[str, Stage], name: str
) -> None:
    """Each role's secret is rotated like the application's, and each is reported."""
    stage, config = combinations[name], settings(name)
    told = variables(stage, "migrate")
    assert set(written(told["SQL_ROLES"])) == set(config.sql.roles)
    assert set(written(told["SQL_TIMEOUTS"])) == {
        "statement",
        "lock",
        "idle_in_transaction",
        "transaction",
    }
    if config.by_token or config.pooler == "external":
        assert "rotate" not in stage.functions()
        return
    schedules = stage.resources("Database", "AWS::SecretsManager::RotationSchedule").values()
    rotated = {each["Properties"]["SecretId"]["Ref"] for each in schedules}
    roles = written(variables(stage, "rotate")["SQL_ROLES"])
    assert set(roles) == set(config.sql.roles)
    assert len(rotated) == len(roles) + 1
    assert set(roles.values()) < rotated
    invoked = [
        each["Properties"]
        for each in stage.resources("Database", "AWS::Lambda::Permission").values()
        if each["Properties"]["Principal"] == "secretsmanager.amazonaws.com"
    ]
    assert {each["SourceArn"]["Ref"] for each in invoked} == rotated
    assert all("SourceAccount" in each for each in invoked)


@pytest.mark.parametrize("name", PGBOUNCER)
def test_pgbouncer_has_bounds_for_it_alone(combinations: dict[str, Stage], name: str) -> None:
    """And PostgreSQL limits each user to its part of them."""
    stage, config = combinations[name], settings(name)
    (task,) = stage.all("AWS::ECS::TaskDefinition").values()
    (container,) = task["Properties"]["ContainerDefinitions"]
    told = {each["Name"]: each["Value"] for each in container["Environment"]}
    assert told["SQL_MAX_DB_CONNECTIONS"] == str(config.sql.max_db_connections)
    assert told["SQL_POOL_SIZE"] == str(config.sql_pool_size)
    environments = 2 * config.sql.reserved_concurrency  # during a deployment
    assert told["SQL_MAX_CLIENT_CONN"] == str(environments * config.sql.slots)
    assert told["MAX_DB_CONNECTIONS"] == str(config.pgbouncer.max_db_connections)
    text = json.dumps(told["SQL_SECRET_ARNS"])
    assert all(f"sql{role}secretarn" in text for role in config.sql.roles)
    limit = most_tasks(config) * config.sql_pool_size
    assert variables(stage, "migrate")["SQL_LOGIN_LIMIT"] == str(limit)


def test_a_proxy_with_secrets_knows_all_of_them(combinations: dict[str, Stage]) -> None:
    """It logs in at the database with the client's own; each login is there before the proxy."""
    stage = combinations["existing-rds-proxy-with-secret-with-sql"]
    (proxy,) = stage.all("AWS::RDS::DBProxy").values()
    assert len(proxy["Properties"]["Auth"]) == 1 + len(ROLES)
    logins = stage.resources("Pooler", "Custom::Login")
    assert len(logins) == 1 + len(ROLES)
    assert set(logins) <= set(proxy["DependsOn"])


def test_a_missing_file_of_statements_is_named(tmp_path: Any) -> None:
    """With the setting that names it. Without tokens there is no second API to map."""
    own = OwnApp(tmp_path, {"sql": {"enabled": True, "statements": "sql/none.json"}, **SMALL})
    assert own.stage.sql_token_api is None
    with pytest.raises(SystemExit, match=r"sql\.statements is 'sql/none\.json'; must be a file"):
        own.stage.check()


SMALL = {"database": {"max_connections": 200}}
