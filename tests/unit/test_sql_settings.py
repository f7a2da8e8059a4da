"""The settings of `/sql`: what is refused, and what they add to the budget."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_pg_cdk.stage.budget import (
    BudgetError,
    Client,
    Sum,
    budget_of,
    login_limit,
    most_tasks,
    sql_login_limit,
)
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.schema import ConfigurationError
from lambda_pg_cdk.tools.synth import COMBINATIONS

ARN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:{}-AbCdEf"
EXTERNAL: dict[str, Any] = {
    "pooler": "external",
    "database": {"kind": "none"},
    "external": {"secret_arn": ARN.format("pooled")},
}
ALL = ["reader", "writer", "caller"]
TOKENS = {"roles": ALL, "jwt": True, "statements": "sql/statements.json"}


def configure(sql: dict[str, Any], **others: Any) -> Config:
    """Read the stage `dev` with `/sql` on."""
    return load_stage("dev", {**others, "sql": {"enabled": True, **sql}})


def problems(sql: dict[str, Any], **others: Any) -> tuple[str, ...]:
    """Return the problems of wrong settings."""
    with pytest.raises(ConfigurationError) as refused:
        configure(sql, **others)
    return refused.value.problems


@pytest.mark.parametrize(
    ("sql", "others", "expected"),
    [
        ({"roles": ["reader", "reader"]}, {}, "must have each trust level once"),
        ({"roles": ["owner"]}, {}, "sql.roles is ['owner']; must be one of 'reader', 'writer'"),
        ({"roles": []}, {}, "sql.roles is []"),
        ({"jwt": True, "statements": "a.json"}, {}, "must have 'caller' with sql.jwt true"),
        ({"jwt": True, "roles": ALL}, {}, "sql.statements is null; must be set with sql.jwt true"),
        ({"roles": ALL}, {}, "sql.jwt is false; must be true with 'caller' in sql.roles"),
        ({"statements": "../a.json"}, {}, "sql.statements is '../a.json'; must be text: a path"),
        ({"statements": "/a.json"}, {}, "sql.statements is '/a.json'"),
        ({}, {"pgbouncer": {"pool_mode": "session"}}, "must be 'transaction' with sql.enabled"),
        ({}, {"database": {"name": "x" * 60}}, "must have at most 59 characters"),
        (
            {"max_db_connections": 1},
            {},
            "sql.max_db_connections is 1; must be at least 2: a trust level",
        ),
        (
            {"max_db_connections": 2, "roles": ["reader", "writer"]},
            {},
            "sql.max_db_connections is 2; must be at least 3: a trust level may use 2",
        ),
        ({"role_connections": 1}, {}, "sql.role_connections is 1; must be at least 2 with "),
        (
            {"role_connections": 4, "roles": ["reader", "writer"]},
            {},
            "sql.max_db_connections is 4; must be at least 5: a trust level may use 4",
        ),
        (
            {"timeout": 5, "transaction_timeout": 4, "statement_timeout": 3},
            {"functions": {"checkout_timeout": 5}},
            "sql.timeout is 5; must be more than functions.checkout_timeout (5 seconds)",
        ),
        ({"statement_timeout": 16}, {}, "must be at least sql.statement_timeout (16 seconds)"),
        ({"timeout": 15}, {}, "sql.transaction_timeout is 15; must be less than sql.timeout"),
        ({"gzip": False, "max_bytes": 5_000_001}, {}, "must be at most 5000000 with sql.gzip fal"),
        ({"reader_secret_arn": ARN.format("x")}, {}, "must be null unless pooler is 'external'"),
        ({}, EXTERNAL, "sql.reader_secret_arn is null; must be set with pooler 'external'"),
        (
            {"reader_secret_arn": ARN.format("pooled")},
            EXTERNAL,
            "must be another secret than external.secret_arn",
        ),
        (
            {"reader_secret_arn": ARN.format("x").replace("eu-west-1", "us-east-1")},
            EXTERNAL,
            "must be a secret of the stage's region, eu-west-1",
        ),
        (
            {"origins": ["example.com"]},
            {},
            "sql.origins is ['example.com']; must be a list of text: orig",
        ),
        ({"hosts": ["https://example.com"]}, {}, "sql.hosts is ['https://example.com']"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    sql: dict[str, Any], others: dict[str, Any], expected: str
) -> None:
    """The message has the setting, the value and what must hold."""
    (problem,) = problems(sql, **others)
    assert expected in problem
    assert re.fullmatch(r"\S+ is .+; must .+", problem)


@pytest.mark.parametrize(
    ("sql", "others"),
    [
        ({}, {}),
        (TOKENS, {}),
        ({"max_bytes": 50_000_000}, {}),
        ({"role_connections": 3, "roles": ["reader", "writer"]}, {}),
        ({}, {"pooler": "rds-proxy"}),
        ({"max_db_connections": 1}, {"database": {"rotation": "single"}}),
        ({"reader_secret_arn": ARN.format("reader")}, EXTERNAL),
        ({"origins": ["https://www.example.com", "http://localhost:3000"]}, {}),
        ({"origins": ["*"], "hosts": ["pool.example.com"]}, {}),
    ],
)
def test_what_can_work_is_taken(sql: dict[str, Any], others: dict[str, Any]) -> None:
    """Each pooler can serve it."""
    assert configure(sql, **others).sql.enabled


def test_what_is_off_is_not_checked() -> None:
    """A stage may keep the block of settings while `/sql` is off."""
    assert not load_stage("dev", {"sql": {"roles": ALL}}).sql.enabled


@given(
    st.lists(st.sampled_from(ALL), min_size=1, max_size=3, unique=True),
    st.integers(1, 1000),
    st.one_of(st.none(), st.integers(1, 1000)),
    st.sampled_from(["alternating", "single"]),
)
def test_one_busy_role_always_leaves_server_connections_for_another(
    roles: list[str], most: int, part: int | None, rotation: str
) -> None:
    """Both of its users together, in whatever is accepted; and each user has at least one."""
    sql: dict[str, Any] = {"roles": roles, "max_db_connections": most, "role_connections": part}
    if "caller" in roles:
        sql |= {"jwt": True, "statements": "sql/statements.json"}
    try:
        config = configure(sql, database={"rotation": rotation})
    except ConfigurationError:
        return
    one_role = config.sql_pool_size * config.users_of_a_login
    assert config.sql_pool_size >= 1
    assert one_role < most or len(roles) == 1
    assert one_role <= most


def server(config: Config, *clients: Client) -> Sum:
    """Take the sum of server connections."""
    found = budget_of(config, clients).sums
    (each,) = (one for one in found if isinstance(one, Sum) and one.kind == "server connection")
    return each


def test_the_second_name_adds_to_the_budget_for_each_task() -> None:
    """Rolling and draining tasks have it too, and each role's secret can be rotated."""
    plain, with_sql = load_stage("dev"), configure(TOKENS)
    tasks = (3 * 2) + 3
    assert server(with_sql).total - server(plain).total == tasks * 4 + 3 * 2
    assert "PgBouncer for /sql: the same 9 tasks x 4" in server(with_sql).explain()


def test_with_tokens_there_is_neither_a_second_name_nor_a_rotation() -> None:
    """The proxy's share is one number for all users."""
    plain = load_stage("dev", {"pooler": "rds-proxy"})
    assert server(configure(TOKENS, pooler="rds-proxy")).total == server(plain).total


def test_a_stage_whose_second_name_does_not_fit_names_its_setting() -> None:
    """The remedy is a value with which everything fits."""
    config = configure({"max_db_connections": 6}, database={"max_connections": 190})
    with pytest.raises(BudgetError, match=r"set sql\.max_db_connections to (\d+)") as refused:
        budget_of(config).check()
    found = re.search(r"set sql\.max_db_connections to (\d+)", str(refused.value))
    assert found
    value = int(found[1])
    least = {"max_connections": 190}
    budget_of(configure({"max_db_connections": value}, database=least)).check()
    with pytest.raises(BudgetError):
        budget_of(configure({"max_db_connections": value + 1}, database=least)).check()


def test_postgresql_limits_each_user_of_it_to_its_part() -> None:
    """And does not change the application's limit."""
    config = configure({"max_db_connections": 8, "roles": ["reader", "writer"]})
    assert config.sql_pool_size == 2
    assert sql_login_limit(config) == most_tasks(config) * 2
    assert login_limit(config) == login_limit(load_stage("dev"))
    assert sql_login_limit(configure({}, pooler="rds-proxy")) == -1
    assert sql_login_limit(load_stage("dev", COMBINATIONS["external-with-sql"])) == -1
