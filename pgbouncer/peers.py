"""The other tasks of the service, so that a cancel request finds the one that it is meant for.

A cancel request uses a separate connection, which a load balancer may give to any task.
PgBouncer writes its `peer_id` into the keys that it hands out, and passes a request with another
one's number on to that peer (docs/decisions/0010).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from http.client import HTTPException
from ipaddress import AddressValueError, IPv4Address
from typing import Any
from urllib.request import ProxyHandler, build_opener

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from .configuration import Group, Peer
from .secret_store import CLIENT_CONFIG
from .settings import PeersSettings, SettingsError

# PgBouncer keeps the number in 14 bits of each key; 0 stands for "no peering".
PEER_ID_BITS = 14
METADATA_SECONDS = 2.0
# As many as one answer of Cloud Map holds. Without it there would be 100.
MOST_INSTANCES = 1000
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SERVICEDISCOVERY")

# What Cloud Map says of each instance: its address, or nothing.
Discover = Callable[[], "list[str]"]
Report = Callable[[str], None]


class Peering:
    """The tasks that were found last, and a thread that looks for them.

    The thread only fetches: what it brings is judged where `take` is called. A look that nobody
    answers therefore keeps nobody waiting.
    """

    def __init__(self, settings: PeersSettings, *, discover: Discover, report: Report) -> None:
        """Keep the names; nothing is looked up yet."""
        self._settings = settings
        self._discover = discover
        self._report = report
        self._group: Group | None = None
        self._found: list[str] | Exception = []
        self._reported: set[str] = set()

    @property
    def group(self) -> Group | None:
        """The last good set; None while this task's own address is not known."""
        return self._group

    def learn_own(self) -> None:
        """Ask for this task's address; raise SettingsError for one that has no number."""
        try:
            own = peer_of(own_address(self._settings.metadata_url))
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            url = self._settings.metadata_url
            self._report_once(kind_of(error), f"no address of this task from {url}: {error!r}")
            return
        if own.id == 0:
            raise SettingsError(
                f"this task cannot use its address {own.address}: the last {PEER_ID_BITS} bits are "
                "the task's peer_id, which must not be 0. Replace the task: the next one has "
                "another address."
            )
        self._reported.clear()
        self._group = Group(own, (own,))

    def watch(self, wake: Callable[[], None]) -> None:
        """Look now and again, in a thread; `wake` is called there after each look."""
        threading.Thread(target=self._look_forever, args=(wake,), daemon=True).start()

    def _look_forever(self, wake: Callable[[], None]) -> None:
        while True:
            try:
                self._found = self._discover()
            except Exception as error:  # noqa: BLE001 - nothing may end the thread
                self._found = error
            wake()
            time.sleep(self._settings.interval)

    def take(self) -> Group | None:
        """Check the result of the last look; return the current set."""
        return self.judge(self._found)

    def judge(self, found: list[str] | Exception) -> Group | None:
        """Make the set from the addresses of a look; keep the old set if the look failed."""
        group = self._group
        if group is None:
            return None
        if isinstance(found, Exception):
            self._report_once(
                kind_of(found), f"{self._where}: {found}; the last valid peers stay in use"
            )
            return group
        peers, problems = choose(group.own, found)
        for problem in problems:
            self._report_once(problem, f"{self._where}: {problem}")
        self._reported.intersection_update(problems)
        self._group = Group(group.own, peers)
        return self._group

    @property
    def _where(self) -> str:
        return f"peers of {self._settings.service} in {self._settings.namespace}"

    def _report_once(self, kind: str, text: str) -> None:
        """Report a problem once, until a look without it."""
        if kind not in self._reported:
            self._report(text)
        self._reported.add(kind)


def choose(own: Peer, addresses: Iterable[str]) -> tuple[tuple[Peer, ...], list[str]]:
    """Return the peers, one for each number, in order; and the problems that were found."""
    chosen = {own.id: own}
    problems: list[str] = []
    for address in sorted(set(addresses)):
        try:
            peer = peer_of(address)
        except AddressValueError:
            problems.append(
                f"an instance has the address {address!r}, which is not an IPv4 address"
            )
            continue
        other = chosen.get(peer.id, peer)
        if peer.id == 0:
            problems.append(f"{address} has the peer_id 0, which PgBouncer does not take")
        elif other != peer:
            problems.append(
                f"{other.address} and {address} have the same peer_id, {peer.id} (the low "
                f"{PEER_ID_BITS} bits): cancel requests for {address} are lost"
            )
        else:
            chosen[peer.id] = peer
    return tuple(sorted(chosen.values())), problems


def peer_of(address: str) -> Peer:
    """Number a task by the low bits of its address; raise AddressValueError for another text."""
    parsed = IPv4Address(address)
    return Peer(int(parsed) & ((1 << PEER_ID_BITS) - 1), str(parsed))


def kind_of(error: Exception) -> str:
    """Name the kind of an error, without details that differ each time."""
    if isinstance(error, ClientError):
        return str(error.response["Error"]["Code"])
    return type(error).__name__


def own_address(metadata_url: str) -> str:
    """Ask the agent of ECS for this container's private address."""
    opener = build_opener(ProxyHandler({}))  # it is on a link-local address of the task
    with opener.open(metadata_url, timeout=METADATA_SECONDS) as answer:
        address: str = json.load(answer)["Networks"][0]["IPv4Addresses"][0]
        return address


class CloudMap:
    """Asks Cloud Map for the instances of one service."""

    def __init__(self, settings: PeersSettings, region: str | None) -> None:
        """Make no client yet: the first call does, in the thread that makes it."""
        self._settings = settings
        self._region = region
        self._client: Any = None

    def __call__(self) -> list[str]:
        """List the addresses of all instances: an unhealthy task has statements too."""
        if self._client is None:
            self._client = self._make_client()
        answer = self._client.discover_instances(
            NamespaceName=self._settings.namespace,
            ServiceName=self._settings.service,
            HealthStatus="ALL",
            MaxResults=MOST_INSTANCES,
        )
        instances: list[dict[str, Any]] = answer["Instances"]
        found = [each.get("Attributes") or {} for each in instances]
        return [attributes.get("AWS_INSTANCE_IPV4") or "" for attributes in found]

    def _make_client(self) -> Any:
        # This call of Cloud Map has a separate host, data-servicediscovery…, which the SDK derives
        # from the usual one. An endpoint that a setting names is used unchanged.
        named = any(os.environ.get(name) for name in ENDPOINT_VARIABLES)
        config = CLIENT_CONFIG.merge(Config(inject_host_prefix=not named))
        # boto3's default session is not for several threads.
        session = boto3.session.Session(region_name=self._region)
        return session.client("servicediscovery", config=config)
