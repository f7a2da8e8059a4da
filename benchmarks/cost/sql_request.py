"""What `POST /sql` costs end to end: through the API of a local cloud, beside `GET /users/{id}`.

Both answer the same row, from a warm environment, through PgBouncer.
"""

import argparse
import hashlib
import http.client
import json
import random
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.machine import machine, others, packages_in_a_function
from benchmarks.servers import versions
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.paths import another_state_dir

USERS: Final = "GET /users/{id}"
AGAIN: Final = "GET /users/{id} again"
SQL: Final = "POST /sql"
NOISE: Final = 0.05
"""Most that the second row of GET may differ from the first one."""

QUERY: Final = "SELECT id, name, version, created_at, updated_at FROM users WHERE id = $1"
METHOD: Final = (
    "Each row is one client with one connection to the API, which sends one request after the "
    "other. The API, the functions under AWS's runtime client, PgBouncer and PostgreSQL are those "
    "of a local cloud, and every environment is warm. Both ways read the same row: `users` with "
    "the claims of a token, for row-level security, `/sql` with a key of the reader. "
    "Each round measures {calls} requests of each row, in random order. Ratios are medians over "
    "{rounds} rounds, to GET in the same round."
)
CAVEATS: Final = (
    "everything is on loopback and shares the machine's processors",
    "`users` validates its answer with Pydantic, and `/sql` resets the session's state",
)


@dataclass(frozen=True)
class Request:
    """A request whose answer is the row, over a connection that stays open."""

    connection: http.client.HTTPConnection
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: str | None = None

    def send(self) -> bytes:
        """Send it and return the answer."""
        self.connection.request(self.method, self.path, self.body, dict(self.headers))
        response = self.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(f"{self.method} {self.path}: {response.status} {content.decode()}")
        return content


def requests_of(cloud: LocalCloud) -> dict[str, Request]:
    """Create a user and a key; return a request for each row of the result."""
    token = cloud.token(str(uuid.uuid4()))
    path = call(cloud.url, "POST", "/users", token, {"name": "Ada"}).headers["location"]
    user = path.rpartition("/")[2]
    body = json.dumps({"query": QUERY, "params": [user]})
    address = urlsplit(cloud.url)

    def connected() -> http.client.HTTPConnection:
        return http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)

    bearer, key = {"Authorization": f"Bearer {token}"}, {"Neon-Connection-String": new_key(cloud)}
    return {
        USERS: Request(connected(), "GET", path, bearer),
        AGAIN: Request(connected(), "GET", path, bearer),
        SQL: Request(connected(), "POST", "/sql", key, body),
    }


def new_key(cloud: LocalCloud) -> str:
    """Add a key of the reader to the table; return its connection string."""
    secret = secrets.token_urlsafe(32)
    functions = cloud.client("lambda").list_functions()["Functions"]
    variables = next(
        found
        for one in functions
        if "SQL_KEYS_SECRET_ARN" in (found := one.get("Environment", {}).get("Variables", {}))
    )
    entry = {"hash": hashlib.sha256(secret.encode()).hexdigest(), "role": "reader"}
    cloud.client("secretsmanager").put_secret_value(
        SecretId=variables["SQL_KEYS_SECRET_ARN"],
        SecretString=json.dumps({"keys": {"bench": entry}}),
    )
    return f"postgresql://bench:{secret}@127.0.0.1/{variables['SQL_DATABASE']}"


def check(requests: Mapping[str, Request]) -> None:
    """Compare the row of both ways, so that they do the same; their first answers do not count."""
    user = json.loads(requests[USERS].send())
    (row,) = json.loads(requests[SQL].send())["rows"]
    if (row["id"], row["name"]) != (user["id"], user["name"]) or set(row) != set(user):
        raise SystemExit(f"/sql and users answer different rows: {row} and {user}")


def measure(
    requests: Mapping[str, Callable[[], object]], rounds: int, calls: int
) -> dict[str, list[float]]:
    """Time each row in every round, in random order; return milliseconds per request.

    The first round warms up and does not count.
    """
    chance = random.Random(0)  # noqa: S311 - an order, not a secret
    times: dict[str, list[float]] = {name: [] for name in requests}
    for number in range(rounds + 1):
        for name in chance.sample(list(requests), len(requests)):
            started = time.perf_counter_ns()
            for _ in range(calls):
                requests[name]()
            if number:
                times[name].append((time.perf_counter_ns() - started) / calls / 1e6)
    return times


def shortfalls(result: Mapping[str, Any]) -> list[str]:
    """Name what makes this result worthless; an empty list is a passed run."""
    found = {row["name"]: row["ratio"] for row in result["rows"]}
    if abs(found[AGAIN] - 1) <= NOISE:
        return []
    return [f"{USERS} took {found[AGAIN]} times {USERS}: the machine is too noisy"]


def run(cloud: LocalCloud, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure on a running cloud; return the result."""
    for function in ("users", "sql"):
        cloud.environments(function, 1, "cold")
    requests, busy = requests_of(cloud), others()
    check(requests)
    senders = {name: request.send for name, request in requests.items()}
    times = measure(senders, arguments.rounds, arguments.calls)
    for request in requests.values():
        request.connection.close()
    status = cloud.status()
    return {
        "machine": machine(),
        "versions": {
            **packages_in_a_function(),
            **versions(status["postgres"]["dsn"], status["pooler"]["admin_dsn"]),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench",
        "method": METHOD.format(calls=arguments.calls, rounds=arguments.rounds),
        "caveats": [*CAVEATS, f"other programs used {busy:.0f} % of the processors at the start"],
        "rows": ratios.rows(USERS, [times], "ms"),
    }


def main() -> int:
    """Measure; exit code 0 if the machine was quiet enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=10, help="requests of each row in a round")
    arguments = parser.parse_args()
    with LocalCloud(another_state_dir(), report=Narrator()) as cloud:
        result = run(cloud, arguments)
    for row in result["rows"]:
        print(f"{row['name']:24} {row['median_ms']:7.2f} ms {row['ratio']:7.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
