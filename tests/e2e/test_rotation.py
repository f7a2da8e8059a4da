"""Rotations of the application's password by the deployed function, under load.

The rotation of a single user is in test_deployment.py, which deploys it.
"""

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.api_load import load
from tests.support.rotation import limit_of, rotate


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
