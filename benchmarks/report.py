"""Write the tables of README.md from the committed results, or check that they agree."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"

Result = dict[str, Any]

STORM_TITLES = {
    "baseline": "a connection per request, straight to PostgreSQL",
    "cached-direct": "the layer without a pooler, straight to PostgreSQL",
    "connect-through-pooler": "no layer: a connection per request through PgBouncer",
    "psycopg_pool": "psycopg_pool with its check, through PgBouncer",
    "sqlalchemy": "SQLAlchemy with pre-ping, through PgBouncer",
    "lambda-pg": "**lambda-pg**: layer and PgBouncer",
    "lambda-pg-cold": "lambda-pg, real cold starts",
}
OVERHEAD_TITLES = {
    "raw": "psycopg, an open connection (raw)",
    "lambda-pg": "**lambda-pg**, with the invocation's deadline",
    "lambda-pg, invocation and all": "**lambda-pg**, binding the invocation included",
    "psycopg_pool": "psycopg_pool, its defaults",
    "psycopg_pool in autocommit": "psycopg_pool in autocommit",
    "psycopg_pool with check": "psycopg_pool with `check_connection`",
    "connect per request": "a connection per request",
    "claims: lambda-pg": "**lambda-pg** `execute(…, claims=…)`",
    "claims: raw in a transaction": "raw: `conn.transaction()`, `set_config`, statement",
}
COLD_START_TITLES = {
    "python": "Python alone",
    "floor": "psycopg, its credentials given (floor)",
    "lambda-pg": "**lambda-pg**, its secret fetched",
    "lambda-pg by boto3": "lambda-pg where only boto3 finds the keys",
    "boto3+psycopg_pool": "boto3 and psycopg_pool",
}


def storm_table(result: Result) -> str:
    """Draw the storm's rows as Markdown."""
    lines = [
        "| | environments | served | failed | p50 | p95 | p99 | max | peak server connections |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        times = " | ".join(_seconds(row[f"{name}_ms"]) for name in ("p50", "p95", "p99", "max"))
        lines.append(
            f"| {_title(row, result)} | {row['environments']} {row['start']} "
            f"| {row['served']} of {row['requests']} | {row['failed']} | {times} "
            f"| {row['peak_server_connections']} |"
        )
    causes = "; ".join(
        f"{count} times {cause}"
        for row in result["rows"]
        if row["name"] == "baseline"
        for cause, count in row["failures"].items()
    )
    caption = (
        f"`max_connections` {result['max_connections']}, budget {result['budget']} server "
        f"connections. The baseline's failures: {causes}. {origin(result)}"
    )
    return "\n".join([*lines, "", caption])


def _title(row: Result, result: Result) -> str:
    title, limit = STORM_TITLES[row["name"]], row.get("max_connections", result["max_connections"])
    return title if limit == result["max_connections"] else f"{title}, `max_connections` {limit}"


def overhead_table(result: Result) -> str:
    """Draw the ways of a warm lookup that have a title, with both paths side by side."""
    lines = [
        "| a warm lookup by primary key | direct, µs | to raw | PgBouncer, µs | to raw |",
        "|---|---:|---:|---:|---:|",
    ]
    cells: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        cell = f"{_short(row['median_us'])} | {row['ratio']:.2f}"
        cells.setdefault(row["name"], {})[row["path"]] = cell
    for name, title in OVERHEAD_TITLES.items():
        of_path = cells.get(name, {})
        paths = " | ".join(of_path.get(path, " | ") for path in ("direct", "pgbouncer"))
        lines.append(f"| {title} | {paths} |")
    caption = (
        f"Medians of {result['runs']} runs; more rows and the method are in "
        f"[benchmarks/results](benchmarks/results/). {origin(result)}"
    )
    return "\n".join([*lines, "", caption])


def cold_start_table(result: Result) -> str:
    """Draw each way to a first row, with its memory."""
    lines = [
        "| process start to first row | ms | to floor | memory, MiB RSS |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {COLD_START_TITLES[row['name']]} | {row['median_ms']:.0f} | {row['ratio']:.2f} "
        f"| {row['memory_mib']['rss']:.0f} |"
        for row in result["rows"]
    ]
    imports = ", ".join(f"`{name}` {ms:.0f} ms" for name, ms in result["imports_ms"].items())
    caption = f"Of it, imports: {imports} (psycopg included). {origin(result)}"
    return "\n".join([*lines, "", caption])


def origin(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    return (
        f"Measured {result['date'][:10]} by `{result['command']}` on {machine['cores']} cores "
        f"({machine['processor']}), PostgreSQL {versions['postgresql']}, "
        f"PgBouncer {versions['pgbouncer']}, Python {versions['python']}. "
        f"Caveats: {'; '.join(result['caveats'])}."
    )


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s"


def _short(microseconds: float) -> str:
    return f"{microseconds:.1f}" if microseconds < 100 else f"{microseconds:,.0f}"


@dataclass(frozen=True)
class Table:
    """A place in the README, the result it shows, and the command that makes both."""

    name: str
    command: str
    draw: Callable[[Result], str]

    @property
    def result(self) -> Path:
        """The committed result."""
        return RESULTS / f"{self.name}.json"

    @property
    def marks(self) -> tuple[str, str]:
        """The lines before and after the table."""
        return f"<!-- {self.name}: made by `{self.command}` -->", f"<!-- /{self.name} -->"

    def filled(self, readme: str) -> str:
        """Return the README with the table of the committed result."""
        return between(readme, self.marks, self.draw(json.loads(self.result.read_text())))


TABLES = (
    Table("storm", "make storm", storm_table),
    Table("overhead", "make bench", overhead_table),
    Table("cold_start", "make bench", cold_start_table),
)


def between(readme: str, marks: tuple[str, str], table: str) -> str:
    """Return the README with a table between two marks."""
    begin, end = marks
    before, found, rest = readme.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"README.md has no place for a table: {begin} … {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="put the results into README.md")
    action.add_argument("--check", action="store_true", help="fail when README.md differs")
    arguments = parser.parse_args()
    code = 0
    for table in TABLES:
        old = README.read_text()
        new = table.filled(old)
        if arguments.write:
            README.write_text(new)
        elif new != old:
            print(f"README.md differs from {table.result.name}: {table.command}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
