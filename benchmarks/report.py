"""Write the tables of README.md from the committed results, or check that they agree."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STORM = ROOT / "benchmarks" / "results" / "storm.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- storm: made by `make storm` -->", "<!-- /storm -->"

TITLES = {
    "baseline": "a connection per request, straight to PostgreSQL",
    "lambda-pg": "**lambda-pg**: layer and PgBouncer",
    "lambda-pg-cold": "lambda-pg, real cold starts",
}


def storm_table(result: dict[str, Any]) -> str:
    """Draw the storm's rows as Markdown."""
    lines = [
        "| | environments | served | failed | p50 | p95 | p99 | max | peak server connections |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        times = " | ".join(_seconds(row[f"{name}_ms"]) for name in ("p50", "p95", "p99", "max"))
        lines.append(
            f"| {TITLES[row['name']]} | {row['environments']} {row['start']} "
            f"| {row['served']} of {row['requests']} | {row['failed']} | {times} "
            f"| {row['peak_server_connections']} |"
        )
    return "\n".join([*lines, "", _caption(result)])


def _caption(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    causes = "; ".join(
        f"{count} times {cause}"
        for row in result["rows"]
        if row["name"] == "baseline"
        for cause, count in row["failures"].items()
    )
    return (
        f"`max_connections` {result['max_connections']}, budget {result['budget']} server "
        f"connections. The baseline's failures: {causes}. Measured {result['date'][:10]} by "
        f"`{result['command']}` on {machine['cores']} cores ({machine['processor']}), "
        f"PostgreSQL {versions['postgresql']}, PgBouncer {versions['pgbouncer']}, "
        f"Python {versions['python']}. Caveats: {'; '.join(result['caveats'])}."
    )


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s"


def filled(readme: str, table: str) -> str:
    """Return the README with the table between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"README.md has no place for the storm: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="put the results into README.md")
    action.add_argument("--check", action="store_true", help="fail when README.md differs")
    arguments = parser.parse_args()
    old = README.read_text()
    new = filled(old, storm_table(json.loads(STORM.read_text())))
    if arguments.write:
        README.write_text(new)
    elif new != old:
        print(
            "README.md differs from benchmarks/results/storm.json: run make storm", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
