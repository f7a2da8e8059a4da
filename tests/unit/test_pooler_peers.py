"""Peering without a process: numbers, what Cloud Map answers, and what is made of it."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from ipaddress import AddressValueError
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, EndpointConnectionError
from urllib3 import HTTPResponse

from lambda_pg_cdk.pgbouncer.configuration import Console, Files, Group, Peer, render_ini
from lambda_pg_cdk.pgbouncer.peers import CloudMap, Peering, choose, own_address, peer_of
from lambda_pg_cdk.pgbouncer.settings import PeersSettings, Settings, SettingsError

OWN = Peer(258, "10.0.1.2")
Set = Callable[[list[str] | Exception], Group]


class Metadata(HTTPServer):
    """The metadata endpoint of an ECS task, with an answer that can be changed."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.status, self.body = 200, task_at("10.0.1.2")
        super().__init__(("127.0.0.1", 0), MetadataHandler)

    @property
    def url(self) -> str:
        """What ECS would put into the container's environment."""
        return f"http://127.0.0.1:{self.server_port}/v4/container"


class MetadataHandler(BaseHTTPRequestHandler):
    """Answers every GET alike."""

    def do_GET(self) -> None:
        """Answer with what the server holds."""
        assert isinstance(self.server, Metadata)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def task_at(*addresses: str) -> str:
    """Write what the endpoint says of a task's addresses."""
    return json.dumps({"Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": addresses}]})


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    """An endpoint that answers with 10.0.1.2."""
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def reports() -> list[str]:
    """What a peering has reported."""
    return []


@pytest.fixture
def peering(metadata: Metadata, reports: list[str]) -> Peering:
    """A peering that finds what the test sets."""
    settings = PeersSettings("app.internal", "pooler", 3600, metadata.url)
    return Peering(settings, discover=list, report=reports.append)


@pytest.fixture
def found(peering: Peering) -> Set:
    """Let a look bring something; return the set that holds then."""

    def judge(outcome: list[str] | Exception) -> Group:
        group = peering.judge(outcome)
        assert group is not None
        return group

    peering.learn_own()
    return judge


# Numbers


@pytest.mark.parametrize(
    ("address", "number"),
    [("10.0.0.1", 1), ("10.0.1.2", 258), ("10.9.63.255", 16383), ("10.0.64.5", 5)],
)
def test_a_tasks_number_is_the_low_14_bits_of_its_address(address: str, number: int) -> None:
    """PgBouncer's range is 1 to 16383."""
    assert peer_of(address) == Peer(number, address)


@pytest.mark.parametrize("text", ["", "pooler", "10.0.0.1 port=1", "10.0.0.1\n", "fd00::1", "1"])
def test_what_is_no_ipv4_address_is_no_peer(text: str) -> None:
    """What Cloud Map says ends up in PgBouncer's file: nothing else may get there."""
    with pytest.raises(AddressValueError):
        peer_of(text)


# This task


def test_the_own_address_comes_from_the_tasks_metadata(metadata: Metadata) -> None:
    """The first address of the first network."""
    metadata.body = task_at("10.0.7.8", "10.0.7.9")
    assert own_address(metadata.url) == "10.0.7.8"


def test_the_metadata_is_not_asked_for_through_a_proxy(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy for the way out knows nothing of the task's own link."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert own_address(metadata.url) == "10.0.1.2"


def test_the_own_address_makes_a_group_of_one(peering: Peering) -> None:
    """Until others are found, this task is alone and has its number already."""
    assert peering.group is None
    peering.learn_own()
    assert peering.group == Group(OWN, (OWN,))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, ""),
        (200, "not json"),
        (200, "{}"),
        (200, '{"Networks": null}'),
        (200, '{"Networks": [{"IPv4Addresses": []}]}'),
        (200, task_at("fd00::1")),
    ],
)
def test_metadata_without_an_address_is_reported_once_and_asked_for_again(
    peering: Peering, metadata: Metadata, reports: list[str], status: int, body: str
) -> None:
    """The agent may not be ready yet; nothing is known until it is."""
    metadata.status, metadata.body = status, body
    peering.learn_own()
    peering.learn_own()
    assert peering.group is None
    assert peering.take() is None
    (report,) = reports
    assert metadata.url in report
    metadata.status, metadata.body = 200, task_at("10.0.1.2")
    peering.learn_own()
    assert peering.group is not None


def test_an_own_address_without_a_number_says_what_to_do(
    peering: Peering, metadata: Metadata
) -> None:
    """PgBouncer takes 0 for "no peering", without a word."""
    metadata.body = task_at("10.0.64.0")
    with pytest.raises(SettingsError, match=r"10\.0\.64\.0.*peer_id.*Replace the task"):
        peering.learn_own()


# The others


def test_tasks_come_in_order_with_this_one_among_them() -> None:
    """The same tasks give the same lines in each of them: another order changes nothing."""
    peers, problems = choose(OWN, ["10.0.2.9", "10.0.0.7", "10.0.2.9"])
    assert peers == (Peer(7, "10.0.0.7"), OWN, Peer(521, "10.0.2.9"))
    assert problems == []


def test_an_address_with_this_tasks_number_is_named_and_left_out() -> None:
    """Its cancel requests would come here for ever."""
    peers, (problem,) = choose(OWN, ["10.0.65.2", "10.0.1.2"])
    assert peers == (OWN,)
    assert "10.0.1.2 and 10.0.65.2 have the same peer_id, 258" in problem


def test_of_two_others_with_one_number_the_same_one_stays_each_time() -> None:
    """A coin tossed at each look would reload PgBouncer at each look."""
    there, back = ["10.0.0.9", "10.0.64.9"], ["10.0.64.9", "10.0.0.9"]
    assert choose(OWN, there) == choose(OWN, back)
    assert choose(OWN, there)[0] == (Peer(9, "10.0.0.9"), OWN)


@pytest.mark.parametrize("address", ["", "10.0.0.1\n[pgbouncer]", "10.0.64.0"])
def test_an_instance_that_can_be_no_peer_is_named_and_the_others_stay(address: str) -> None:
    """One bad entry costs nobody else's cancel requests."""
    peers, (problem,) = choose(OWN, [address, "10.0.0.9"])
    assert peers == (Peer(9, "10.0.0.9"), OWN)
    assert repr(address) in problem or address in problem


def test_a_failing_look_keeps_the_last_good_set_and_is_told_once(
    found: Set, reports: list[str]
) -> None:
    """One line for each kind of failure, until a look succeeds."""
    down = EndpointConnectionError(endpoint_url="https://nowhere")
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DiscoverInstances")
    known = found(["10.0.0.9"])
    for outcome in (down, denied, down, denied, ValueError("?")):
        assert found(outcome) == known
    assert len(reports) == 3
    assert all("peers of pooler in app.internal: " in one for one in reports)
    assert all(one.endswith("; the last valid peers stay in use") for one in reports)
    found(["10.0.0.9"])
    found(down)
    assert len(reports) == 4


def test_two_tasks_with_one_number_are_told_once_while_they_last(
    found: Set, reports: list[str]
) -> None:
    """A look every few seconds must not fill the log."""
    for _ in range(3):
        found(["10.0.65.2"])
    assert len(reports) == 1
    found([])
    found(["10.0.65.2"])
    assert len(reports) == 2


def test_a_look_that_breaks_is_followed_by_another(metadata: Metadata) -> None:
    """Nothing ends the thread, not even what nobody has thought of."""
    looks = itertools.count(1)
    woken, reports = threading.Semaphore(0), list[str]()

    def discover() -> list[str]:
        look = next(looks)
        if look == 1:
            raise RuntimeError("?")
        if look > 2:
            threading.Event().wait()  # the thread has no other end than the process's
        return ["10.0.0.9"]

    settings = PeersSettings("app.internal", "pooler", 0.05, metadata.url)
    peering = Peering(settings, discover=discover, report=reports.append)
    peering.learn_own()
    peering.watch(woken.release)
    for _ in range(2):
        assert woken.acquire(timeout=10)
    group = peering.take()
    assert group is not None
    assert Peer(9, "10.0.0.9") in group.peers


# Cloud Map


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("", "data-servicediscovery.eu-west-1.amazonaws.com"),
        ("http://127.0.0.1:4566", "127.0.0.1"),
    ],
)
def test_cloud_map_is_asked_at_its_own_host_or_where_a_setting_says(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, host: str
) -> None:
    """The SDK would make data-127.0.0.1 of an endpoint that is named."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    cloud_map = CloudMap(PeersSettings("app", "pooler", 5, "http://x"), "eu-west-1")
    cloud_map._client = client = cloud_map._make_client()
    sent: list[Any] = []

    def answer(request: Any, **_: object) -> Any:
        sent.append(request)
        raise EndpointConnectionError(endpoint_url=request.url)

    client.meta.events.register("before-send", answer)
    with pytest.raises(EndpointConnectionError):
        cloud_map()
    assert sent[0].url.split("/")[2].split(":")[0] == host
    asked = json.loads(sent[0].body)
    assert asked["HealthStatus"] == "ALL"


@pytest.mark.parametrize(
    "instance", [{"Attributes": None}, {"Attributes": {"AWS_INSTANCE_IPV4": None}}, {}]
)
def test_an_instance_without_an_address_costs_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, found: Set, reports: list[str], instance: dict[str, Any]
) -> None:
    """A null is as good as nothing: the others are peers, and the supervisor goes on."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    cloud_map = CloudMap(PeersSettings("app", "pooler", 5, "http://x"), "eu-west-1")
    cloud_map._client = client = cloud_map._make_client()
    good = {"Attributes": {"AWS_INSTANCE_IPV4": "10.0.0.9"}}
    body = json.dumps({"Instances": [instance, good]}).encode()

    def answer(request: Any, **_: object) -> AWSResponse:
        return AWSResponse(request.url, 200, {}, HTTPResponse(BytesIO(body), preload_content=False))

    client.meta.events.register("before-send", answer)
    assert found(cloud_map()).peers == (Peer(9, "10.0.0.9"), OWN)
    (report,) = reports
    assert "''" in report


# The file


def test_the_file_names_every_task_and_this_ones_number(tmp_path: Path) -> None:
    """Without a group there is neither, and PgBouncer does not peer."""
    settings = Settings.from_env(
        {
            "LISTEN_PORT": "6500",
            "DATABASE_HOST": "db",
            "DATABASE_NAME": "app",
            "USER_SECRET_ARNS": "arn",
            "CERTIFICATE_SECRET_ARN": "arn",
            "SERVER_TLS_CA_FILE": __file__,
            "MAX_CLIENT_CONN": "10",
            "DEFAULT_POOL_SIZE": "1",
            "MAX_DB_CONNECTIONS": "1",
        }
    )
    group = Group(OWN, (Peer(7, "10.0.0.7"), OWN))
    arguments = settings, Files(tmp_path), Console("admin", "observer"), ()
    alone, together = render_ini(*arguments), render_ini(*arguments, group)
    assert "peer_id" not in alone
    assert "[peers]" not in alone
    assert "\npeer_id = 258\n" in together.partition("[pgbouncer]")[2].partition("[")[0]
    assert together.endswith(
        "\n[peers]\n"
        "7 = host='/run/pgbouncer/peers' port=6500 pool_size=100\n"
        "258 = host='/run/pgbouncer/peers' port=6500 pool_size=100\n"
    )
