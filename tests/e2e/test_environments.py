"""Execution environments of the deployed functions."""

import uuid

import psutil
import pytest

from lambda_pg_cdk.local.cloud import CloudError, LocalCloud
from lambda_pg_cdk.local.deployment.deployed import Start
from lambda_pg_cdk.local.http.caller import call
from tests.support.waiting import wait_until

SECONDS = 20.0
SUBJECT = str(uuid.uuid4())


def users_answer(cloud: LocalCloud) -> int:
    """Ask for the users and return the status."""
    return call(cloud.url, "GET", "/users", cloud.token(SUBJECT)).status


def test_cold_and_restored_environments_serve(cloud: LocalCloud) -> None:
    """Each way to start one ends with a function that reaches the database."""
    starts: tuple[Start, ...] = ("cold", "restored")
    for start in starts:
        cloud.end_environments("users")
        pids = cloud.environments("users", 2, start)
        assert len(pids) == 2
        assert users_answer(cloud) == 200
        assert cloud.status()["functions"]["users"] == 2


def test_cold_starts_for_requests_are_asked_for_by_name(cloud: LocalCloud) -> None:
    """Until the environments are ended; otherwise a request starts a restored one."""
    kinds = []
    for cold in (False, True, False):
        cloud.end_environments("users")
        if cold:
            cloud.start_on_demand("users", "cold")
        assert users_answer(cloud) == 200
        (pid,) = cloud.processes("users")
        kinds.append(psutil.Process(pid).environ()["AWS_LAMBDA_INITIALIZATION_TYPE"])
    assert kinds == ["snap-start", "on-demand", "snap-start"]


def test_opening_again_only_fills_up(cloud: LocalCloud) -> None:
    """`count` is how many wait for work, not how many more."""
    cloud.end_environments("health")
    first = cloud.environments("health", 3)
    assert len(first) == 3
    assert len(cloud.environments("health", 5)) == 2
    cloud.end_environments("health")
    assert cloud.status()["functions"]["health"] == 0
    assert not any(map(psutil.pid_exists, first))


def test_an_unknown_function_is_named_with_the_known_ones(cloud: LocalCloud) -> None:
    """A typing error costs no search."""
    with pytest.raises(CloudError, match=r"'usres'.*users"):
        cloud.environments("usres", 1)


def test_a_thawed_environment_survives_that_the_server_closed_its_connection(
    cloud: LocalCloud,
) -> None:
    """The frozen process cannot notice; its next request is served all the same."""
    cloud.end_environments("users")
    (pid,) = cloud.environments("users", 1)
    assert users_answer(cloud) == 200
    frozen = psutil.Process(pid)  # which stops when it runs next
    wait_until(lambda: frozen.status() == psutil.STATUS_STOPPED, SECONDS, "the freeze")
    cloud.pooler("restart")
    assert users_answer(cloud) == 200
    assert cloud.status()["functions"]["users"] == 1


def test_a_function_can_be_invoked_directly(cloud: LocalCloud) -> None:
    """As `aws lambda invoke` does: the payload, and whether the function failed."""
    assert cloud.invoke("migrate", {})["function_error"] is None
    failed = cloud.invoke("users", {"nothing": "of an HTTP event"})
    assert failed["function_error"] == "Unhandled"
