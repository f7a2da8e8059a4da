"""Draw the results in short, for the first screen of the README."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables import STORM_TITLES, compared, table

Result = dict[str, Any]

STORM_ROWS = ("baseline", "connect-through-pooler", "lambda-pg")
"""Neither pooler nor layer, the pooler alone, and both."""


def storm_summary(result: Result) -> str:
    """Draw what became of as many requests without the pooler, without the layer, and with both."""
    rows = {row["name"]: row for row in compared(result)}
    environments = rows["baseline"]["environments"]
    head = [
        f"{environments} environments, one request each, at once",
        "served",
        "second request, p50",
        "peak server connections",
    ]
    return table(
        head,
        [
            [
                STORM_TITLES[name],
                f"{row['served']} of {row['requests']}",
                f"{row['again']['p50_ms'] / 1000:.2f} s" if row["again"] else "not measured",
                row["peak_server_connections"],
            ]
            for name, row in ((name, rows[name]) for name in STORM_ROWS)
        ],
    )


def chaos_summary(result: Result) -> str:
    """Say what all faults together came to."""
    rows = result["rows"]
    requests, acknowledged, lost, duplicated = (
        sum(row[key] for row in rows) for key in ("requests", "acknowledged", "lost", "duplicated")
    )
    unharmed = sum(not any(row[key] for key in FAILURES) for row in rows)
    return (
        f"{len(rows)} fault scenarios, {requests:,} requests; in {unharmed} scenarios no request "
        f"failed. Of {acknowledged:,} acknowledged writes **{lost} were lost** and {duplicated} "
        "duplicated."
    )


FAILURES = ("failed_reads", "failed_writes", "failed_notes", "unknown_notes")
"""The counts of requests without success: `failed_writes` includes those of unknown outcome."""


def cost_summary(overhead: Result, cold_start: Result) -> str:
    """Say what a warm and a cold invocation cost, compared with bare psycopg."""
    warm = _ratio(
        row
        for row in overhead["rows"]
        if (row["name"], row["path"]) == ("lambda-pg, invocation and all", "pgbouncer")
    )
    cold = _ratio(row for row in cold_start["rows"] if row["name"] == "lambda-pg")
    return (
        f"Compared with bare psycopg, a warm lookup takes **{warm:.2f}** times as long. A cold "
        f"start, up to its first row, takes {cold:.2f} times as long."
    )


def _ratio(rows: Iterable[Result]) -> float:
    return float(next(iter(rows))["ratio"])


def claims(chaos: Result, overhead: Result, cold_start: Result) -> str:
    """List what faults and invocations came to."""
    return f"- {chaos_summary(chaos)}\n- {cost_summary(overhead, cold_start)}"
