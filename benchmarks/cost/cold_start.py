"""What the layer costs a cold start: process start to first row, as a ratio to bare psycopg's.

Each start is a new interpreter with the layer as it is built for Lambda; the secret comes over
HTTP. boto3 with psycopg_pool is the control: it must be slower.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.cost.secrets_service import GET, JSON_TYPE
from benchmarks.machine import machine, packages
from benchmarks.servers import USER, Servers, cores, on_core, running
from lambda_pg_cdk.layer.build import PUBLISHED, Target, assemble, build_layer

PROGRAMS: Final = Path(__file__).parent / "first_row"
FLOOR: Final = "floor"
CHANGED: Final = "floor, the layer's psycopg"
MEASURED: Final = "lambda-pg"
CONTROL: Final = "boto3+psycopg_pool"
GOAL: Final = 0.88
CONTROL_LOSES: Final = 1.5
SERVICE_MS: Final = 3.0
"""Longest answer of the secrets service in milliseconds; a slower one would be what is measured."""

UNREST: Final = 1.25
"""Highest ratio of the floor's median to its quiet rounds; above it the machine is too busy."""

PATIENT: Final = "20"
"""Checkout timeout in seconds, so that a short pause of the machine does not end a run."""

IMPORTS: Final = ("psycopg", "lambda_pg")

METHOD: Final = (
    "Each start is a new interpreter without installed packages, timed from before its spawn to "
    "its first row. "
    "lambda-pg is the built layer, whose psycopg is changed to import faster; floor and "
    "boto3+psycopg_pool use the same version as published; all have bytecode. "
    "The client has one core, as a function with 1,769 MB has one vCPU; PostgreSQL and the secrets "
    "service have {place}. "
    "The connection is direct, with TLS (verify-full) and SCRAM. "
    "floor: bare psycopg with given credentials; lambda-pg: a bound handler that fetches the "
    "secret; boto3+psycopg_pool: the usual way. "
    "Each of {rounds} rounds of {runs} runs measures every variant, in random order. "
    "Ratios are medians over the rounds, to the floor in the same round, then medians of the runs. "
    "Imports are medians of new interpreters; that of lambda_pg includes psycopg's. "
    "Memory is the median after the first row."
)
CAVEATS: Final = (
    "files come from the page cache; Lambda first reads code and layer from a network",
    "Lambda's own work before Python starts is not included, nor is the runtime client",
    "the secrets service is local and speaks HTTP; the real one is remote and speaks HTTPS",
)


@dataclass(frozen=True)
class Start:
    """One way to a first row: a program of first_row/ and its environment."""

    interpreter: str
    program: str
    environment: dict[str, str]
    argument: str = ""


@dataclass(frozen=True)
class Answer:
    """The time of one start, and its memory at the end in KiB."""

    milliseconds: float
    rss: int
    pss: int


def starts(
    servers: Servers, layer: Path, published: Path, python: str, folder: Path
) -> dict[str, Start]:
    """Make every variant; their environments differ only in what is named here.

    `published` is the layer's psycopg as published on PyPI.
    """
    function = servers.function_environment(servers.direct, [layer])
    function |= {"PGSSLMODE": "verify-full", "PGGSSENCMODE": "disable"}
    function["LAMBDA_PG_CHECKOUT_TIMEOUT"] = PATIENT
    login = {"PGUSER": USER, "PGPASSWORD": servers.direct.password}
    original = {"PYTHONPATH": str(published)}
    development = {"PYTHONPATH": os.pathsep.join([str(layer), sysconfig.get_path("purelib")])}
    usual = {"PYTHONPATH": os.pathsep.join([str(published), sysconfig.get_path("purelib")])}
    return {
        "python": Start(python, "python.py", function),
        FLOOR: Start(python, "floor.py", function | login | original),
        CHANGED: Start(python, "floor.py", function | login),
        MEASURED: Start(python, "layer.py", function),
        "lambda-pg by boto3": Start(
            python, "layer.py", _keys_in_file(function, folder) | development
        ),
        CONTROL: Start(python, "usual.py", function | usual),
    }


def _keys_in_file(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Move the keys to a file where only boto3 finds them."""
    file = folder / "credentials"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    lines = [f"{name.lower()} = {environment[name]}" for name in names]
    file.write_text("\n".join(["[default]", *lines, ""]))
    others = {name: value for name, value in environment.items() if name not in names}
    return others | {"AWS_SHARED_CREDENTIALS_FILE": str(file)}


def bare_interpreter(folder: Path) -> str:
    """Make an interpreter without packages, as an installed package may run code at each start."""
    venv.create(folder / "bare", symlinks=True)
    return str(folder / "bare" / "bin" / "python")


def start(way: Start) -> Answer:
    """Start a program on the client's core and time it to its first row."""
    command = [way.interpreter, str(PROGRAMS / way.program), *filter(None, [way.argument])]
    with on_core(cores()[0]):
        began = time.monotonic_ns()
        child = subprocess.run(
            command, env=way.environment, capture_output=True, text=True, check=False
        )
    if child.returncode:
        raise SystemExit(f"{way.program} failed:\n{child.stderr}")
    said = json.loads(child.stdout)
    if said["row"] not in (None, [7, "user 7"]):
        raise SystemExit(f"{way.program} found {said['row']}; must be user 7")
    taken = said["finished"] - (said["started"] or began)
    return Answer(taken / 1e6, said["kib"]["rss"], said["kib"]["pss"])


def measure(ways: dict[str, Start], rounds: int, seed: int) -> dict[str, list[Answer]]:
    """Start every variant once in each round, in random order; the first round warms up."""
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    answers: dict[str, list[Answer]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in chance.sample(list(ways), len(ways)):
            answer = start(ways[name])
            if number:
                answers[name].append(answer)
    return answers


Run = dict[str, list[Answer]]


def unrest(runs: list[Run]) -> float:
    """Return how busy the machine was: the ratio of the floor's median to its quiet rounds."""
    times = [answer.milliseconds for run in runs for answer in run[FLOOR]]
    return round(ratios.unrest(times), 3)


def rows(runs: list[Run]) -> list[dict[str, Any]]:
    """Build the rows, each with its memory."""
    times = [
        {name: [answer.milliseconds for answer in answers] for name, answers in run.items()}
        for run in runs
    ]
    return [
        row | {"memory_mib": _memory([a for run in runs for a in run[row["name"]]])}
        for row in ratios.rows(FLOOR, times, "ms")
    ]


def _memory(answers: list[Answer]) -> dict[str, float]:
    return {
        "rss": round(statistics.median(answer.rss for answer in answers) / 1024, 1),
        "pss": round(statistics.median(answer.pss for answer in answers) / 1024, 1),
    }


def imports(servers: Servers, layer: Path, python: str, rounds: int) -> dict[str, float]:
    """Time the imports, in milliseconds."""
    environment = servers.function_environment(servers.direct, [layer])
    ways = {name: Start(python, "importing.py", environment, name) for name in IMPORTS}
    return {
        name: round(statistics.median(answer.milliseconds for answer in answers), 1)
        for name, answers in measure(ways, rounds, seed=0).items()
    }


def service_milliseconds(servers: Servers, requests: int = 100) -> float:
    """Return the median time of the secrets service, with a new connection for each request."""
    netloc = urlsplit(servers.secrets_url).netloc
    body = json.dumps({"SecretId": servers.secret_arn})
    headers = {"Content-Type": JSON_TYPE, "X-Amz-Target": GET}
    times = []
    with on_core(cores()[0]):
        for _ in range(requests):
            began = time.perf_counter()
            connection = http.client.HTTPConnection(netloc, timeout=5)
            connection.request("POST", "/", body, headers)
            connection.getresponse().read()
            connection.close()
            times.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(times), 2)


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    found = {row["name"]: row["ratio"] for row in result["rows"]}
    broken = []
    if found[MEASURED] > result["goal"]:
        broken.append(
            f"lambda-pg took {found[MEASURED]} times the floor; the limit is {result['goal']}"
        )
    if found[CONTROL] < CONTROL_LOSES:
        broken.append(
            f"{CONTROL} took only {found[CONTROL]} times the floor: "
            "a control that is not slower proves nothing"
        )
    if result["secrets_service_ms"] > SERVICE_MS:
        broken.append(
            f"the secrets service took {result['secrets_service_ms']} ms; "
            f"the limit is {SERVICE_MS} ms"
        )
    if result["unrest"] > UNREST:
        broken.append(
            f"the floor took {result['unrest']} times its quiet rounds: another program uses this "
            "machine"
        )
    return broken


def run(servers: Servers, runs: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Measure everything and return the whole result."""
    layer = build_layer(Target.interpreter()) / "python"
    published = assemble(PUBLISHED, Target.interpreter()) / "python"
    python = bare_interpreter(folder)
    ways = starts(servers, layer, published, python, folder)
    measured = [measure(ways, rounds, seed=number) for number in range(runs)]
    client, server = cores()
    return {
        "machine": machine(),
        "versions": {**packages("psycopg", "psycopg-pool", "boto3"), **servers.versions},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench",
        "method": METHOD.format(
            runs=runs, rounds=rounds, place="the other one" if client != server else "the same one"
        ),
        "caveats": list(CAVEATS),
        "goal": GOAL,
        "secrets_service_ms": service_milliseconds(servers),
        "imports_ms": imports(servers, layer, python, rounds),
        "unrest": unrest(measured),
        "rows": rows(measured),
    }


def main() -> int:
    """Measure; exit code 0 only if the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12, help="starts of each variant in a run")
    arguments = parser.parse_args()
    with running(core=cores()[1]) as servers, tempfile.TemporaryDirectory() as folder:
        result = run(servers, arguments.runs, arguments.rounds, Path(folder))
    for row in result["rows"]:
        print(
            f"{row['name']:22} {row['median_ms']:7.1f} ms {row['ratio']:7.3f} {row['memory_mib']}"
        )
    print(f"imports {result['imports_ms']}, secrets service {result['secrets_service_ms']} ms")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
