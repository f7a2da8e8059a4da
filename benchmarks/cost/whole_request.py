"""What a first request costs as a whole: all processes of a local cloud, now and before.

"Before" is a commit of this repository, with PgBouncer 1.24.1 and the layer and simulator of that
time. It runs in a separate cloud; storms of both clouds alternate.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.conclusion import conclude
from benchmarks.cost import ratios
from benchmarks.machine import machine, packages
from benchmarks.servers import MAJOR, ROOT
from lambda_pg_cdk.local.install.pgbouncer_discovery import find_pgbouncer

BASELINE: Final = "9a17ebdab6b540f50dcc009ddbc2dfccd5c586a5"
MEASURED: Final = "now"
BEFORE: Final = "before"
GOALS: Final = {"whole": 0.50, "simulator": 0.44}
"""Highest ratios to before. `simulator`: processes that exist only because the cloud is local."""
TURNS_PROGRAM: Final = Path(__file__).with_name("storm_turns.py")
METHOD: Final = (
    "Two local clouds run at once: this version and commit {commit}, each in its own control "
    "group, whose processor time the kernel counts. {turns} storms of {environments} restored "
    "environments alternate between them, each measured from the first request to the last answer. "
    "The whole is environments, PgBouncer, PostgreSQL, simulator and load. The simulator is the "
    "load and the local cloud's own processes."
)


class UnavailableError(Exception):
    """The older version cannot be measured here; the message gives the reason."""


def checkout(folder: Path) -> Path:
    """Unpack the older version; it shares the installed packages of this one."""
    known = subprocess.run(
        ["git", "-C", ROOT, "cat-file", "-e", f"{BASELINE}^{{commit}}"],
        capture_output=True,
        check=False,
    )
    if known.returncode:
        raise UnavailableError(f"this clone lacks commit {BASELINE[:7]}; run git fetch --unshallow")
    older = folder / "before"
    older.mkdir()
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", BASELINE], capture_output=True, check=True
    )
    subprocess.run(["tar", "--extract", "--directory", older], input=archive.stdout, check=True)
    (older / "node_modules").symlink_to(ROOT / "node_modules")
    return older


@contextmanager
def control_group(name: str) -> Iterator[Path]:
    """Create a control group that counts processor time."""
    kind = "cpuacct" if Path("/sys/fs/cgroup/cpuacct").is_dir() else ""
    group = Path("/sys/fs/cgroup", kind, f"lambda-pg-{os.getpid()}-{name}")
    try:
        group.mkdir()
    except OSError as error:
        raise UnavailableError(f"cannot create the control group {group}: {error}") from error
    try:
        yield group
    finally:
        group.rmdir()


@contextmanager
def cloud(folder: Path, name: str, environments: int) -> Iterator["subprocess.Popen[str]"]:
    """Start the cloud of a checkout in a control group, and wait until it is ready."""
    # The shell enters the group first, so all processes that it starts are in it.
    enter = ["sh", "-c", 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"', "sh"]
    storms = [sys.executable, "-P", str(TURNS_PROGRAM), str(environments)]
    with (
        control_group(name) as group,
        subprocess.Popen(
            [*enter, str(group), *storms],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
        ) as process,
    ):
        assert process.stdin is not None  # noqa: S101 - it was started with pipes
        answer(process)
        yield process
        process.stdin.close()


def answer(process: "subprocess.Popen[str]") -> str:
    """Read one line."""
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a cloud ended; its output is above")
    return line


def measure(turns: int, environments: int) -> dict[str, dict[str, list[float]]]:
    """Storm both clouds alternately; return the milliseconds per first request by part and version.

    The first storms do not count.
    """
    times: dict[str, dict[str, list[float]]] = {part: {BEFORE: [], MEASURED: []} for part in GOALS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        folders = {BEFORE: checkout(Path(folder)), MEASURED: ROOT}
        clouds = {
            name: stack.enter_context(cloud(place, name, environments))
            for name, place in folders.items()
        }
        for number in range(turns + 1):
            for name, process in clouds.items():
                assert process.stdin is not None  # noqa: S101 - it was started with pipes
                print(file=process.stdin, flush=True)
                found = json.loads(answer(process))
                parts = ", ".join(f"{part} {found[part]:.1f} ms" for part in GOALS)
                print(f"storm {number} of {turns}, {name}: {parts}", flush=True)
                if number:
                    for part in GOALS:
                        times[part][name].append(found[part])
    return times


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Name every promise that this result breaks; an empty list is a passed run."""
    found = {row["part"]: row["ratio"] for row in result["rows"] if row["name"] == MEASURED}
    return [
        f"a first request ({part}) took {ratio} of the time before; the limit is {goal}"
        for part, ratio in found.items()
        if ratio > (goal := result["goals"][part])
    ]


def main() -> int:
    """Measure; exit code 0 if the goals are met, or if there is no older version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where to write the result as JSON")
    parser.add_argument("--turns", type=int, default=5, help="storms of each version that count")
    parser.add_argument("--environments", type=int, default=150)
    arguments = parser.parse_args()
    caveats = ["loopback, and one machine for everything"]
    rows: list[dict[str, Any]] = []
    try:
        times = measure(arguments.turns, arguments.environments)
        rows = [
            {**row, "part": part}
            for part in GOALS
            for row in ratios.rows(BEFORE, [times[part]], "ms")
        ]
    except UnavailableError as error:
        caveats.append(f"no rows: {error}")
    result = {
        "machine": machine(),
        "versions": {"postgresql": str(MAJOR), "pgbouncer": find_pgbouncer().version, **packages()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench",
        "method": METHOD.format(commit=BASELINE[:7], **vars(arguments)),
        "caveats": caveats,
        "goals": GOALS,
        "rows": rows,
    }
    for row in rows:
        print(f"{row['part']:10} {row['name']:8} {row['median_ms']:7.2f} ms {row['ratio']:7.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print("; ".join(caveats))
    return conclude(shortfalls(result))


if __name__ == "__main__":
    sys.exit(main())
