"""Combine the readings twice a second, and send them to all pages."""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lambda_pg_cdk.console.probe import Probe
from lambda_pg_cdk.console.readers import Database, PoolerTask, Requests, Status
from lambda_pg_cdk.local.cloud import LocalCloud

INTERVAL = 0.5
"""Seconds between two samples."""
KEPT_SECONDS = 300
_NEWEST = 5  # seconds of the API's history that are sent with every sample
_BEHIND = 50  # messages that a page may be behind before it is disconnected

Queue = asyncio.Queue[bytes | None]


class Watch:
    """Samples of the last minutes, and the queues of the pages that get the next ones."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Take the cloud; reading begins with the first page."""
        self._cloud = cloud
        self._watched = threading.Event()
        self._status = Probe("status", Status(cloud), self._watched)
        self._requests = Probe("requests", Requests(cloud), self._watched)
        self._tasks: dict[str, Probe[dict[str, Any]]] = {}
        self._database: Probe[dict[str, Any]] | None = None
        self._port = 0
        self._queues: set[Queue] = set()
        self._newcomer = False  # a page that needs the API's whole history
        self.samples: deque[dict[str, Any]] = deque(maxlen=int(KEPT_SECONDS / INTERVAL))

    @contextmanager
    def watching(self) -> Iterator[Queue]:
        """Yield a queue of messages; None in it disconnects a page that is too slow."""
        queue: Queue = asyncio.Queue(_BEHIND)
        self._queues.add(queue)
        self._newcomer = True
        self._watched.set()
        try:
            yield queue
        finally:
            self._queues.discard(queue)
            if not self._queues:
                self._watched.clear()

    def publish(self, event: str, data: Any) -> None:
        """Send a message to all pages."""
        text = message(event, data)
        for queue in list(self._queues):
            if queue.qsize() >= _BEHIND - 1:
                queue.put_nowait(None)
                self._queues.discard(queue)
            else:
                queue.put_nowait(text)

    async def run(self) -> None:
        """Take samples while a page is open, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            if self._queues:
                sample = self.sample()
                self.samples.append(sample)
                self.publish("sample", {**sample, "requests": self._news()})

    def _news(self) -> list[dict[str, Any]]:
        found = self._requests.latest() or []
        news = found if self._newcomer else found[-_NEWEST:]
        self._newcomer = self._newcomer and not found
        return news

    def sample(self) -> dict[str, Any]:
        """Return the current readings; None for a source that does not answer."""
        status = self._status.latest() or {}
        self._follow(status)
        pooler, postgres = status.get("pooler") or {}, status.get("postgres") or {}
        tasks = [self._task(each) for each in pooler.get("tasks", [])]
        return {
            "time": int(time.time() * 1000),
            "running": bool(status),
            "api_url": status.get("api_url"),
            "more_apis": status.get("apis", [])[1:],
            "environments": status.get("environments"),
            "pooler": _sum([each["pools"] for each in tasks if each["pools"]]),
            "budget": pooler.get("max_server_connections"),
            "tasks": tasks,
            "database": self._database.latest() if self._database and status else None,
            "max_connections": postgres.get("max_connections"),
        }

    def _task(self, status: dict[str, Any]) -> dict[str, Any]:
        probe = self._tasks.get(status["id"])
        known = {name: status[name] for name in ("address", "state", "flows")}
        return {**known, "pools": probe.latest() if probe else None}

    def _follow(self, status: dict[str, Any]) -> None:
        """Read from the current tasks and the current database only."""
        if not status:
            return
        tasks = (status.get("pooler") or {}).get("tasks", [])
        consoles = {each["id"]: each["admin_dsn"] for each in tasks if each["admin_dsn"]}
        for gone in set(self._tasks) - set(consoles):
            self._tasks.pop(gone).end()
        for new in set(consoles) - set(self._tasks):
            self._tasks[new] = Probe(f"task {new}", PoolerTask(consoles[new]), self._watched)
        port = (status.get("postgres") or {}).get("port", 0)
        if port and port != self._port:
            if self._database is not None:
                self._database.end()
            reader = Database(self._cloud.folder / "postgres", port)
            self._database, self._port = Probe("database", reader, self._watched), port


def message(event: str, data: Any) -> bytes:
    """Format a server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def _sum(pools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Add up the tasks that answer; the wait is the longest one."""
    if not pools:
        return None
    total = {name: sum(each[name] for each in pools) for name in pools[0]}
    return {**total, "longest_wait": max(each["longest_wait"] for each in pools)}
