"""What other users notice of fifty requests with one key: the 95th percentile of their latencies.

Rounds with and without the fifty alternate. The control is the same fifty with a claim that waits
inside the database, where each waiting request holds a server connection.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.conclusion import conclude
from benchmarks.machine import machine, others, packages_in_a_function
from benchmarks.once.audit import connected, dsn_of
from benchmarks.servers import ROOT, versions
from benchmarks.storm.open_loop import schedule
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.paths import another_state_dir

AT_ONCE: Final = 50
USERS: Final = 20
"""Other users; each request is of one of them."""
RATE: Final = 40.0
"""Requests of the other users in a second."""
ENVIRONMENTS: Final = 72
"""Enough for all requests, so that none starts an environment."""
ARRIVAL: Final = 1.5
"""Seconds of a round that are left for the fifty to arrive and to be answered."""

WITHOUT: Final = "without"
WITH: Final = "fifty with one key"
AGAIN: Final = "without, again"
CONTROL: Final = "control: each of the fifty holds a server connection"

GOAL: Final = 1.5
"""Highest ratio of the 95th percentile to the one without, the median over rounds."""
CONTROL_LOSES: Final = 5.0
"""Least ratio of the control."""
NOISE: Final = 0.25
"""Most that the 95th percentile may differ from itself."""

SLOW: Final = "slow"
"""The name of a user whose INSERT takes most of a round."""
SLOWED: Final = """
CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$;
CREATE TRIGGER be_slow BEFORE INSERT ON users FOR EACH ROW
    WHEN (NEW.name = 'slow') EXECUTE FUNCTION be_slow();
"""
CLAIM: Final = "claim_idempotency_key"
TRIES: Final = "pg_catalog.pg_try_advisory_xact_lock(lock)"
WAITS: Final = "pg_catalog.pg_advisory_xact_lock(lock) IS NOT NULL"

METHOD: Final = (
    "{users} other users send {rate:g} requests a second at random moments: half read a user, "
    "half create or rename one with a new key. A latency counts from the moment the request was "
    "due. A round takes {seconds:g} s. In a round with the fifty they come at once from another "
    "process, with one key; the change that the first one makes takes {slow:g} s, while 49 wait. "
    "The three kinds of round follow each other {rounds} times. Ratios are medians over these, to "
    "the round without."
)
CAVEAT: Final = (
    "the fifty, their environments and the API share the machine's processors with the other "
    "users; on AWS only pooler and database are shared"
)


@dataclass(frozen=True)
class Round:
    """The latencies of the other users in a round, in milliseconds, and what did not succeed."""

    p50: float
    p95: float
    p99: float
    requests: int
    failed: int

    @classmethod
    def of(cls, seconds: Sequence[float], failed: int) -> "Round":
        """Rank latencies."""
        cuts = statistics.quantiles([1000 * each for each in seconds], n=100, method="inclusive")
        return cls(cuts[49], cuts[94], cuts[98], len(seconds), failed)


@dataclass(frozen=True)
class Neighbours:
    """The other users: the tokens, and for each the path of a user."""

    url: str
    tokens: list[str]
    paths: list[str]

    @classmethod
    def of(cls, cloud: LocalCloud) -> "Neighbours":
        """Create a user for each."""
        tokens = [cloud.token(str(uuid.uuid4()), seconds=7200) for _ in range(USERS)]
        created = [call(cloud.url, "POST", "/users", each, {"name": "Ada"}) for each in tokens]
        return cls(cloud.url, tokens, [answer.headers["location"] for answer in created])

    def measure(self, seconds: float, seed: int) -> Round:
        """Send the load of a round."""
        return asyncio.run(self._measure(seconds, seed))

    async def _measure(self, seconds: float, seed: int) -> Round:
        chance = random.Random(seed)  # noqa: S311 - it draws a load
        began, latencies, failed = time.perf_counter(), list[float](), 0
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

            async def one(user: int, kind: float, due: float) -> None:
                nonlocal failed
                failed += not await self._succeeds(client, user, kind)
                latencies.append(time.perf_counter() - due)

            jobs = []
            for moment in schedule(RATE, seconds, seed):
                await asyncio.sleep(began + moment - time.perf_counter())
                drawn = chance.randrange(USERS), chance.random(), began + moment
                jobs.append(asyncio.create_task(one(*drawn)))
            await asyncio.gather(*jobs)
        return Round.of(latencies, failed)

    async def _succeeds(self, client: aiohttp.ClientSession, user: int, kind: float) -> bool:
        """Send one request; `kind` is from 0 to 1."""
        method = "GET" if kind < 0.5 else "POST" if kind < 0.75 else "PATCH"
        path = "/users" if method == "POST" else self.paths[user]
        headers = {"Authorization": f"Bearer {self.tokens[user]}"}
        if method != "GET":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        body = None if method == "GET" else {"name": "Countess"}
        try:
            async with client.request(
                method, self.url + path, json=body, headers=headers
            ) as answer:
                await answer.read()
                return answer.status in {200, 201}
        except (aiohttp.ClientError, TimeoutError):
            return False


@contextmanager
def fifty(url: str, token: str) -> Iterator[None]:
    """Have another process send the fifty; it ends within the block or just after it."""
    order = {
        "url": f"{url}/users",
        "token": token,
        "key": str(uuid.uuid4()),
        "body": {"name": SLOW},
        "count": AT_ONCE,
    }
    command = [sys.executable, "-m", "benchmarks.cost.fifty"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None  # noqa: S101 - it was started with a pipe
        json.dump(order, process.stdin)
        process.stdin.close()
        yield
    if process.returncode:
        raise SystemExit("the process that sends the fifty failed; its error is above")


@contextmanager
def waiting_inside(dsn: str) -> Iterator[None]:
    """Have a claim wait inside the database until the block ends."""
    with connected(dsn) as admin:
        ((definition,),) = admin.execute(
            "SELECT pg_get_functiondef(%s::regproc)", [CLAIM]
        ).fetchall()
        if TRIES not in definition:
            raise SystemExit(f"{CLAIM} is not what the control was made for: it lacks {TRIES}")
        admin.execute(definition.replace(TRIES, WAITS))
        try:
            yield
        finally:
            admin.execute(definition)


def measure(cloud: LocalCloud, rounds: int, seconds: float) -> dict[str, list[Round]]:
    """Measure each kind of round alternately, and the control once at the end."""
    dsn, users = dsn_of(cloud), Neighbours.of(cloud)
    token = cloud.token(str(uuid.uuid4()), seconds=7200)
    with connected(dsn) as admin:
        admin.execute(SLOWED.format(seconds=seconds - ARRIVAL))
    cloud.environments("users", ENVIRONMENTS)
    found: dict[str, list[Round]] = {name: [] for name in (WITHOUT, WITH, AGAIN, CONTROL)}
    with fifty(cloud.url, token):
        users.measure(seconds, -1)  # warms up
    for number in range(rounds):
        found[WITHOUT].append(users.measure(seconds, number))
        with fifty(cloud.url, token):
            found[WITH].append(users.measure(seconds, number))
        found[AGAIN].append(users.measure(seconds, number))
    with waiting_inside(dsn), fifty(cloud.url, token):
        found[CONTROL].append(users.measure(seconds, 0))
    return found


def rows(found: dict[str, list[Round]]) -> list[dict[str, Any]]:
    """Return a row for each kind of round: medians, and the ratio of the 95th percentiles."""
    base = [each.p95 for each in found[WITHOUT]]
    return [
        {
            "name": name,
            **{
                f"{cut}_ms": round(statistics.median(getattr(each, cut) for each in of_kind), 1)
                for cut in ("p50", "p95", "p99")
            },
            "ratio": round(statistics.median(_ratios(of_kind, base)), 3),
            "ratios": [round(ratio, 3) for ratio in _ratios(of_kind, base)],
            "requests": sum(each.requests for each in of_kind),
            "failed": sum(each.failed for each in of_kind),
        }
        for name, of_kind in found.items()
    ]


def _ratios(of_kind: Sequence[Round], base: Sequence[float]) -> list[float]:
    return [each.p95 / without for each, without in zip(of_kind, base, strict=False)]


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    found = {row["name"]: row for row in result["rows"]}
    ratio = {name: row["ratio"] for name, row in found.items()}
    broken = [
        f"{name}: {found[name]['failed']} requests of other users failed"
        for name in (WITHOUT, WITH, AGAIN)
        if found[name]["failed"]
    ]
    if ratio[WITH] > GOAL:
        broken.append(
            f"with the fifty p95 is {ratio[WITH]} times that without; the limit is {GOAL}"
        )
    if abs(ratio[AGAIN] - 1) > NOISE:
        broken.append(f"without the fifty p95 is {ratio[AGAIN]} times itself: too noisy a machine")
    if ratio[CONTROL] < CONTROL_LOSES:
        broken.append(f"the control's p95 is only {ratio[CONTROL]} times: the run proves nothing")
    return broken


def main() -> int:
    """Measure; exit code 0 only if the goal was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=9.0, help="of a round")
    arguments = parser.parse_args()
    with LocalCloud(another_state_dir(), report=Narrator()) as cloud:
        busy = others()
        found = measure(cloud, arguments.rounds, arguments.seconds)
        status = cloud.status()
        servers = versions(status["postgres"]["dsn"], status["pooler"]["admin_dsn"])
    result = {
        "machine": machine(),
        "versions": {**packages_in_a_function(), **servers},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench",
        "method": METHOD.format(
            users=USERS, rate=RATE, slow=arguments.seconds - ARRIVAL, **vars(arguments)
        ),
        "caveats": [CAVEAT, f"other programs used {busy:.0f} % of the processors at the start"],
        "goal": GOAL,
        "rows": rows(found),
    }
    for row in rows(found):
        print(f"{row['name']:52} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} ms {row['ratio']:8.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
