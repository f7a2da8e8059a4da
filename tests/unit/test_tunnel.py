"""The commands that lead to a deployed database."""

import shlex

import pytest

from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.tools.tunnel import NoTunnelError, commands

PUBLISHED = {
    "/lambda-pg/dev/network/bastion": "i-0123456789abcdef0",
    "/lambda-pg/dev/database/host": "db.abc.eu-west-1.rds.amazonaws.com",
    "/lambda-pg/dev/database/port": "5432",
    "/lambda-pg/dev/database/owner-secret-arn": "arn:aws:secretsmanager:x:1:secret:rds!db-y",
}


def test_the_commands_name_what_is_deployed() -> None:
    """Instance, host and ports of the stage; certificate verified for the host itself."""
    config = load_stage("dev", {"network": {"bastion": True}})
    words = shlex.split(commands(config, PUBLISHED.get), comments=True)
    assert words[words.index("--target") + 1] == "i-0123456789abcdef0"
    assert words[words.index("--region") + 1] == "eu-west-1"
    forwarded = words[words.index("--parameters") + 1]
    host = "db.abc.eu-west-1.rds.amazonaws.com"
    assert forwarded == f"host={host},portNumber=5432,localPortNumber=15432"
    assert "host=db.abc.eu-west-1.rds.amazonaws.com hostaddr=127.0.0.1 port=15432" in words[-1]
    assert "sslmode=verify-full" in words[-1]


def test_a_stage_without_a_bastion_says_how_to_get_one() -> None:
    """No command is better than one that cannot work."""
    with pytest.raises(
        NoTunnelError, match=r"network\.bastion is false; must be true.*make deploy STAGE=dev"
    ):
        commands(load_stage("dev"), PUBLISHED.get)


def test_a_stage_that_is_not_deployed_is_told_so() -> None:
    """Each parameter that is missing is named."""
    config = load_stage("dev", {"network": {"bastion": True}})
    with pytest.raises(NoTunnelError, match=r"/lambda-pg/dev/network/bastion, .*deploy the stage"):
        commands(config, lambda _name: None)
