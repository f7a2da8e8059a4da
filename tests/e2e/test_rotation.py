"""Rotations of the application's and of `/sql`'s passwords by the deployed function, under load.

The rotation of a single user is in test_deployment.py, which deploys it.
"""

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.api_load import load
from tests.support.rotation import limit_of, rotate, rotate_secret
from tests.support.sql_load import KINDS, secrets_of_roles, sql_load


def test_two_users_take_turns_and_no_request_fails(cloud: LocalCloud) -> None:
    """After two rotations both users log in, and both have the database's limits."""
    with load(cloud) as seen:
        seen.wait_for_more()
        first = rotate(cloud)
        seen.wait_for_more()
        second = rotate(cloud)
        seen.wait_for_more()
    assert seen.failed == []
    assert {first["username"], second["username"]} == {"lambda_pg_user", "lambda_pg_user_clone"}
    for login in (first, second):
        assert limit_of(cloud, login) == "10s"


def test_two_users_of_each_role_take_turns_and_no_request_of_sql_fails(cloud: LocalCloud) -> None:
    """After two rotations both users of a role log in, and both have its limits."""
    with sql_load(cloud) as seen:
        seen.wait_for_more()
        logins = []
        for arn in 2 * list(secrets_of_roles(cloud).values()):
            logins.append(rotate_secret(cloud, arn))
            seen.wait_for_more()
    assert seen.failed == []
    assert set(seen.answered) == set(KINDS)
    for one, two in zip(logins[:3], logins[3:], strict=True):
        first, second = sorted((one["username"], two["username"]))
        assert second == f"{first}_clone"
    assert {limit_of(cloud, login) for login in logins} == {"10s"}
