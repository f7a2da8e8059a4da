"""Orders: changes of `users` with a key, and clients that send each until it is answered."""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Final, Literal

from lambda_pg_cdk.local.http.caller import Answer, call

Kind = Literal["create", "rename", "edit"]

SUBJECTS: Final = 4
SHARED: Final = 5
"""Users of each subject that several orders rename."""
CLIENTS: Final = 16
ANSWERED: Final = frozenset({200, 201})
AGAIN: Final = frozenset({0, 409, 429, 500, 502, 503, 504})
"""Statuses after which a client sends again; 0 is no answer. Any other one is a refusal."""
IMPATIENT: Final = 0.15
"""Share of the sends that a client gives up within PATIENCE, although they go on."""
PATIENCE: Final = 0.3
TWIN: Final = 0.1
"""Share of the orders that two clients send at the same time."""
LONGEST_REST: Final = 0.2


@dataclass
class Order:
    """A change that is wanted once. Its label is the new name of the user.

    `create` is a POST, `rename` a PATCH of a user that others rename too, `edit` a PATCH with
    If-Match of a user that nobody else changes. `answers`: the successes, in the order of their
    arrival; `refusals`: statuses that a client must not get.
    """

    label: str
    kind: Kind
    subject: str
    path: str
    key: str
    copies: int = 1
    answers: list[Answer] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The HTTP method."""
        return "POST" if self.kind == "create" else "PATCH"

    @property
    def acknowledged(self) -> bool:
        """Whether a client has a success."""
        return bool(self.answers)

    def headers(self, *, quoted: bool) -> dict[str, str]:
        """Return the headers of a send; both forms of the key are one key."""
        headers = {"Idempotency-Key": f'"{self.key}"' if quoted else self.key}
        return headers | ({"If-Match": '"1"'} if self.kind == "edit" else {})


@dataclass(frozen=True)
class Plan:
    """Orders, and the users that have to be there: id and subject."""

    orders: list[Order]
    users: list[tuple[str, str]]

    @property
    def subjects(self) -> list[str]:
        """Every subject, once."""
        return list(dict.fromkeys(order.subject for order in self.orders))


def drawn(count: int, seed: int) -> Plan:
    """Draw orders by a seed: half create, a quarter renames, a quarter edits.

    Subjects use the same keys, and a subject uses one key for several paths and methods.
    """
    chance = random.Random(seed)  # noqa: S311 - it draws a load
    subjects = [_uuid(chance) for _ in range(SUBJECTS)]
    shared = {subject: [_uuid(chance) for _ in range(SHARED)] for subject in subjects}
    users = [(user, subject) for subject, found in shared.items() for user in found]
    orders = []
    for number in range(count):
        subject = subjects[number % SUBJECTS]
        kind: Kind = chance.choice(("create", "create", "rename", "edit"))
        user = chance.choice(shared[subject]) if kind == "rename" else _uuid(chance)
        if kind == "edit":
            users.append((user, subject))
        path = "/users" if kind == "create" else f"/users/{user}"
        copies = 2 if chance.random() < TWIN else 1
        orders.append(
            Order(f"order {number}", kind, subject, path, f"key-{number // SUBJECTS}", copies)
        )
    return Plan(orders, users)


def _uuid(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


class Clients:
    """Send orders from several threads, each until it has an answer, and then once more.

    `sends` counts what came of each send, by its status.
    """

    def __init__(
        self, url: str, tokens: Mapping[str, str], *, seconds: float, seed: int, confirm: bool
    ) -> None:
        """Take the API, a token for each subject, and the seconds until everybody gives up.

        `confirm`: an answered order is sent again, until that is answered too.
        """
        self._url = url
        self._tokens = tokens
        self._until = time.monotonic() + seconds
        self._seed = seed
        self._confirm = confirm
        self._ended = threading.Semaphore(0)
        self.sends: Counter[int] = Counter()

    @contextmanager
    def sending(self, orders: Sequence[Order]) -> Iterator[Callable[[int], None]]:
        """Send orders until all are done; yields a function that waits for so many of them."""
        jobs: list[Future[None]] = []
        with ThreadPoolExecutor(CLIENTS, "client") as pool:
            for order in orders:
                jobs += [pool.submit(self._carry_out, order, n) for n in range(order.copies)]
            yield self._await
        for job in jobs:
            job.result()

    def _await(self, count: int) -> None:
        for _ in range(count):
            left = self._until - time.monotonic()
            if left <= 0 or not self._ended.acquire(timeout=left):
                return

    def _carry_out(self, order: Order, copy: int) -> None:
        chance = random.Random(f"{self._seed} {order.label} {copy}")  # noqa: S311 - of a load
        try:
            if self._send_until_answered(order, chance) and self._confirm:
                self._send_until_answered(order, chance)
        finally:
            if not copy:
                self._ended.release()

    def _send_until_answered(self, order: Order, chance: random.Random) -> bool:
        """Send until there is a success or a refusal, which are noted; return which it was."""
        while time.monotonic() < self._until:
            answer = self._send(order, chance)
            self.sends[answer.status] += 1
            if answer.status in ANSWERED:
                order.answers.append(answer)
                return True
            if answer.status not in AGAIN:
                order.refusals.append(answer.status)
                return False
            time.sleep(chance.uniform(0, LONGEST_REST))
        return False

    def _send(self, order: Order, chance: random.Random) -> Answer:
        """Send once; an answer that does not come in time has status 0."""
        impatient = chance.random() < IMPATIENT
        try:
            return call(
                self._url,
                order.method,
                order.path,
                self._tokens[order.subject],
                {"name": order.label},
                timeout=chance.uniform(0.01, PATIENCE) if impatient else 35.0,
                headers=order.headers(quoted=chance.random() < 0.5),
            )
        except (OSError, HTTPException):
            return Answer(0, {}, "")
