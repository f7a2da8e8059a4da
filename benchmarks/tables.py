"""Draw results as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    "floor, the layer's psycopg": "the layer's psycopg, its credentials given",
    "lambda-pg": "**lambda-pg**, its secret fetched",
    "lambda-pg by boto3": "lambda-pg where only boto3 finds the keys",
    "boto3+psycopg_pool": "boto3 and psycopg_pool",
}


CPU_TITLES = {
    "functions": "function",
    "pgbouncer": "PgBouncer",
    "postgresql": "PostgreSQL",
    "daemon": "front end and Runtime API",
    "control_plane": "control plane",
    "balancer": "balancer",
    "load": "load",
}
"""The parts of which processor time is shown, in this order; a result may not have all of it."""

TIMES = "| p50 | p95 | p99 | max"
TO_FIRST = "| p50, ms | to the first | p95 | p99"
AGAIN = "| p50 of a second request"
PEAKS = f"| p50 of each run {AGAIN} | peak server connections"


def storm_table(result: Result) -> str:
    """Draw the rows of the size that all ways were measured at, the largest, and the cold one."""
    largest = max(row["environments"] for row in result["rows"])
    shown = [*compared(result)]
    shown += [
        row
        for row in result["rows"]
        if row not in shown and (row["environments"] == largest or row["start"] == "cold")
    ]
    lines = [
        f"| | environments | served | failed | p50 | p95 | p99 | max {AGAIN} | peak connections |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {_title(row, result)} | {row['environments']} {row['start']} "
        f"| {row['served']} of {row['requests']} | {row['failed']} | {_times(row)} "
        f"| {_again(row)} | {row['peak_server_connections']} |"
        for row in shown
    ]
    caption = (
        f"`max_connections` {result['max_connections']}, budget {result['budget']} server "
        f"connections. {origin(result)}"
    )
    return "\n".join([*lines, "", caption])


def compared(result: Result) -> list[Result]:
    """Return the rows that differ from the baseline's in nothing but how they connect."""
    baseline = next(row for row in result["rows"] if row["name"] == "baseline")
    size = ("environments", "max_connections", "start")
    return [row for row in result["rows"] if all(row[key] == baseline[key] for key in size)]


def whole_storm_table(result: Result) -> str:
    """Draw every row with everything that was measured of it."""
    parts = _cpu_parts(result["rows"][0]["cpu"])
    lines = [
        f"| | environments | served | failed | a second {TIMES} {PEAKS} {_cpu_head(parts)}",
        "|---|" + "---:|" * (11 + len(parts)),
    ]
    for row in result["rows"]:
        cpu = " | ".join(f"{1000 * row['cpu'][part] / row['requests']:.1f}" for part in parts)
        lines.append(
            f"| {_title(row, result)} | {row['environments']} {row['start']} | {row['served']} "
            f"| {row['failed']} | {row['throughput_rps']:.0f} | {_times(row)} "
            f"| {', '.join(_seconds(run['p50_ms']) for run in row['runs'])} | {_again(row)} "
            f"| {row['peak_server_connections']} | {cpu} |"
        )
    return "\n".join([*lines, "", f"{result['method']} {origin(result)}"])


def causes_table(result: Result) -> str:
    """Draw why requests failed, for the rows in which any did."""
    lines = ["| | failed | causes |", "|---|---:|---|"]
    for row in result["rows"]:
        if row["failed"]:
            causes = "; ".join(f"{count} times {cause}" for cause, count in row["failures"].items())
            lines.append(f"| {_title(row, result)} | {row['failed']} | {causes} |")
    return "\n".join(lines)


def growth_table(result: Result) -> str:
    """Draw what a request costs as the same load spreads over a growing fleet."""
    loop = result["open_loop"]
    parts = _cpu_parts(loop["sizes"][0]["cpu_ms"])
    lines = [
        f"| environments | requests | failed | a second {TO_FIRST} {_cpu_head(parts)}",
        "|---:|" + "---:|" * (7 + len(parts)),
    ]
    for size, growth in zip(loop["sizes"], loop["growth"], strict=True):
        cpu = " | ".join(f"{size['cpu_ms'][part]:.2f}" for part in parts)
        lines.append(
            f"| {size['environments']} | {size['requests']} | {size['failed']} | {size['rate']} "
            f"| {size['p50_ms']} | {growth['p50']:.2f} | {size['p95_ms']} | {size['p99_ms']} "
            f"| {cpu} |"
        )
    caption = (
        f"{loop['offered_rps']} requests a second arrive as independent callers' do (seed "
        f"{loop['seed']}): half of what 50 environments answer at most. Medians over "
        f"{len(loop['measures']) // len(loop['sizes'])} rounds, in which the sizes take turns."
    )
    return "\n".join([*lines, "", caption])


def second_driver_table(result: Result) -> str:
    """Draw the same storms as two load generators saw them."""
    drivers = result["second_driver"]
    names = {"ours": "ours", "locust": f"{drivers['name']} {drivers['version']}"}
    lines = [
        "| | driver | served | failed | p50 | p95 | p99 | max |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in drivers["rows"]:
        for key, name in names.items():
            lines += [
                f"| {STORM_TITLES[row['name']]} | {name} | {run['served']} | {run['failed']} "
                f"| {_times(run)} |"
                for run in row["runs"][key]
            ]
    return "\n".join(lines)


def goals_table(result: Result) -> str:
    """Draw what was promised, and what was found."""
    lines = ["| goal | found | |", "|---|---|---|"]
    lines += [f"| {goal['text']} | {goal['found']} | {_kept(goal)} |" for goal in result["goals"]]
    return "\n".join(lines)


def _kept(goal: Result) -> str:
    if goal["held"]:
        return "held"
    why = goal.get("unmeasured")
    return f"not measurable: {why}" if why else "**missed**"


def _cpu_parts(cpu: Mapping[str, float]) -> list[str]:
    return [part for part in CPU_TITLES if part in cpu]


def _cpu_head(parts: Sequence[str]) -> str:
    """Write the heads of the columns of processor time."""
    return f"| CPU ms a request: {' | '.join(CPU_TITLES[part] for part in parts)} |"


def _title(row: Result, result: Result) -> str:
    title, limit = STORM_TITLES[row["name"]], row["max_connections"]
    return title if limit == result["max_connections"] else f"{title}, `max_connections` {limit}"


def _again(row: Result) -> str:
    """Say how long a second request took, and what failed of them."""
    again = row["again"]
    if again is None:
        return ""
    return _seconds(again["p50_ms"]) + (f", {again['failed']} failed" if again["failed"] else "")


def _times(row: Result) -> str:
    return " | ".join(_seconds(row[f"{name}_ms"]) for name in ("p50", "p95", "p99", "max"))


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s"


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


def logins_table(result: Result) -> str:
    """Draw what a login costs, PgBouncer's part and the client's."""
    lines = ["| a login | whose time | ms | ratio | to |", "|---|---|---:|---:|---|"]
    lines += [
        f"| {row['name']} | {row['whose']} | {row['median_ms']:.2f} | {row['ratio']:.2f} "
        f"| {row['base']} |"
        for row in result["rows"]
    ]
    return "\n".join([*lines, "", f"{result['method']} {origin(result)}"])


def first_request_table(result: Result) -> str:
    """Draw the client's processor time of a first request by each way."""
    lines = ["| a first request by | CPU, ms | to raw |", "|---|---:|---:|"]
    lines += [
        f"| {row['name']} | {row['median_ms']:.2f} | {row['ratio']:.2f} |" for row in result["rows"]
    ]
    return "\n".join([*lines, "", f"{result['method']} {origin(result)}"])


def whole_request_table(result: Result) -> str:
    """Draw the processor time of everything that takes part in a first request."""
    lines = ["| part | version | CPU, ms | to before |", "|---|---|---:|---:|"]
    lines += [
        f"| {row['part']} | {row['name']} | {row['median_ms']:.1f} | {row['ratio']:.2f} |"
        for row in result["rows"]
    ]
    return "\n".join([*lines, "", f"{result['method']} {origin(result)}"])


def origin(result: Result) -> str:
    """Say where, when and with what a result was measured."""
    machine, versions = result["machine"], result["versions"]
    return (
        f"Measured {result['date'][:10]} by `{result['command']}` on {machine['cores']} cores "
        f"({machine['processor']}), PostgreSQL {versions['postgresql']}, "
        f"PgBouncer {versions['pgbouncer']}, Python {versions['python']}. "
        f"Caveats: {'; '.join(result['caveats'])}."
    )


def _short(microseconds: float) -> str:
    return f"{microseconds:.1f}" if microseconds < 100 else f"{microseconds:,.0f}"


# Chaos

KINDS = ("reads", "writes", "notes")
HEAD = (
    "| fault | lasted | requests | failed: reads, writes, notes | unknown: writes, notes "
    "| longest gap "
    "| back after | acknowledged | lost | duplicated |"
)
CRASHES_HEAD = (
    "| crash | path | flush | crashes | acknowledged | unknown | lost | duplicated "
    "| lost by the control |"
)


def chaos_table(result: Result) -> str:
    """Draw one line for each row, and what they were measured on."""
    lines = [HEAD, "|---|" + "---:|" * 9]
    lines += [_line(row) for row in result["rows"]]
    control = result["control"]
    caption = (
        f"{result['clients']} clients, checkout timeout {result['checkout_timeout']} s, seed "
        f"{result['seed']} of the random sequence. The control ({control['name']}) failed "
        f"{control['failed']} of {control['requests']} requests.{_herd(result)} {origin(result)}"
    )
    return "\n".join([*lines, "", caption])


def _herd(result: Result) -> str:
    """Say how many connections came in one second, where they were counted."""
    return "".join(
        f" {row['title']}: at most {row['client_connects']} client and {row['server_connects']} "
        f"server connections were opened in one second; allowed are "
        f"{row['goal']['client_connects']} and {row['goal']['server_connects']}."
        for row in result["rows"]
        if row["goal"]["client_connects"] is not None
    )


def crashes_table(result: Result) -> str:
    """Draw one line for each kind of crash on each path."""
    lines = [CRASHES_HEAD, "|---|---|---|" + "---:|" * 6]
    for row in result["crashes"]:
        layer, control = row["layer"], row["control"]
        lines.append(
            f"| {row['kind']} | {row['path']} | {row['flush']} | {row['crashes']} "
            f"| {layer['acknowledged']:,} | {layer['unknown']} | {layer['lost']} "
            f"| {layer['duplicated']} | {control['lost']} of {control['acknowledged']:,} |"
        )
    return "\n".join([*lines, "", origin(result)])


def recovery_table(result: Result) -> str:
    """Draw one line for each fleet that logs in at once, the control last."""
    header = (
        "| layer | environments | of a core | without a pooler | logins alone | promised "
        "| all served after | busy |"
    )
    lines = [
        header,
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["recovery"]["rows"]:
        layer = "as it is" if row["policy"] == "kept" else "control: throws logins away"
        served = f"{row['recovered']} s" if row["recovered"] is not None else "not in time"
        lines.append(
            f"| {layer} | {row['environments']} | {row['share']} | {row['away']:.0f} s "
            f"| {row['logins_alone']} s | {row['promised']} s | {served} | {row['busy']} |"
        )
    return "\n".join([*lines, "", origin(result)])


def chaos_summary(result: Result) -> str:
    """Say in a few lines what all faults together came to."""
    rows = result["rows"]
    sums = {
        key: sum(row[key] for row in rows)
        for key in ("requests", "acknowledged", "lost", "duplicated")
    }
    unknown = sum(row["unknown_writes"] + row["unknown_notes"] for row in rows)
    harm = ("unknown_notes", *(f"failed_{kind}" for kind in KINDS))
    unharmed = [row for row in rows if not any(row[key] for key in harm)]
    return (
        f"{len(rows)} rows of faults (kills, replacements, restarts, outages, rotations, stalls, "
        f"lost packets, frozen environments …) under {sums['requests']:,} requests, "
        f"{len(unharmed)} of them without a failed request: {sums['acknowledged']:,} writes "
        f"acknowledged, **{sums['lost']} lost, {sums['duplicated']} duplicated**, "
        f"{unknown} reported as unknown. The control, a connection per "
        f"request, failed {result['control']['failed']} of {result['control']['requests']} "
        f"requests while PostgreSQL was restarted and away. {_crashes(result)} {origin(result)}"
    )


def _crashes(result: Result) -> str:
    """Say what became of commits of one statement while the server crashed."""
    rows = result["crashes"]
    acknowledged, lost = (
        sum(row["layer"][key] for row in rows) for key in ("acknowledged", "lost")
    )
    return (
        f"Of {acknowledged:,} commits under {sum(row['crashes'] for row in rows)} crashes of "
        f"PostgreSQL **{lost} were lost**; a layer that believes `pg_xact_status` after a crash "
        f"lost {sum(row['control']['lost'] for row in rows)}."
    )


def _failed(row: Result) -> tuple[int, int, int]:
    """Count reads, writes and notes that failed; those of unknown outcome are shown beside them."""
    writes = row["failed_writes"] - row["unknown_writes"]
    return row["failed_reads"], writes, row["failed_notes"]


def _line(row: Result) -> str:
    failed = ", ".join(str(count) for count in _failed(row))
    title = f"**{row['title']}: missed**" if row["missed"] else row["title"]
    back = "never" if row["recovery"] is None else f"{row['recovery']:.2f} s"
    return (
        f"| {title} | {row['ended'] - row['began']:.1f} s | {row['requests']} | {failed} "
        f"| {row['unknown_writes']}, {row['unknown_notes']} | {row['longest_gap']:.2f} s | {back} "
        f"| {row['acknowledged']} | {row['lost']} | {row['duplicated']} |"
    )
