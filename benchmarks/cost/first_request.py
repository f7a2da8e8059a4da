"""What the layer costs a first request: processor time, as a ratio to raw psycopg's.

Both are handlers of the storm, restored from a snapshot as in the local cloud, and use the same
pooler. psycopg_pool is the control: it must be slower.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import psycopg

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.machine import machine, packages
from benchmarks.servers import DATABASE, ROOT, USER, Servers, cores, on_core, running
from lambda_pg_cdk.layer.build import PUBLISHED, Target, assemble, build_layer

RAW: Final = "raw"
SAME: Final = "raw again"
MEASURED: Final = "lambda-pg"
CONTROL: Final = "psycopg_pool"
HANDLERS: Final = {
    RAW: "connect_through_pooler",
    SAME: "connect_through_pooler",
    MEASURED: "lambda_pg",
    "lambda-pg without rehearsal": "lambda_pg",
    CONTROL: "psycopg_pool",
}
GOAL: Final = 1.0
CONTROL_LOSES: Final = 1.1
NOISE: Final = 0.03
"""Largest difference of the ratio of raw to itself from 1; above it the machine is too noisy."""

WARM: Final = 2
"""First restores of each function, which do not count: caches and pooler are still cold."""

METHOD: Final = (
    "Each function is a process that has imported its handler, like a snapshot, and is forked for "
    "each first request; its processor time counts from the fork to the handler's answer. "
    "All use the same pooler with TLS (verify-full) and SCRAM, for one lookup with claims. "
    "raw: bare psycopg as published, with the secret and the CA file in the snapshot; lambda-pg: "
    "the built layer, which fetches its secret in the request. "
    "Each of {rounds} rounds of {runs} runs measures every function, in random order. "
    "Ratios are medians over the rounds, to raw in the same round, then medians of the runs."
)
CAVEATS: Final = (
    "the runtime client is not included; its part is the same for all",
    "a fork shares its template's memory until it writes; Lambda loads a snapshot from a cache",
)

USER_ID: Final = uuid.UUID(int=7)
EVENT: Final = {
    "pathParameters": {"id": str(USER_ID)},
    "requestContext": {"authorizer": {"jwt": {"claims": {"sub": "somebody"}}}},
}
TABLE: Final = """
    DROP TABLE users;
    CREATE TABLE users (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    );
"""


class Template:
    """A process that has imported a function and can be forked."""

    def __init__(self, process: "subprocess.Popen[str]", orders: IO[str], answers: IO[str]) -> None:
        """Wait until it is ready."""
        self._process, self._orders, self._answers = process, orders, answers
        self._answers.readline()

    def first_request(self) -> float:
        """Restore an environment for one request; return the milliseconds that it took."""
        print(file=self._orders, flush=True)
        answer = self._answers.readline()
        if not answer.strip():
            raise SystemExit("a first request failed; its output is above")
        return float(answer)


@contextmanager
def template(handler: str, environment: Mapping[str, str]) -> Iterator[Template]:
    """Import a handler of benchmarks/functions on the client's core."""
    program = Path(__file__).with_name("restored.py")
    module = f"benchmarks.functions.{handler}.handler"
    with (
        on_core(cores()[0]),
        subprocess.Popen(
            [sys.executable, "-S", str(program), module, json.dumps(EVENT)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stdin is not None  # noqa: S101 - it was started with pipes
        assert process.stdout is not None  # noqa: S101 - it was started with pipes
        yield Template(process, process.stdin, process.stdout)
        process.stdin.close()


def environments(servers: Servers) -> dict[str, dict[str, str]]:
    """Return each function's environment variables, as the stacks and Lambda would set them."""
    built, published = (
        assembled / "python"
        for assembled in (
            build_layer(Target.interpreter()),
            assemble(PUBLISHED, Target.interpreter()),
        )
    )
    function = servers.function_environment(servers.pgbouncer, [])
    function |= {
        "PGSSLMODE": "verify-full",
        "LAMBDA_PG_CA_PEM": Path(function.pop("PGSSLROOTCERT")).read_text(),
        "LAMBDA_PG_CHECKOUT_TIMEOUT": "20",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
    }
    found = {}
    for name, handler in HANDLERS.items():
        psycopgs = built if handler == "lambda_pg" else published
        path = os.pathsep.join(map(str, (psycopgs, ROOT, sysconfig.get_path("purelib"))))
        found[name] = function | {"PYTHONPATH": path}
    found["lambda-pg without rehearsal"]["LAMBDA_PG_REHEARSAL"] = "0"
    return found


def measure(templates: Mapping[str, Template], rounds: int, seed: int) -> dict[str, list[float]]:
    """Restore every function once in each round, in random order; return milliseconds."""
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    times: dict[str, list[float]] = {name: [] for name in templates}
    for number in range(WARM + rounds):
        for name in chance.sample(list(templates), len(templates)):
            taken = templates[name].first_request()
            if number >= WARM:
                times[name].append(taken)
    return times


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    found = {row["name"]: row["ratio"] for row in result["rows"]}
    broken = []
    if found[MEASURED] > result["goal"]:
        broken.append(
            f"a first request through lambda-pg took {found[MEASURED]} times as long as one "
            f"through bare psycopg; the limit is {result['goal']}"
        )
    if found[CONTROL] < CONTROL_LOSES:
        broken.append(
            f"{CONTROL} took only {found[CONTROL]} times raw: "
            "a control that is not slower proves nothing"
        )
    if abs(found[SAME] - 1) > NOISE:
        broken.append(f"raw took {found[SAME]} times raw: the machine is too noisy")
    return broken


def run(servers: Servers, runs: int, rounds: int) -> dict[str, Any]:
    """Measure everything and return the whole result."""
    with psycopg.connect(servers.postgres.dsn_of(USER, servers.direct.password, DATABASE)) as owner:
        owner.execute(TABLE)
        owner.execute("INSERT INTO users VALUES (%s, 'user 7')", [USER_ID])
    given = environments(servers)
    with ExitStack() as stack:
        templates = {
            name: stack.enter_context(template(handler, given[name]))
            for name, handler in HANDLERS.items()
        }
        measured = [measure(templates, rounds, seed=number) for number in range(runs)]
    return {
        "machine": machine(),
        "versions": {**packages("psycopg", "psycopg-pool", "boto3"), **servers.versions},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench",
        "method": METHOD.format(runs=runs, rounds=rounds),
        "caveats": list(CAVEATS),
        "goal": GOAL,
        "rows": ratios.rows(RAW, measured, "ms"),
    }


def main() -> int:
    """Measure; exit code 0 only if the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40, help="restores of each function in a run")
    arguments = parser.parse_args()
    with running(core=cores()[1]) as servers:
        result = run(servers, arguments.runs, arguments.rounds)
    for row in result["rows"]:
        print(f"{row['name']:28} {row['median_ms']:7.2f} ms {row['ratio']:7.3f} {row['ratios']}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
