"""Who may do what: every combination of caller, scopes, route, method, target and key, as requests.

Nothing here says what the outcome should be; tests/e2e/test_matrix.py has the table.
"""

import itertools
import json
import secrets
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call

PEOPLE = ("ada", "bob", "eve")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FIELDS: Mapping[str, str] = {"users": "name", "notes": "text"}
"""The collections, and the field that a client sets."""

SAME = "the same text for everybody"
"""What keyed requests send: only their callers differ."""


@dataclass(frozen=True)
class Cell:
    """One request: who asks, with which scopes, for what, and with whose key."""

    caller: str
    scopes: frozenset[str]
    method: str
    path: str  # with {id} where an id is
    target: str | None = None  # whose row; None in a path with {id} is nobody's
    key: str | None = None  # whose idempotency key


@dataclass(frozen=True)
class Seen:
    """What came of a request: its status, and what should not have happened besides."""

    status: int
    faults: tuple[str, ...] = ()


@dataclass
class Person:
    """A user of the API, with one row in each collection."""

    name: str
    subject: str = field(default_factory=lambda: str(uuid.uuid4()))
    mark: str = field(default_factory=lambda: secrets.token_hex(6))
    ids: dict[str, str] = field(default_factory=dict)  # by collection
    every_id: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        """What this person writes, and nobody else."""
        return f"{self.name} {self.mark}"


class Matrix:
    """Sends requests to an API as several people, and looks for what one sees of another."""

    def __init__(self, cloud: LocalCloud, collections: Sequence[str], scopes: str) -> None:
        """Let three people have one row in each collection; `scopes` are all that there are."""
        self._cloud, self._all = cloud, scopes
        self._tokens: dict[tuple[str, frozenset[str]], str] = {}
        self.people = {name: Person(name) for name in PEOPLE}
        for person, name in itertools.product(self.people.values(), collections):
            made = self.ask(person, "POST", f"/{name}", {FIELDS[name]: person.text})
            assert made.status == 201, made
            person.ids[name] = made.json()["id"]

    def ask(self, person: Person, method: str, path: str, body: Any, **headers: str) -> Answer:
        """Send a request as a person with all scopes; remember the ids of what it makes."""
        token = self.token(person.name, frozenset(self._all.split()))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = call(self._cloud.url, method, path, token, body, headers=named)
        if answer.status == 201:
            person.every_id.add(answer.json()["id"])
        return answer

    def token(self, caller: str, scopes: frozenset[str]) -> str:
        """Return a token of a person with these scopes."""
        if (caller, scopes) not in self._tokens:
            subject = self.people[caller].subject
            made = self._cloud.token(subject, scope=" ".join(sorted(scopes)))
            self._tokens[caller, scopes] = made
        return self._tokens[caller, scopes]

    def send(self, cell: Cell) -> Seen:
        """Send the request of a cell; with a key, its owner has used it for the same before."""
        person, path = self.people[cell.caller], self.path(cell)
        body, headers = self._body(cell), {}
        before = None
        if cell.key is not None:
            headers = {"Idempotency-Key": secrets.token_hex(8)}
            before = self._use(cell, headers["Idempotency-Key"])
        token = self.token(cell.caller, cell.scopes)
        answer = call(self._cloud.url, cell.method, path, token, body, headers=headers)
        faults = [*self._leaks(person, answer)]
        if answer.status == 201:
            person.every_id.add(answer.json()["id"])
        if cell.key is not None and before is not None:
            again = self._use(cell, headers["Idempotency-Key"])
            faults += _key_faults(answer, before, again)
        return Seen(answer.status, tuple(faults))

    def path(self, cell: Cell) -> str:
        """Put an id into the path of a cell."""
        _, name, *_ = cell.path.split("/")
        found = self.people[cell.target].ids[name] if cell.target else str(uuid.uuid4())
        return cell.path.replace("{id}", found)

    def _use(self, cell: Cell, key: str) -> Answer:
        """Let the owner of a key send the request of a cell, for a row that is the owner's."""
        assert cell.key is not None
        owner = self.people[cell.key]
        mine = Cell(owner.name, cell.scopes, cell.method, cell.path, owner.name)
        return self.ask(owner, cell.method, self.path(mine), self._body(cell), Idempotency_Key=key)

    def _body(self, cell: Cell) -> Any:
        if cell.method not in {"POST", "PUT", "PATCH"}:
            return None
        text = self.people[cell.caller].text if cell.key is None else SAME
        return {FIELDS[cell.path.split("/")[1]]: text}

    def _leaks(self, person: Person, answer: Answer) -> Iterator[str]:
        """Yield what an answer says about other people, in its body and its headers."""
        said = f"{answer.body} {json.dumps(dict(answer.headers))}"
        for other in self.people.values():
            if other is not person:
                if any(other_id in said for other_id in other.every_id):
                    yield f"an id of {other.name}"
                if other.mark in said:
                    yield f"words of {other.name}"
        if "access-control-allow-origin" in answer.headers:
            yield "CORS headers"


def _key_faults(answer: Answer, before: Answer, again: Answer) -> Iterator[str]:
    """Yield what is wrong with a key that somebody else has sent between two requests."""
    if before.status >= HTTPStatus.BAD_REQUEST:
        yield f"its owner got {before.status} {before.body}"
        return
    if "idempotent-replayed" in answer.headers:
        yield "somebody else's answer was replayed"
    if (again.status, again.body) != (before.status, before.body):
        yield f"its owner gets {again.status} {again.body} after {before.status} {before.body}"
    if "idempotent-replayed" not in again.headers:
        yield "its owner's answer was not replayed"


def cells(path: str, grants: Sequence[frozenset[str]], changes: Collection[str]) -> Iterator[Cell]:
    """Yield every combination for a path; only `changes` have keys, each of another person."""
    for caller, scopes, method in itertools.product(PEOPLE, grants, METHODS):
        targets: Sequence[str | None] = [*PEOPLE, None] if "{id}" in path else [None]
        for target in targets:
            yield Cell(caller, scopes, method, path, target)
            if method in changes:
                others = (each for each in PEOPLE if each != caller)
                yield from (Cell(caller, scopes, method, path, target, key) for key in others)


def mistakes(seen: Mapping[Cell, Seen], expected: Mapping[Cell, int]) -> list[str]:
    """Say where the outcome is another than the table's."""
    return [
        f"{cell}: {found.status} {' and '.join(found.faults)}, not {expected[cell]}"
        for cell, found in seen.items()
        if found != Seen(expected[cell])
    ]
