"""A steady load of readers and writers on the deployed API, and what became of each request."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call
from tests.support.waiting import wait_until

REST = 0.02
"""Seconds between two requests of a client: a load, and no storm."""


@dataclass
class Load:
    """What the clients saw: how often each kind was answered, and what was not answered well."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def count(self, kind: str, answer: Answer, expected: int = 200) -> Answer:
        """Count an answer, by its status; return it."""
        if answer.status == expected:
            self.answered[kind] += 1
        else:
            self.failed.append(f"{kind}: {answer.status} {answer.body}")
        return answer

    def wait_for_all(self, kinds: int, seconds: float = 60) -> None:
        """Wait until so many kinds of request have been answered, or one has failed."""
        wait_until(lambda: len(self.answered) >= kinds or self.failed, seconds, "each kind")

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
    seen = Load()
    tokens = [cloud.token(str(uuid.uuid4())) for _ in range(clients)]
    with repeated([partial(_round, cloud.url, token, seen) for token in tokens]):
        seen.wait_for_all(3)
        yield seen


@contextmanager
def repeated(rounds: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Call each of the functions again and again, in a thread, until the block ends."""
    stop = threading.Event()

    def repeat(one: Callable[[], object]) -> None:
        while not stop.is_set():
            one()

    threads = [threading.Thread(target=repeat, args=(one,), daemon=True) for one in rounds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def _round(url: str, token: str, seen: Load) -> None:
    def ask(kind: str, method: str, path: str, body: object, expected: int) -> Answer:
        return seen.count(kind, call(url, method, path, token, body), expected)

    created = ask("create", "POST", "/users", {"name": "Ada"}, 201)
    if created.status != 201:
        return
    path = created.headers["location"]
    for _ in range(3):
        ask("read", "GET", path, None, 200)
        ask("rename", "PATCH", path, {"name": "Countess"}, 200)
        time.sleep(REST)
