"""What a load tool meets for which nothing was opened: each request gets an environment."""

import statistics
import uuid

import psutil
import pytest

from benchmarks.storm.second_driver import locust
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.environments.account import PRIVATE_BYTES, Account
from lambda_pg_cdk.local.environments.launcher import LaunchContext
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.http.load import fire

pytestmark = pytest.mark.alone  # it measures how fast this machine answers


API_SECONDS = 29.0
TRIED = 40
TELLING = 250
"""More than cold starts have memory for on a machine with 32 GB."""


@pytest.fixture
def token(cloud: LocalCloud) -> str:
    """A token of some user."""
    return cloud.token(str(uuid.uuid4()))


def user_url(cloud: LocalCloud, token: str) -> str:
    """Create a user; return where it is read, with no environment left."""
    made = call(cloud.url, "POST", "/users", token, {"name": "Ada"})
    cloud.end_environments("users")
    return cloud.url + made.headers["location"]


def as_many_as_can_be_answered(url: str, token: str, most: int) -> int:
    """Find how many first requests this machine answers in half of the API's time, at most `most`.

    More requests would measure the rest of the machine. Fewer than `TELLING` would prove nothing.
    """
    fire(url, token, 1)  # makes the template
    outcomes, seconds = fire(url, token, TRIED)
    assert {outcome.status for outcome in outcomes} == {200}
    count = min(most, int(TRIED * API_SECONDS / 2 / seconds))
    if count < TELLING:
        pytest.skip(f"not measurable here: {TRIED} first requests took {seconds:.1f} s")
    return count


def test_requests_at_the_same_moment_are_served_twice(cloud: LocalCloud, token: str) -> None:
    """From Locust, which is not ours: the first time each logs in, then all are warm.

    `make storm` sends 1,000.
    """
    url = user_url(cloud, token)
    count = as_many_as_can_be_answered(url, token, 500)
    cloud.end_environments("users")
    for _ in range(2):
        summary = locust(url, token, count)
        assert (summary.served, summary.failures) == (count, {})
    cloud.end_environments("users")


def test_as_many_requests_as_lambda_allows_are_served_twice(cloud: LocalCloud, token: str) -> None:
    """A thousand, or what the memory is for, of a function that needs no database."""
    url = f"{cloud.url}/health"
    bound = Account(LaunchContext(cloud.folder, cloud.folder, cloud.folder, {}), 60).limit
    cloud.end_environments("health")
    count = as_many_as_can_be_answered(url, token, bound)
    cloud.end_environments("health")
    for _ in range(2):
        summary = locust(url, token, count)
        assert (summary.served, summary.failures) == (count, {})
    cloud.end_environments("health")


def test_a_restored_environment_needs_the_memory_that_is_counted_for_it(
    cloud: LocalCloud, token: str
) -> None:
    """After its first request, about: that bounds how many requests can start."""
    url = user_url(cloud, token)
    pids = cloud.environments("users", 10)
    outcomes, _ = fire(url, token, len(pids))
    assert {outcome.status for outcome in outcomes} == {200}
    private = statistics.mean(psutil.Process(pid).memory_full_info().uss for pid in pids)
    assert 0.5 < private / PRIVATE_BYTES["restored"] < 1.2
