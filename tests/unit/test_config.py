"""A stage's settings: what is read, what is refused, and the form of each message."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.stage.api_environment import api_variables
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load, load_stage
from lambda_pg_cdk.stage.schema import ConfigurationError, describe

CONTEXT = json.loads((Path(__file__).parents[2] / "cdk.json").read_text())["context"]


ARN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:x-AbCdEf"
ELSEWHERE = {"pooler": "external", "external": {"secret_arn": ARN}}
PAUSING = {"pooler": "rds-proxy", "database": {"kind": "aurora", "min_acu": 0}}


def configure(stage: str = "dev", override: object = None, **context: Any) -> Config:
    """Read a stage as `cdk -c stage=… -c override=…` does."""
    text = json.dumps(override) if override is not None else None
    return load({**CONTEXT, "stage": stage, "override": text, **context}.get)


def problems(override: object, stage: str = "dev") -> tuple[str, ...]:
    """Return the problems of a wrong override."""
    with pytest.raises(ConfigurationError) as refused:
        configure(stage, override)
    return refused.value.problems


@pytest.mark.parametrize("stage", CONTEXT["stages"])
def test_every_stage_of_cdk_json_is_right(stage: str) -> None:
    """All blocks are read without a problem."""
    assert configure(stage).stage == stage


def test_dev_is_the_default_stage() -> None:
    """Without `-c stage` nothing is deployed by mistake to where it matters."""
    assert load(CONTEXT.get).stage == "dev"


def test_an_override_is_merged_deeply() -> None:
    """Only what it names changes; its neighbours keep the stage's values."""
    config = configure("prod", {"pgbouncer": {"port": 7000}})
    assert (config.pgbouncer.port, config.pgbouncer.max_tasks) == (7000, 4)


def test_an_unknown_stage_names_those_there_are() -> None:
    """The message lists the stages."""
    with pytest.raises(ConfigurationError, match=r"'nowhere'.*local, dev, prod"):
        configure("nowhere")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"region": 3}, "region is 3; must be text: a region"),
        ({"baseline": "yes"}, "baseline is 'yes'; must be true or false"),
        ({"baseline": 1}, "baseline is 1; must be true or false"),
        ({"pgbouncer": {"port": "x"}}, "pgbouncer.port is 'x'; must be a whole number from 1024 "),
        ({"pgbouncer": {"port": 80}}, "pgbouncer.port is 80; must be a whole number from 1024 "),
        (
            {"pgbouncer": {"tasks": True}},
            "pgbouncer.tasks is true; must be a whole number from 1 to 8",
        ),
        ({"pgbouncer": {"prot": 1}}, "pgbouncer.prot is not a setting; must be one of tasks, max"),
        ({"pgbouncer": {"pool_mode": "statement"}}, "one of 'transaction', 'session'"),
        (
            {"pgbouncer": {"cpu": 1000}},
            "pgbouncer.cpu is 1000; must be one of 256, 512, 1024 units",
        ),
        (
            {"pgbouncer": {"cpu": 1024, "memory": 512}},
            "pgbouncer.memory is 512; must be one of 2048, 4096 (MiB), which Fargate offers with ",
        ),
        ({"pgbouncer": {"endpoint_host": "a b"}}, "pgbouncer.endpoint_host is 'a b'"),
        ({"pgbouncer": 7}, "pgbouncer is 7; must be a group of settings"),
        ({"pooler": "odyssey"}, "pooler is 'odyssey'; must be one of 'pgbouncer'"),
        ({"app": "Shop"}, "app is 'Shop'; must be text: lower-case words"),
        ({"app": "x" * 53, "pooler": "rds-proxy"}, "would have 64 characters, and RDS allows 63"),
        ({"database": {"min_acu": "1"}}, "database.min_acu is '1'; must be a number from 0 to 256"),
        ({"database": {"min_acu": 9}}, "database.min_acu is 9; must be at most database.max_acu"),
        ({"database": {"transaction_timeout": 5}}, "database.transaction_timeout is 5"),
        ({"database": {"statement_timeout": 20}}, "database.statement_timeout is 20; must be less"),
        ({"database": {"kind": "none"}}, "database.kind is 'none'; must be 'instance', "),
        (ELSEWHERE, "database.kind is 'instance'; must be 'none' with pooler 'external'"),
        (
            {"pgbouncer": {"tasks": 4}},
            "pgbouncer.max_tasks is 3; must be at least pgbouncer.tasks (4)",
        ),
        ({"pgbouncer": {"query_wait_timeout": 6}}, "pgbouncer.query_wait_timeout is 6; must be"),
        ({"rds_proxy": {"max_idle_percent": 90}}, "rds_proxy.max_idle_percent is 90; must be at"),
        ({"network": {"vpc_id": "vpc-1"}}, "network.vpc_id is 'vpc-1'"),
        ({"network": {"subnet_ids": ["subnet-0123abcd"]}}, "must be [] without network.vpc_id"),
        (PAUSING, "database.min_acu is 0; must be at least 0.5 (ACU) with RDS Proxy"),
        ({"python": "3.10"}, "python is '3.10'; must be one of '3.13'"),
        ({"account": "12"}, "account is '12'; must be text: 12 digits, or null"),
        ({"network": {"cidr": "10.0.0.0/8"}}, "network.cidr is '10.0.0.0/8'"),
        ({"network": {"nat_gateways": 3}}, "network.nat_gateways is 3; must be at most 2"),
        ({"network": {"egress": "vpn"}}, "network.egress is 'vpn'"),
        ({"database": {"ca_file": "ca.pem"}}, "database.ca_file is 'ca.pem'"),
        (
            {"database": {"max_storage_gib": 22, "storage_gib": 30}},
            "database.max_storage_gib is 22",
        ),
        ({"database": {"major_version": 16}}, "database.major_version is 16; must be 17"),
        ({"log_retention_days": 8}, "log_retention_days is 8"),
        ({"availability_zones": ["eu-west-1a"]}, "must be 2 or 3 zones"),
        (
            {"availability_zones": ["eu-west-1a", "us-east-1a"]},
            "must be in eu-west-1; us-east-1a is not",
        ),
        ({"availability_zones": "eu-west-1a"}, "availability_zones is 'eu-west-1a'"),
        ({"identity": {"issuer": "http://issuer.example"}}, "identity.issuer is "),
        ({"identity": {"issuer": "https://issuer.example"}}, "identity.audience is []"),
        ({"identity": {"audience": ["app"]}}, "identity.audience is ['app']; must be []"),
        (
            {"api": {"origins": ["https://a.example", "*"]}},
            "api.origins is ['https://a.example', '*']; must have '*' alone",
        ),
        (
            {"api": {"origins": ["https://A.example:443"]}},
            "must have 'https://a.example', as browsers send 'https://A.example:443'",
        ),
        (
            {"api": {"origins": ["https://a.example", "https://a.example"]}},
            "must have each origin once",
        ),
        (
            {"api": {"openapi": True}, "sample_api": False},
            "api.openapi is true; must be false without sample_api",
        ),
        ({"observability": {"email": "nobody"}}, "observability.email is 'nobody'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(override: object, expected: str) -> None:
    """The message has the dotted name, the value and what is allowed."""
    (problem,) = problems(override)
    assert expected in problem
    assert re.fullmatch(r"\S+ is .+; must .+", problem)


PAGES = ["https://a.example", "https://b.example"]


def test_cors_is_in_one_place() -> None:
    """API Gateway's headers replace the function's: both lists of origins must say the same."""
    sql = {"enabled": True, "roles": ["reader"]}
    (problem,) = problems({"api": {"origins": PAGES}, "sql": sql}, "prod")
    assert problem.startswith(f"api.origins is {PAGES}; must be the same as sql.origins ([])")
    same = {"api": {"origins": PAGES}, "sql": {**sql, "origins": PAGES[::-1]}}
    assert configure("prod", same).api.origins == tuple(PAGES)
    assert configure("prod", {"sql": {**sql, "origins": PAGES}}).api.origins == ()
    assert configure("prod", {"api": {"origins": PAGES}}).sql.origins == ()


def test_functions_get_variables_for_what_differs_from_the_default() -> None:
    """The layer has the defaults."""
    assert api_variables(configure("prod").api) == {}
    changed = {
        "max_body": 2048,
        "require_idempotency_key": True,
        "require_if_match": True,
        "problem_types": "https://example.com/problems",
        "origins": PAGES,
        "openapi": True,
    }
    assert api_variables(configure("prod", {"api": changed}).api) == {
        "LAMBDA_PG_API_MAX_BODY": "2048",
        "LAMBDA_PG_API_REQUIRE_IDEMPOTENCY_KEY": "1",
        "LAMBDA_PG_API_REQUIRE_IF_MATCH": "1",
        "LAMBDA_PG_API_PROBLEM_TYPES": "https://example.com/problems",
    }


def test_all_problems_are_listed_at_once() -> None:
    """One run shows everything that must be corrected."""
    assert len(problems({"region": 3, "baseline": 1, "pgbouncer": {"port": 1, "prot": 1}})) == 4


def test_a_missing_setting_is_named() -> None:
    """Region and zones have no default."""
    with pytest.raises(ConfigurationError) as refused:
        configure("x", stages={"x": {}})
    assert [problem.split()[0] for problem in refused.value.problems] == [
        "region",
        "availability_zones",
    ]


def test_an_override_that_is_not_json_is_refused() -> None:
    """The message says where it stops being JSON."""
    with pytest.raises(ConfigurationError, match=r"override is .*; must be JSON: .*column"):
        load({**CONTEXT, "override": "{'a': 1}"}.get)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"pgbouncer": {"query_wait_timeout": 3}}, "pgbouncer.query_wait_timeout is 3"),
        (
            {"pooler": "rds-proxy", "rds_proxy": {"borrow_timeout": 3}},
            "rds_proxy.borrow_timeout is 3",
        ),
        ({"functions": {"checkout_timeout": 1}}, "pgbouncer.query_wait_timeout is 1"),
        ({"functions": {"checkout_timeout": 20}}, "functions.checkout_timeout is 20"),
        ({"functions": {"timeout": 3}}, "functions.checkout_timeout is 3"),
        ({"functions": {"timeout": 29}}, "functions.timeout is 29"),
    ],
)
def test_timeouts_nest(override: object, expected: str) -> None:
    """Pooler queue < checkout < function < API, each strictly."""
    assert any(expected in problem for problem in problems(override))


def test_an_existing_database_needs_all_that_nothing_creates() -> None:
    """Each missing part is named, and which are needed depends on the pooler."""
    existing = {"database": {"kind": "existing", "max_connections": None}}
    parts = ["existing.host", "existing.secret_arn", "existing.security_group_id"]
    needed = [*[f"database.{part}" for part in parts], "database.max_connections"]
    named = [problem.split()[0] for problem in problems(existing)]
    assert named == [*needed, "network.vpc_id"]
    named = [problem.split()[0] for problem in problems({**existing, "pooler": "rds-proxy"})]
    last = ["database.existing.identifier", "database.existing.resource_id"]
    assert named == [*needed, "network.vpc_id", *last]


def test_an_existing_network_needs_a_subnet_for_each_zone() -> None:
    """And their addresses where tasks are numbered by them."""
    given = {"network": {"vpc_id": "vpc-0123abcd", "subnet_ids": ["subnet-0123abcd"]}}
    assert [problem.split()[0] for problem in problems(given)] == [
        "network.subnet_ids",
        "network.subnet_cidrs",
    ]


def test_an_external_pooler_needs_its_secret() -> None:
    """The URLs are in it."""
    external = {"pooler": "external", "database": {"kind": "none"}}
    assert problems(external) == (
        "external.secret_arn is null; must be set with pooler 'external'",
    )


def test_an_external_pooler_in_a_network_needs_its_port() -> None:
    """Security groups let functions out to that port alone; outside of a VPC there are none."""
    network = {
        "vpc_id": "vpc-0123abcd",
        "subnet_ids": ["subnet-0123abcd", "subnet-0123abce"],
    }
    external = {**ELSEWHERE, "database": {"kind": "none"}}
    assert configure("dev", external).external.port is None
    (problem,) = problems({**external, "network": network})
    assert problem.startswith("external.port is null; must be set, because network.vpc_id is")
    given = {**external, "network": network, "external": {"secret_arn": ARN, "port": 6543}}
    assert configure("dev", given).external.port == 6543


def test_a_stage_can_be_read_by_name() -> None:
    """From another app or program, which has no context of ours."""
    assert load_stage("prod", {"log_retention_days": 1}).log_retention_days == 1
    assert load_stage("prod").stack_prefix == "LambdaPg-prod"
    assert load_stage("prod", {"app": "web-shop"}).stack_prefix == "WebShop-prod"
    assert load_stage("prod", {"app": "web-shop"}).zone == "prod.web-shop.internal"


def test_every_setting_says_what_it_means() -> None:
    """Each has a description, and each number a range."""
    for name, rule, default in describe(Config):
        assert rule.doc, name
        if isinstance(default, int) and not isinstance(default, bool):
            assert rule.choices or (rule.minimum is not None and rule.maximum is not None), name


def test_stages_that_share_a_proxys_name_are_refused() -> None:
    """RDS compares names without case: the second of two deployments would fail."""
    stages = {**CONTEXT["stages"], "Dev": CONTEXT["stages"]["dev"]}
    for stage, other in (("dev", "Dev"), ("Dev", "dev")):
        with pytest.raises(ConfigurationError) as refused:
            configure(stage, {"pooler": "rds-proxy"}, stages=stages)
        (problem,) = refused.value.problems
        assert problem == (
            f"stage is '{stage}'; must differ from the stage '{other}' in more than case: "
            "both proxies would be 'lambda-pg-dev-pooler'"
        )
        assert configure(stage, stages=stages).stage == stage, "without a proxy it is another name"
