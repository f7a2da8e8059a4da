"""Changes with keys under random cuts and kills: each has to be applied once.

Clients send POST and PATCH of `users` with keys to the deployed API, each until it is answered, and
then once more. Meanwhile functions, pooler and backends are cut off and killed before, in and after
COMMIT. Then the answers are compared with an audit that triggers have written. The control is the
same load with a table of keys that forgets them: it must change something twice. The seed is
printed. Exit code 0 only if nothing was wrong.
"""

import argparse
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.run import options
from benchmarks.conclusion import conclude
from benchmarks.machine import machine, packages_in_a_function
from benchmarks.once.audit import (
    PAUSE,
    audited,
    changes,
    connected,
    dsn_of,
    storing_transactions,
)
from benchmarks.once.findings import WRONG, Findings, audit
from benchmarks.once.orders import CLIENTS, Clients, Plan, drawn
from benchmarks.once.sabotage import FUNCTION, Saboteur, Strike, deck
from benchmarks.servers import versions
from benchmarks.storm.run import SHARED_MACHINE
from benchmarks.tables import for_terminal, once_table
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.paths import another_state_dir

Report = Callable[[str], None]

ORDERS: Final = 1000
CONTROL_ORDERS: Final = 200
PER_STRIKE: Final = 8
"""Orders that are done between two strikes."""
MOST_SECONDS: Final = 400.0
"""After which the clients give up: the orders that are left are unanswered."""
EXPIRED_KEYS: Final = 500
"""Of each subject."""
EXPIRED: Final = (
    "INSERT INTO idempotency_keys (owner, id, request, status, headers, body, expires_at)"
    " SELECT %s, sha256(n::text::bytea), sha256(''), 200, '{}', '', now() - interval '1 hour'"
    " FROM generate_series(1, %s) AS n"
)
LEAST_LOST_ANSWERS: Final = 10
"""Orders of the whole run whose first answer must be lost after COMMIT."""


@dataclass(frozen=True)
class Outcome:
    """A run: what the audit found, what came of each send by its status, and what was done.

    `struck`: strikes that met their phase, `missed` those that did not.
    """

    findings: Findings
    sends: Counter[int]
    struck: Counter[Strike]
    missed: Counter[Strike]
    killed: int
    seconds: float


def run(
    cloud: LocalCloud, seed: int, count: int, *, seconds: float, control: bool = False
) -> Outcome:
    """Send `count` orders under strikes, within some seconds, and audit them.

    The control forgets all keys, and sends no answered order again.
    """
    plan = drawn(count, seed)
    dsn = dsn_of(cloud)
    prepare(dsn, plan)
    cloud.environments(FUNCTION, CLIENTS)
    tokens = {subject: cloud.token(subject, seconds=7200) for subject in plan.subjects}
    clients = Clients(cloud.url, tokens, seconds=seconds, seed=seed, confirm=not control)
    saboteur = Saboteur(cloud, seed)
    began = time.monotonic()
    with audited(dsn, pause=PAUSE, forget=control):
        with clients.sending(plan.orders) as wait_for:
            for strike in deck(seed, count // PER_STRIKE):
                wait_for(PER_STRIKE)
                saboteur.strike(strike)
        found = audit(
            plan.orders,
            changes(dsn),
            storing_transactions(dsn, plan.subjects),
            errors=clients.sends[500],
            killed=saboteur.killed,
        )
    spent = time.monotonic() - began
    return Outcome(found, clients.sends, saboteur.struck, saboteur.missed, saboteur.killed, spent)


def prepare(dsn: str, plan: Plan) -> None:
    """Add the users that orders change, and expired keys, some of which each order deletes."""
    with connected(dsn) as admin, admin.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO users (id, owner, name) VALUES (%s, %s, 'before')", plan.users
        )
        cursor.executemany(EXPIRED, [[subject, EXPIRED_KEYS] for subject in plan.subjects])


def row(name: str, outcome: Outcome) -> dict[str, Any]:
    """Return what a result keeps of a run."""
    return {
        "name": name,
        **asdict(outcome.findings),
        "sends": outcome.sends.total(),
        "statuses": {str(status): n for status, n in sorted(outcome.sends.items())},
        "strikes": [
            {**asdict(strike), "struck": n, "missed": outcome.missed[strike]}
            for strike, n in sorted(outcome.struck.items(), key=lambda each: repr(each[0]))
        ],
        "killed": outcome.killed,
        "seconds": round(outcome.seconds, 1),
    }


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that a result breaks; an empty list is a passed run."""
    measured, control = result["rows"]
    broken = [
        f"{measured[name]} {name}: {meaning}" for name, meaning in WRONG.items() if measured[name]
    ]
    if measured["lost_answers"] < LEAST_LOST_ANSWERS:
        broken.append(
            f"only {measured['lost_answers']} answers were lost after COMMIT, fewer than "
            f"{LEAST_LOST_ANSWERS}: the run proves nothing"
        )
    if not control["twice"]:
        broken.append("the control changed nothing twice: the run proves nothing")
    return broken


def main() -> int:
    """Run on a new cloud; exit code 0 only if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of orders and faults; drawn if omitted")
    parser.add_argument("--orders", type=int, default=ORDERS)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    arguments = parser.parse_args()
    seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    narrator = Narrator()
    narrator.note(f"seed {seed}")
    with LocalCloud(another_state_dir(), options(), report=narrator) as cloud:
        measured = run(cloud, seed, arguments.orders, seconds=MOST_SECONDS)
        control = run(cloud, seed + 1, CONTROL_ORDERS, seconds=MOST_SECONDS, control=True)
        status = cloud.status()
        servers = versions(status["postgres"]["dsn"], status["pooler"]["admin_dsn"])
    result = {
        "machine": machine(),
        "versions": {**packages_in_a_function(), **servers},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"make chaos (seed {seed})",
        "caveats": [SHARED_MACHINE, "PostgreSQL runs without fsync, and no machine crashes"],
        "seed": seed,
        "clients": CLIENTS,
        "rows": [row("lambda-pg", measured), row("control", control)],
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{for_terminal(once_table(result))}\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
