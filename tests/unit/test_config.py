"""A stage's settings: what is read, and what is refused in which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from stacks.config import Config
from stacks.settings import ConfigurationError, describe

CONTEXT = json.loads((Path(__file__).parents[2] / "cdk.json").read_text())["context"]


def configure(stage: str = "dev", override: object = None, **context: Any) -> Config:
    """Read a stage as `cdk -c stage=… -c override=…` does."""
    text = json.dumps(override) if override is not None else None
    return Config.from_context({**CONTEXT, "stage": stage, "override": text, **context}.get)


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
    assert Config.from_context(CONTEXT.get).stage == "dev"


def test_an_override_is_merged_deeply() -> None:
    """Only what it names changes; its neighbours keep the stage's values."""
    config = configure("prod", {"pooler": {"port": 7000}})
    assert (config.pooler.port, config.pooler.tasks) == (7000, 3)


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
        ({"pooler": {"port": "x"}}, "pooler.port = 'x': allowed is a whole number, 1024 to 65535"),
        ({"pooler": {"port": 80}}, "pooler.port = 80: allowed is a whole number, 1024 to 65535"),
        ({"pooler": {"tasks": True}}, "pooler.tasks = True: allowed is a whole number, 1 to 16"),
        ({"pooler": {"prot": 1}}, "pooler.prot = 1 is no setting: allowed are tasks, cpu"),
        ({"pooler": {"pool_mode": "statement"}}, "one of 'transaction', 'session'"),
        ({"pooler": {"cpu": 1000}}, "pooler.cpu = 1000: allowed is a whole number, one of 256"),
        ({"pooler": {"endpoint_host": "a b"}}, "pooler.endpoint_host = 'a b'"),
        ({"pooler": 7}, "pooler is 7: allowed is a group of settings"),
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
    assert len(problems({"region": 3, "baseline": 1, "pooler": {"port": 1, "prot": 1}})) == 4


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
        Config.from_context({**CONTEXT, "override": "{'a': 1}"}.get)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"pooler": {"query_wait_timeout": 3}}, "pooler.query_wait_timeout = 3"),
        ({"functions": {"checkout_timeout": 1}}, "pooler.query_wait_timeout = 1"),
        ({"functions": {"checkout_timeout": 20}}, "functions.checkout_timeout = 20"),
        ({"functions": {"timeout": 3}}, "functions.checkout_timeout = 3"),
        ({"functions": {"timeout": 29}}, "functions.timeout = 29"),
    ],
)
def test_timeouts_nest(override: object, expected: str) -> None:
    """Pooler queue < checkout < function < API, each strictly."""
    assert any(expected in problem for problem in problems(override))


def test_every_setting_says_what_it_means() -> None:
    """Each has a description, and each number a range."""
    for name, rule, default in describe(Config):
        assert rule.doc, name
        if isinstance(default, int) and not isinstance(default, bool):
            assert rule.choices or (rule.minimum is not None and rule.maximum is not None), name
