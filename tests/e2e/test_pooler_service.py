"""The pooler as ECS runs it: tasks that come and go, while requests go on."""

import json
import os
import signal
import threading
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import psutil
import psycopg
import pytest

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.cloud import CloudError, LocalCloud
from lambda_pg_cdk.local.faults import catalogue as faults
from lambda_pg_cdk.local.http.caller import call

SECONDS = 60.0
CLIENTS = 4
REST = 0.02
"""Seconds between two requests of a client: a load, and no storm."""


class Readers:
    """Clients that read through the API, one request after the other, until they are stopped."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Create what is read."""
        self._url, self._token = cloud.url, cloud.token(str(uuid.uuid4()))
        user = call(self._url, "POST", "/users", self._token, {"name": "Ada"})
        self._path = user.headers["location"]
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(CLIENTS)]

    def _read(self) -> None:
        while not self._stop.is_set():
            self._read_once()
            self._stop.wait(REST)

    def _read_once(self) -> None:
        answer = call(self._url, "GET", self._path, self._token)
        self.statuses[answer.status] += 1
        if answer.status != 200:
            self.failures.append(answer.body)

    def burst(self, count: int) -> bool:
        """Read so many times at once, so that idle environments work too and reconnect."""
        threads = [threading.Thread(target=self._read_once) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return True

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Wait until many more requests have been served."""
        wanted = self.statuses[200] + 100
        until(lambda: self.statuses[200] >= wanted or bool(self.failures), "requests to be served")


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    processes.wait_until(condition, SECONDS, what)


def tasks(cloud: LocalCloud) -> list[dict[str, Any]]:
    """Return the tasks."""
    return list(cloud.status()["pooler"]["tasks"])


def addresses(cloud: LocalCloud) -> set[str]:
    """Return the addresses of tasks that take flows."""
    return {task["address"] for task in tasks(cloud) if task["state"] == "RUNNING"}


@pytest.fixture(scope="module")
def pair(cloud: LocalCloud) -> Iterator[LocalCloud]:
    """A cloud with two tasks; each test leaves two."""
    before = cloud.status()["pooler"]["desired"]
    cloud.scale_pooler(2)
    yield cloud
    cloud.scale_pooler(before)


def test_a_task_that_hangs_is_replaced(pair: LocalCloud) -> None:
    """Its supervisor ends it, and the service starts another one; then nothing fails."""
    before = addresses(pair)
    with faults.stop_one_pooler_task(pair):
        until(lambda: len(addresses(pair) - before) == 1, "another task")
    assert len(addresses(pair)) == 2
    with Readers(pair) as readers:
        readers.go_on()
    assert not readers.failures


def update(cloud: LocalCloud, **changes: Any) -> None:
    """Change the service by the ECS API and wait until the change is done."""
    arn = cloud.status()["pooler"]["service"]
    cloud.client("ecs").update_service(cluster=arn.split("/")[-2], service=arn, **changes)
    cloud.reconcile()


def served_by(cloud: LocalCloud) -> dict[str, int]:
    """Return how many client connections each task's own PgBouncer has."""
    counts = {}
    for task in tasks(cloud):
        with psycopg.connect(task["admin_dsn"], autocommit=True) as console:
            rows = console.execute("SHOW CLIENTS").fetchall()
        counts[task["address"]] = sum(row[2] == "app" for row in rows)
    return counts


def test_a_replacement_under_load_fails_no_request(pair: LocalCloud) -> None:
    """New tasks take over, the old ones drain, and every read is answered."""
    before = addresses(pair)
    with Readers(pair) as readers:
        pair.replace_pooler_tasks()
        readers.go_on()
        after = addresses(pair)
    assert not readers.failures
    assert set(readers.statuses) == {200}
    assert (len(before), len(after), before & after) == (2, 2, set())
    assert [task["state"] for task in tasks(pair)] == ["RUNNING", "RUNNING"]


def test_scaling_up_and_down_under_load_fails_no_request(pair: LocalCloud) -> None:
    """Each task serves, and those that are too many leave in order."""
    with Readers(pair) as readers:
        pair.scale_pooler(3)
        assert len(tasks(pair)) == 3
        pair.environments("users", 8)
        until(lambda: readers.burst(20) and all(served_by(pair).values()), "clients everywhere")
        readers.go_on()
        pair.scale_pooler(2)
        readers.go_on()
    assert not readers.failures
    assert set(readers.statuses) == {200}
    assert len(tasks(pair)) == 2


def test_another_task_definition_replaces_the_tasks_under_load(pair: LocalCloud) -> None:
    """As a deployment that changes a setting of the pooler does; its environment arrives."""
    before = addresses(pair)
    with changed_setting(pair, "QUERY_WAIT_TIMEOUT", "3"), Readers(pair) as readers:
        readers.go_on()
        after = addresses(pair)
        for task in tasks(pair):
            with psycopg.connect(task["admin_dsn"], autocommit=True) as console:
                found = {row[0]: row[1] for row in console.execute("SHOW CONFIG").fetchall()}
            assert found["query_wait_timeout"] == "3"
    assert not readers.failures
    assert not before & after


@contextmanager
def changed_setting(cloud: LocalCloud, name: str, value: str) -> Iterator[None]:
    """Run the service with another value of an environment variable."""
    ecs = cloud.client("ecs")
    arn = cloud.status()["pooler"]["service"]
    (service,) = ecs.describe_services(cluster=arn.split("/")[-2], services=[arn])["services"]
    old = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
    (container,) = old["containerDefinitions"]
    kept = {key: container[key] for key in ("name", "image", "stopTimeout")}
    variables = {each["name"]: each["value"] for each in container["environment"]} | {name: value}
    environment = [{"name": key, "value": each} for key, each in variables.items()]
    registered = ecs.register_task_definition(
        family=old["family"], containerDefinitions=[{**kept, "environment": environment}]
    )["taskDefinition"]
    try:
        update(cloud, taskDefinition=registered["taskDefinitionArn"])
        yield
    finally:
        update(cloud, taskDefinition=old["taskDefinitionArn"])


def test_tasks_that_cannot_start_leave_the_running_ones_alone(pair: LocalCloud) -> None:
    """The deployment fails with the message of the supervisor; requests are served all the time."""
    before = addresses(pair)
    with Readers(pair) as readers:
        with (
            pytest.raises(CloudError, match="POOL_MODE is 'nonsense'"),
            changed_setting(pair, "POOL_MODE", "nonsense"),
        ):
            pytest.fail("it has started")
        readers.go_on()
    assert not readers.failures
    assert pair.status()["pooler"]["failure"] is None
    assert len(addresses(pair)) == len(before) == 2


def test_a_task_that_is_killed_is_replaced_and_no_read_fails(pair: LocalCloud) -> None:
    """Its connections are gone at once; reads are retried, and the other task takes them."""
    victim = tasks(pair)[0]
    with Readers(pair) as readers:
        os.kill(victim["pid"], signal.SIGKILL)
        until(
            lambda: victim["address"] not in addresses(pair) and len(addresses(pair)) == 2,
            "another task",
        )
        readers.go_on()
    assert not readers.failures
    assert not psutil.pid_exists(victim["pid"])


def test_a_change_by_the_api_alone_is_followed(pair: LocalCloud) -> None:
    """The cloud notices it within a second, like a deployment from another terminal."""
    arn = pair.status()["pooler"]["service"]
    ecs, cluster = pair.client("ecs"), arn.split("/")[-2]
    before = addresses(pair)
    ecs.update_service(cluster=cluster, service=arn, desiredCount=3)
    until(lambda: len(addresses(pair)) == 3, "a third task")
    ecs.update_service(cluster=cluster, service=arn, desiredCount=2)
    until(lambda: addresses(pair) == before, "two tasks")
    ecs.update_service(cluster=cluster, service=arn, forceNewDeployment=True)
    until(lambda: len(addresses(pair)) == 2 and not addresses(pair) & before, "new tasks")
    pair.reconcile()
    assert pair.status()["pooler"]["stable"]


def test_stop_start_and_restart_are_for_all_tasks(pair: LocalCloud) -> None:
    """Stopped means that nothing listens; started again there are as many as before."""
    before, budget = tasks(pair), pair.status()["pooler"]["max_server_connections"]
    pair.pooler("stop")
    try:
        pooler = pair.status()["pooler"]
        assert (pooler["tasks"], pooler["admin_dsn"]) == ([], None)
        assert pooler["max_server_connections"] == budget
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(host=pooler["host"], port=pooler["port"], connect_timeout=5)
        assert not any(psutil.pid_exists(task["pid"]) for task in before)
    finally:
        pair.pooler("start")
    first = addresses(pair)
    assert len(first) == 2
    pair.pooler("restart")
    assert len(addresses(pair)) == 2
    assert not addresses(pair) & first


def test_a_task_learns_its_address_from_the_metadata_endpoint(pair: LocalCloud) -> None:
    """As on Fargate: the variable leads to a document with the address."""
    task = tasks(pair)[1]
    url = psutil.Process(task["pid"]).environ()["ECS_CONTAINER_METADATA_URI_V4"]
    container = fetch(url)
    assert container["Networks"][0]["IPv4Addresses"] == [task["address"]]
    told = fetch(f"{url}/task")
    assert told["TaskARN"].endswith(task["id"])
    assert told["Containers"][0]["Networks"] == container["Networks"]


def fetch(url: str) -> dict[str, Any]:
    """Read a document of the metadata endpoint."""
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - http only
        return dict(json.load(response))


def test_cloud_map_knows_the_tasks_as_long_as_they_run(pair: LocalCloud) -> None:
    """Each task under its address, where the tasks themselves look each other up."""
    variables = psutil.Process(tasks(pair)[0]["pid"]).environ()
    discovery = pair.client("servicediscovery")

    def discovered() -> set[str]:
        found = discovery.discover_instances(
            NamespaceName=variables["PEERS_NAMESPACE"], ServiceName=variables["PEERS_SERVICE"]
        )
        return {each["Attributes"]["AWS_INSTANCE_IPV4"] for each in found["Instances"]}

    assert discovered() == addresses(pair)
    pair.pooler("stop")
    assert discovered() == set()
    pair.pooler("start")
    assert len(discovered()) == 2
    assert discovered() == addresses(pair)
    os.kill(tasks(pair)[0]["pid"], signal.SIGKILL)
    until(lambda: len(addresses(pair)) == 2 and discovered() == addresses(pair), "another task")
