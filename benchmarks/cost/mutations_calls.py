"""One run of the writes of `users`, interleaved with what each is compared with.

benchmarks.cost.mutations starts it as a process with the function's environment. It reads a plan as
JSON from stdin and prints, as JSON, the time of each variant in each round.
"""

import importlib.util
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from awslambdaric.lambda_context import LambdaContext
from psycopg import Connection

from benchmarks.servers import ROOT

FUNCTION_SECONDS: Final = 25
BEFORE: Final = "before"
KEYED: Final = "with a key"
EVERYTHING: Final = "with everything"
APART: Final = "with a key in transactions apart"

CLAIM_APART: Final = (
    "INSERT INTO keys_apart (owner, id) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING id"
)
STORE_APART: Final = "UPDATE keys_apart SET status = %s, body = %s WHERE owner = %s AND id = %s"

Call = Callable[[], object]
Headers = Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What to measure: `calls` of each variant in a round, after `warm` calls of each."""

    rounds: int
    calls: int
    warm: int
    seed: int


class Api:
    """A function with POST and PATCH, called as API Gateway's events call it, by one owner."""

    def __init__(self, function: ModuleType) -> None:
        self._handler = function.handler
        self.database: Any = function.db
        self.owner = uuid.uuid4()
        deadline = int((time.time() + 100 * FUNCTION_SECONDS) * 1000)
        self._context = LambdaContext("benchmark", None, None, deadline)

    def send(self, method: str, path: str, headers: Headers, name: str | None = None) -> Any:
        """Send a name, by default a new one; return the response."""
        body = json.dumps({"name": name or f"name {uuid.uuid4()}"})
        event = _event(method, path, headers, body, str(self.owner))
        response = self._handler(event, self._context)
        if response["statusCode"] not in {200, 201}:
            status, text = response["statusCode"], response["body"]
            raise SystemExit(f"{method} {path} answered {status}: {text}")
        return response

    def post(self, headers: Callable[[], Headers]) -> object:
        """Create a user."""
        return self.send("POST", "/users", headers())

    def new_user(self) -> "User":
        """Create a user whose name can be changed."""
        return User(self, json.loads(self.send("POST", "/users", {})["body"])["id"])


class User:
    """A user, and the ETag of the last answer."""

    def __init__(self, api: Api, name: str) -> None:
        self._api, self._path, self._etag = api, f"/users/{name}", '"1"'

    def patch(self, headers: Callable[[], Headers], *, if_match: bool = False) -> object:
        """Change the name."""
        condition = {"if-match": self._etag} if if_match else {}
        response = self._api.send("PATCH", self._path, {**headers(), **condition})
        self._etag = response["headers"].get("ETag")
        return response

    def patch_apart(self) -> object:
        """Change the name, with a record of the key in transactions before and after it."""
        db, owner, key = self._api.database, self._api.owner, uuid.uuid4().bytes
        claims = {"sub": str(owner)}

        def claim(connection: Connection[Any]) -> None:
            if connection.execute(CLAIM_APART, (owner, key)).fetchone() is None:
                raise SystemExit("the key is in use")

        db.run_transaction(claim, claims=claims)
        response = self._api.send("PATCH", self._path, {})
        answer = (response["statusCode"], response["body"], owner, key)

        def store(connection: Connection[Any]) -> None:
            connection.execute(STORE_APART, answer)

        db.run_transaction(store, claims=claims)
        return response


def no_headers() -> Headers:
    """Send none."""
    return {}


def new_key() -> Headers:
    """Send a key that no other request has."""
    return {"idempotency-key": str(uuid.uuid4())}


def variants(users: Api, before: Api) -> dict[str, Call]:
    """Make every variant; each PATCH changes another user."""
    same = ("POST", "/users", new_key(), "the same name")
    return {
        f"POST: {BEFORE}": partial(before.post, no_headers),
        f"POST: {BEFORE}, again": partial(before.post, no_headers),
        "POST: plain": partial(users.post, no_headers),
        f"POST: {KEYED}": partial(users.post, new_key),
        f"POST: {KEYED}, repeated": partial(users.send, *same),
        f"PATCH: {BEFORE}": partial(before.new_user().patch, no_headers),
        "PATCH: plain": partial(users.new_user().patch, no_headers),
        f"PATCH: {KEYED}": partial(users.new_user().patch, new_key),
        "PATCH: with If-Match": partial(users.new_user().patch, no_headers, if_match=True),
        f"PATCH: {EVERYTHING}": partial(users.new_user().patch, new_key, if_match=True),
        f"PATCH: {APART}": before.new_user().patch_apart,
    }


def measure(calls: Mapping[str, Call], plan: Plan) -> dict[str, list[float]]:
    """Time every variant in each round, in random order; return microseconds per call."""
    chance = random.Random(plan.seed)  # noqa: S311 - an order, not a secret
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(plan.warm):
            call()
    for _ in range(plan.rounds):
        for name in chance.sample(list(calls), len(calls)):
            started = time.perf_counter_ns()
            for _ in range(plan.calls):
                calls[name]()
            times[name].append((time.perf_counter_ns() - started) / plan.calls / 1000)
    return times


def load(folder: Path) -> ModuleType:
    """Import a function, with what is beside it."""
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(folder.name, folder / "handler.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} has no handler.py")
    function = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(function)
    return function


def _event(method: str, path: str, headers: Headers, body: str, subject: str) -> dict[str, Any]:
    """Build an event of the HTTP API, with the claims of a verified token."""
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "ANY /users",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", **headers},
        "requestContext": {
            "requestId": str(uuid.uuid4()),
            "stage": "$default",
            "http": {"method": method, "path": path},
            "authorizer": {"jwt": {"claims": {"sub": subject}, "scopes": None}},
        },
        "body": body,
        "isBase64Encoded": False,
    }
    user = path.removeprefix("/users").lstrip("/")
    if user:
        event |= {"routeKey": "ANY /users/{id}", "pathParameters": {"id": user}}
    return event


def main() -> None:
    """Run the plan from stdin."""
    plan = Plan(**json.load(sys.stdin))
    # The functions' log goes where Lambda would take it from: it is not measured.
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        users = Api(load(ROOT / "functions" / "users"))
        before = Api(load(ROOT / "benchmarks" / "functions" / "users_before"))
        times = measure(variants(users, before), plan)
    json.dump(times, sys.stdout)


if __name__ == "__main__":
    main()
