"""A steady load of readers and writers on the deployed API, and what became of each request."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call

REST = 0.02
"""Seconds between two requests of a client: a load, and no storm."""


@dataclass
class Load:
    """What the clients saw: how often each kind was answered, and what was not answered well."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def wait_for_more(self, count: int = 20, seconds: float = 30) -> None:
        """Wait until every kind of request has been answered so often again."""
        aim = {kind: seen + count for kind, seen in self.answered.items()}
        deadline = time.monotonic() + seconds
        while any(self.answered[kind] < least for kind, least in aim.items()):
            assert time.monotonic() < deadline, (self.answered, self.failed[:3])
            time.sleep(0.02)


@contextmanager
def load(cloud: LocalCloud, clients: int = 4) -> Iterator[Load]:
    """Read, create and rename users from several clients until the block ends.

    A read is an idempotent lookup, a creation an idempotent write, a rename a unit of work.
    """
    cloud.environments("users", clients)
    seen, stop = Load(), threading.Event()
    threads = [
        threading.Thread(target=_serve, args=(cloud, seen, stop), daemon=True)
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        while len(seen.answered) < 3 and not seen.failed:
            time.sleep(0.02)
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def _serve(cloud: LocalCloud, seen: Load, stop: threading.Event) -> None:
    url, token = cloud.url, cloud.token(str(uuid.uuid4()))

    def ask(kind: str, method: str, path: str, body: object, expected: int) -> Answer:
        answer = call(url, method, path, token, body)
        if answer.status == expected:
            seen.answered[kind] += 1
        else:
            seen.failed.append(f"{kind}: {answer.status} {answer.body}")
        return answer

    while not stop.is_set():
        created = ask("create", "POST", "/users", {"name": "Ada"}, 201)
        if created.status != 201:
            continue
        path = created.headers["location"]
        for _ in range(3):
            ask("read", "GET", path, None, 200)
            ask("rename", "PATCH", path, {"name": "Countess"}, 200)
            time.sleep(REST)
