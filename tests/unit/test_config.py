"""A stage's settings: what is read, and what is refused in which words."""

import json
from pathlib import Path
from typing import Any

import pytest

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
    """Return what a wrong override is told."""
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
        ({"region": 3}, "region = 3: allowed is text, a region"),
        ({"baseline": "yes"}, "baseline = 'yes': allowed is true or false"),
        ({"baseline": 1}, "baseline = 1: allowed is true or false"),
        ({"pgbouncer": {"port": "x"}}, "pgbouncer.port = 'x': allowed is a whole number, 1024 to"),
        ({"pgbouncer": {"port": 80}}, "pgbouncer.port = 80: allowed is a whole number, 1024 to"),
        (
            {"pgbouncer": {"tasks": True}},
            "pgbouncer.tasks = True: allowed is a whole number, 1 to 8",
        ),
        ({"pgbouncer": {"prot": 1}}, "pgbouncer.prot = 1 is no setting: allowed are tasks, max"),
        ({"pgbouncer": {"pool_mode": "statement"}}, "one of 'transaction', 'session'"),
        ({"pgbouncer": {"cpu": 1000}}, "pgbouncer.cpu = 1000: allowed is a whole number, one of"),
        (
            {"pgbouncer": {"cpu": 1024, "memory": 512}},
            "pgbouncer.memory = 512: allowed with pgbouncer.cpu = 1024 is one of 2048, 4096",
        ),
        ({"pgbouncer": {"endpoint_host": "a b"}}, "pgbouncer.endpoint_host = 'a b'"),
        ({"pgbouncer": 7}, "pgbouncer is 7: allowed is a group of settings"),
        ({"pooler": "odyssey"}, "pooler = 'odyssey': allowed is text, one of 'pgbouncer'"),
        ({"app": "Shop"}, "app = 'Shop': allowed is text, lower-case words"),
        ({"app": "x" * 53, "pooler": "rds-proxy"}, "of 64 characters; allowed are 63"),
        ({"database": {"min_acu": "1"}}, "database.min_acu = '1': allowed is a number, 0 to 256"),
        ({"database": {"min_acu": 9}}, "database.min_acu = 9: allowed is up to database.max_acu"),
        ({"database": {"transaction_timeout": 5}}, "database.transaction_timeout = 5"),
        ({"database": {"statement_timeout": 20}}, "database.statement_timeout = 20: allowed is le"),
        ({"database": {"kind": "none"}}, "database.kind = 'none' with pooler = 'pgbouncer'"),
        (ELSEWHERE, "database.kind = 'instance' with pooler = 'external': allowed is 'none'"),
        ({"pgbouncer": {"tasks": 4}}, "pgbouncer.max_tasks = 3: allowed is pgbouncer.tasks = 4"),
        ({"pgbouncer": {"query_wait_timeout": 6}}, "pgbouncer.query_wait_timeout = 6: allowed is"),
        ({"rds_proxy": {"max_idle_percent": 90}}, "rds_proxy.max_idle_percent = 90: allowed is up"),
        ({"network": {"vpc_id": "vpc-1"}}, "network.vpc_id = 'vpc-1'"),
        ({"network": {"subnet_ids": ["subnet-0123abcd"]}}, "allowed is [] without network.vpc_id"),
        (PAUSING, "database.min_acu = 0: allowed is 0.5 or more with RDS Proxy"),
        ({"python": "3.10"}, "python = '3.10': allowed is text, one of '3.13'"),
        ({"account": "12"}, "account = '12': allowed is text or null, 12 digits"),
        ({"network": {"cidr": "10.0.0.0/8"}}, "network.cidr = '10.0.0.0/8'"),
        ({"network": {"nat_gateways": 3}}, "network.nat_gateways = 3: allowed are up to 2"),
        ({"network": {"egress": "vpn"}}, "network.egress = 'vpn'"),
        ({"database": {"ca_file": "ca.pem"}}, "database.ca_file = 'ca.pem'"),
        ({"database": {"max_storage_gib": 22, "storage_gib": 30}}, "database.max_storage_gib = 22"),
        ({"database": {"major_version": 16}}, "database.major_version = 16"),
        ({"log_retention_days": 8}, "log_retention_days = 8"),
        ({"availability_zones": ["eu-west-1a"]}, "allowed are 2 or 3 zones"),
        ({"availability_zones": ["eu-west-1a", "us-east-1a"]}, "allowed are zones of eu-west-1"),
        ({"availability_zones": "eu-west-1a"}, "availability_zones = 'eu-west-1a'"),
        ({"identity": {"issuer": "http://issuer.example"}}, "identity.issuer = "),
        ({"identity": {"issuer": "https://issuer.example"}}, "identity.audience = []"),
        ({"identity": {"audience": ["app"]}}, "identity.audience = ['app']: allowed is []"),
        ({"observability": {"email": "nobody"}}, "observability.email = 'nobody'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(override: object, expected: str) -> None:
    """The message has the dotted name, the value and what is allowed."""
    (problem,) = problems(override)
    assert expected in problem


def test_all_problems_are_listed_at_once() -> None:
    """Whoever edits a stage corrects it in one go."""
    assert len(problems({"region": 3, "baseline": 1, "pgbouncer": {"port": 1, "prot": 1}})) == 4


def test_a_missing_setting_is_named() -> None:
    """Region and zones have no default."""
    with pytest.raises(ConfigurationError) as refused:
        configure("x", stages={"x": {}})
    assert [problem.split()[0] for problem in refused.value.problems] == [
        "region",
        "availability_zones",
    ]


def test_an_override_that_is_no_json_is_refused() -> None:
    """The message says where it stops being JSON."""
    with pytest.raises(ConfigurationError, match=r"override = .*allowed is JSON.*column"):
        load({**CONTEXT, "override": "{'a': 1}"}.get)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"pgbouncer": {"query_wait_timeout": 3}}, "pgbouncer.query_wait_timeout = 3"),
        (
            {"pooler": "rds-proxy", "rds_proxy": {"borrow_timeout": 3}},
            "rds_proxy.borrow_timeout = 3",
        ),
        ({"functions": {"checkout_timeout": 1}}, "pgbouncer.query_wait_timeout = 1"),
        ({"functions": {"checkout_timeout": 20}}, "functions.checkout_timeout = 20"),
        ({"functions": {"timeout": 3}}, "functions.checkout_timeout = 3"),
        ({"functions": {"timeout": 29}}, "functions.timeout = 29"),
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
        "external.secret_arn = null: a value is needed with pooler = 'external'",
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
    assert problem.startswith("external.port = null: a value is needed with network.vpc_id")
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
