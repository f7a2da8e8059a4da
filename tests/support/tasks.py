"""The pooler as a service of several tasks: ECS, Cloud Map and a load balancer on loopback.

Each task listens on its own address (127.0.0.2 …) and on the same port, as on Fargate.
"""

import json
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

import boto3
import psycopg
from botocore.config import Config

from lambda_pg_cdk.local.faults.proxy import FaultProxy
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.pgbouncer.peers import peer_of
from tests.support.servers import REGION, PoolerFixture
from tests.support.waiting import wait_until

NAMESPACE = "app.internal"


class Metadata(ThreadingHTTPServer):
    """What the agent of ECS tells each task of itself; the path ends with the task's address."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on a free port; entering it answers."""
        super().__init__(("127.0.0.1", 0), _MetadataHandler)

    def url(self, address: str) -> str:
        """The endpoint of the task at an address."""
        return f"http://127.0.0.1:{self.server_port}/v4/{address}"

    def __enter__(self) -> Self:
        """Answer in a thread."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()


class _MetadataHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        network = {
            "NetworkMode": "awsvpc",
            "IPv4Addresses": [urlsplit(self.path).path.rpartition("/")[2]],
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"DockerName": "pgbouncer", "Networks": [network]}).encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class Task(Pooler):
    """One task."""

    def __init__(self, pooler: PoolerFixture, address: str, **changes: str) -> None:
        """Take a pooler's environment, with changes, for a task at an address."""
        super().__init__(
            pooler.binary, pooler.folder.with_name(address), pooler.environment | changes
        )
        self.address = address
        self._environment["LISTEN_ADDR"] = address

    @property
    def peers(self) -> set[int]:
        """The numbers that this task's PgBouncer knows."""
        with psycopg.connect(self.admin_dsn, autocommit=True) as console:
            return {row[0] for row in console.execute("SHOW PEERS").fetchall()}

    def knows(self, numbers: set[int]) -> bool:
        """Tell whether these are the numbers of all tasks."""
        return self.peers == numbers


class Service:
    """Tasks behind a balancer that gives each new connection to the task that the test names."""

    def __init__(self, pooler: PoolerFixture) -> None:
        """Make the service known to Cloud Map; entering it opens the balancer."""
        self._pooler = pooler
        self._name = f"pooler-{pooler.port}"
        self._client: Any = boto3.client(
            "servicediscovery",
            endpoint_url=pooler.service.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(inject_host_prefix=False),
        )
        self._id = self._create()
        self._metadata = Metadata()
        self._balancer = FaultProxy("127.0.0.1", pooler.port)
        self._opened = ExitStack()
        self.tasks: list[Task] = []

    def __enter__(self) -> Self:
        """Open what stands around the tasks."""
        self._opened.enter_context(self._metadata)
        self._opened.enter_context(self._balancer)
        return self

    def __exit__(self, *_: object) -> None:
        """End the tasks and what stands around them."""
        for task in self.tasks:
            task.kill()
        self._opened.close()

    def _create(self) -> str:
        """Create the service, and its namespace where another test has not done so."""
        spaces = self._client.list_namespaces()["Namespaces"]
        if not any(space["Name"] == NAMESPACE for space in spaces):
            self._client.create_http_namespace(Name=NAMESPACE)
            spaces = self._client.list_namespaces()["Namespaces"]
        (space,) = [space["Id"] for space in spaces if space["Name"] == NAMESPACE]
        created = self._client.create_service(Name=self._name, NamespaceId=space)
        return str(created["Service"]["Id"])

    def launch(self, address: str, **changes: str) -> Task:
        """Start a task that looks for peers, without waiting for it and unknown to Cloud Map."""
        names = {
            "PEERS_NAMESPACE": NAMESPACE,
            "PEERS_SERVICE": self._name,
            "PEERS_INTERVAL": "0.2",
            "ECS_CONTAINER_METADATA_URI_V4": self._metadata.url(address),
        }
        task = Task(self._pooler, address, **(names | changes))
        self.tasks.append(task)
        task.launch()
        return task

    def start(self, *addresses: str, **changes: str) -> list[Task]:
        """Start tasks, tell Cloud Map, and wait until each knows all."""
        tasks = [self.launch(address, **changes) for address in addresses]
        for task in tasks:
            self.register(task.address)
        self.await_peers(self.tasks)
        return tasks

    def start_strangers(self, *addresses: str) -> list[Task]:
        """Start tasks that do not look for each other."""
        tasks = [self.launch(each, PEERS_NAMESPACE="", PEERS_SERVICE="") for each in addresses]
        for task in tasks:
            wait_until(task.answers, 30, f"PgBouncer at {task.address}")
        return tasks

    def await_peers(self, tasks: Iterable[Task]) -> None:
        """Wait until some tasks know each other, and nobody else."""
        known = {peer_of(task.address).id for task in tasks}
        for task in tasks:
            wait_until(task.answers, 30, f"PgBouncer at {task.address}")
            wait_until(partial(task.knows, known), 10, f"the peers of {task.address}")

    def register(self, address: str) -> None:
        """Tell Cloud Map of a task, as ECS does."""
        self._client.register_instance(
            ServiceId=self._id, InstanceId=address, Attributes={"AWS_INSTANCE_IPV4": address}
        )

    def deregister(self, address: str) -> None:
        """Take a task out of Cloud Map, as ECS does before it stops it."""
        self._client.deregister_instance(ServiceId=self._id, InstanceId=address)

    def balance(self, task: Task) -> None:
        """Let new connections go to a task; open ones stay where they are."""
        self._balancer.server = (task.address, self._pooler.port)

    def connect(self, task: Task) -> psycopg.Connection[Any]:
        """Connect to a task through the balancer, whose address is the certificate's."""
        self.balance(task)
        dsn = psycopg.conninfo.make_conninfo(self._pooler.dsn(), port=str(self._balancer.port))
        return psycopg.connect(dsn, autocommit=True, prepare_threshold=None, connect_timeout=10)
