"""Draw results as Markdown: tables, and lists of what a reader must know about them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = dict[str, Any]

STORM_TITLES = {
    "baseline": "a connection per request, straight to PostgreSQL",
    "cached-direct": "the layer without a pooler, straight to PostgreSQL",
    "connect-through-pooler": "a connection per request, through PgBouncer",
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
    "floor": "psycopg, with given credentials (floor)",
    "floor, the layer's psycopg": "the layer's psycopg, with given credentials",
    "lambda-pg": "**lambda-pg**, fetching its secret",
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
"""The parts that use processor time, in the order of the tables; a result may lack some."""
TIMES = ("p50", "p95", "p99", "max")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, texts: int = 1) -> str:
    """Draw a table; the first `texts` columns have text, the others numbers."""
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, rule, *rows))


def notes(result: Result, *facts: str) -> str:
    """List facts, then what a result was measured on, and its caveats."""
    machine, versions = result["machine"], result["versions"]
    lines = [
        *facts,
        (
            f"Measured {result['date'][:10]} by `{result['command']}` on {machine['cores']} cores "
            f"({machine['processor']}): PostgreSQL {versions['postgresql']}, "
            f"PgBouncer {versions['pgbouncer']}, Python {versions['python']}."
        ),
        *(f"Caveat: {caveat}." for caveat in result["caveats"]),
    ]
    return "\n".join(f"- {line}" for line in lines)


def method(result: Result) -> list[str]:
    """Return how a result was measured, as sentences."""
    return re.split(r"(?<=\.) (?=\w)", result["method"])


def for_terminal(markdown: str) -> str:
    """Align the columns of tables, and leave out the marks for bold text and code."""
    plain = re.sub(r"\*\*|`", "", markdown)
    return re.sub(r"(?m)(^\|.*\|$\n?)+", lambda found: _aligned(found[0]), plain)


def _aligned(markdown: str) -> str:
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in markdown.splitlines()]
    head, rule, *rows = lines
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "".join(
        "  ".join(
            cell.rjust(width) if mark.endswith(":") else cell.ljust(width)
            for cell, width, mark in zip(line, widths, rule, strict=True)
        ).rstrip()
        + "\n"
        for line in (head, ["-" * width for width in widths], *rows)
    )


# Storm


def storm_table(result: Result) -> str:
    """Draw what became of the requests of every row."""
    head = [
        "",
        "environments",
        "served",
        "failed",
        *TIMES,
        "p50 of a second request",
        "peak server connections",
    ]
    rows = [
        [
            _title(row, result),
            f"{row['environments']} {row['start']}",
            f"{row['served']} of {row['requests']}",
            row["failed"],
            *_times(row),
            _second_request(row),
            row["peak_server_connections"],
        ]
        for row in result["rows"]
    ]
    limits = (
        f"`max_connections` is {result['max_connections']}, the budget {result['budget']} server "
        "connections, unless a row says otherwise."
    )
    return f"{table(head, rows)}\n\n{notes(result, limits)}"


def compared(result: Result) -> list[Result]:
    """Return the rows that differ from the baseline's only in how they connect."""
    baseline = next(row for row in result["rows"] if row["name"] == "baseline")
    size = ("environments", "max_connections", "start")
    return [row for row in result["rows"] if all(row[key] == baseline[key] for key in size)]


def storm_cost_table(result: Result) -> str:
    """Draw the processor time of a request in every row, and the median of each run."""
    parts = _cpu_parts(result["rows"][0]["cpu"])
    head = ["", "environments", "requests/s", "p50 of each run", *_cpu_head(parts)]
    rows = [
        [
            _title(row, result),
            f"{row['environments']} {row['start']}",
            f"{row['throughput_rps']:.0f}",
            ", ".join(_seconds(run["p50_ms"]) for run in row["runs"]),
            *(f"{1000 * row['cpu'][part] / row['requests']:.1f}" for part in parts),
        ]
        for row in result["rows"]
    ]
    return table(head, rows)


def causes_table(result: Result) -> str:
    """Draw why requests failed, for the rows in which any failed."""
    rows = [
        [
            _title(row, result),
            "; ".join(f"{cause} ({count})" for cause, count in row["failures"].items()),
            row["failed"],
        ]
        for row in result["rows"]
        if row["failed"]
    ]
    return table(["", "causes", "failed"], rows, texts=2)


def growth_table(result: Result) -> str:
    """Draw what a request costs as the same load spreads over a growing fleet."""
    loop = result["open_loop"]
    parts = _cpu_parts(loop["sizes"][0]["cpu_ms"])
    head = ["environments", "requests", "failed", "requests/s", "p50, ms", "to the first"]
    rows = [
        [
            *(size[key] for key in ("environments", "requests", "failed", "rate", "p50_ms")),
            f"{growth['p50']:.2f}",
            size["p95_ms"],
            size["p99_ms"],
            *(f"{size['cpu_ms'][part]:.2f}" for part in parts),
        ]
        for size, growth in zip(loop["sizes"], loop["growth"], strict=True)
    ]
    facts = (
        (
            f"Load: {loop['offered_rps']} requests/s at random moments (seed {loop['seed']}), half "
            f"of what {loop['sizes'][0]['environments']} environments answer at most."
        ),
        f"Medians over {len(loop['measures']) // len(loop['sizes'])} rounds of all sizes.",
    )
    drawn = table([*head, "p95, ms", "p99, ms", *_cpu_head(parts)], rows, texts=0)
    return "\n".join([drawn, "", *(f"- {fact}" for fact in facts)])


def second_driver_table(result: Result) -> str:
    """Draw the same storms as two load generators saw them."""
    drivers = result["second_driver"]
    names = {"ours": "ours", "locust": f"{drivers['name']} {drivers['version']}"}
    rows = [
        [STORM_TITLES[row["name"]], name, run["served"], run["failed"], *_times(run)]
        for row in drivers["rows"]
        for key, name in names.items()
        for run in row["runs"][key]
    ]
    return table(["", "driver", "served", "failed", *TIMES], rows, texts=2)


def goals_table(result: Result) -> str:
    """Draw what was promised, and what was found."""
    rows = [[goal["text"], goal["found"], _verdict(goal)] for goal in result["goals"]]
    return table(["goal", "found", "verdict"], rows, texts=3)


def _verdict(goal: Result) -> str:
    if goal["held"]:
        return "met"
    why = goal.get("unmeasured")
    return f"not measurable: {why}" if why else "**missed**"


def _cpu_parts(cpu: Mapping[str, float]) -> list[str]:
    return [part for part in CPU_TITLES if part in cpu]


def _cpu_head(parts: Sequence[str]) -> list[str]:
    """Name the columns of processor time."""
    first, *others = (CPU_TITLES[part] for part in parts)
    return [f"CPU ms per request: {first}", *others]


def _title(row: Result, result: Result) -> str:
    title, limit = STORM_TITLES[row["name"]], row["max_connections"]
    return title if limit == result["max_connections"] else f"{title}, `max_connections` {limit}"


def _second_request(row: Result) -> str:
    """Write the median of second requests, and how many failed."""
    again = row["again"]
    if again is None:
        return ""
    return _seconds(again["p50_ms"]) + (f", {again['failed']} failed" if again["failed"] else "")


def _times(row: Result) -> list[str]:
    return [_seconds(row[f"{name}_ms"]) for name in TIMES]


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s"


# Costs


def overhead_table(result: Result) -> str:
    """Draw the ways of a warm lookup that have a title, with both paths side by side."""
    head = ["a warm lookup by primary key", "direct, µs", "to raw", "PgBouncer, µs", "to raw"]
    medians = f"Medians of {result['runs']} runs."
    drawn = table(head, _of_both_paths(result, OVERHEAD_TITLES))
    return f"{drawn}\n\n{notes(result, medians, *method(result))}"


def sql_table(result: Result) -> str:
    """Draw the calls of `POST /sql` and their bases, with both paths side by side."""
    names = {row["name"]: row["name"] for row in result["rows"]}
    head = ["a call", "direct, µs", "to its base", "PgBouncer, µs", "to its base"]
    cold, refused = result["cold_start"], result["refused"]
    medians = f"Medians of {result['runs']} runs."
    start = (
        f"A cold start: `sql` {cold['sql_ms']:.0f} ms, `health` {cold['health_ms']:.0f} ms, ratio "
        f"{cold['ratio']:.2f}, medians of {cold['starts']} starts."
    )
    memory = (
        "While a result of 1 GB is refused, the process needs "
        f"{refused['direct']:.2f} (direct) and {refused['pgbouncer']:.2f} (PgBouncer) times the "
        "limit of an answer as additional memory."
    )
    drawn = table(head, _of_both_paths(result, names))
    return f"{drawn}\n\n{notes(result, medians, start, memory, *method(result))}"


def sql_request_table(result: Result) -> str:
    """Draw `POST /sql` beside `GET /users/{id}`, both through the API."""
    rows = [
        [f"`{row['name']}`", f"{row['median_ms']:.2f}", f"{row['ratio']:.2f}"]
        for row in result["rows"]
    ]
    drawn = table(["a request through the API", "ms", "to GET"], rows)
    return f"{drawn}\n\n{notes(result, *method(result))}"


def mutations_table(result: Result) -> str:
    """Draw the writes of `users`, with both paths side by side and the round trips of each."""
    names = {row["name"]: row["name"] for row in result["rows"]}
    trips = {row["name"]: row["round_trips"] for row in result["rows"]}
    head = ["a write", "direct, µs", "to before", "PgBouncer, µs", "to before", "round trips"]
    medians = f"Medians of {result['runs']} runs."
    drawn = table(head, [[*line, trips[line[0]]] for line in _of_both_paths(result, names)])
    return f"{drawn}\n\n{notes(result, medians, *method(result))}"


def _of_both_paths(result: Result, titles: Mapping[str, str]) -> list[list[str]]:
    """Return a line for each title: the times and ratios of its row on both paths."""
    cells: dict[str, dict[str, list[str]]] = {}
    for row in result["rows"]:
        cell = [_microseconds(row["median_us"]), f"{row['ratio']:.2f}"]
        cells.setdefault(row["name"], {})[row["path"]] = cell
    return [
        [title, *(cell for path in ("direct", "pgbouncer") for cell in of_path.get(path, ["", ""]))]
        for name, title in titles.items()
        for of_path in [cells.get(name, {})]
    ]


def _microseconds(number: float) -> str:
    return f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def cold_start_table(result: Result) -> str:
    """Draw each way to a first row, with its memory."""
    rows = [
        [
            COLD_START_TITLES[row["name"]],
            f"{row['median_ms']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['memory_mib']['rss']:.0f}",
        ]
        for row in result["rows"]
    ]
    drawn = table(["process start to first row", "ms", "to floor", "memory, MiB RSS"], rows)
    times = ", ".join(f"`{name}` {ms:.0f} ms" for name, ms in result["imports_ms"].items())
    imports = f"Imports are a part of it: {times} (psycopg included)."
    return f"{drawn}\n\n{notes(result, imports, *method(result))}"


def logins_table(result: Result) -> str:
    """Draw what a login costs, PgBouncer's part and the client's."""
    rows = [
        [
            *(row["name"], row["whose"], row["base"]),
            *(f"{row['median_ms']:.2f}", f"{row['ratio']:.2f}"),
        ]
        for row in result["rows"]
    ]
    drawn = table(["a login", "CPU time of", "compared with", "ms", "ratio"], rows, texts=3)
    return f"{drawn}\n\n{notes(result, *method(result))}"


def first_request_table(result: Result) -> str:
    """Draw the client's processor time of a first request by each way."""
    rows = [
        [row["name"], f"{row['median_ms']:.2f}", f"{row['ratio']:.2f}"] for row in result["rows"]
    ]
    drawn = table(["a first request by", "CPU, ms", "to raw"], rows)
    return f"{drawn}\n\n{notes(result, *method(result))}"


def one_key_table(result: Result) -> str:
    """Draw the latencies of other users with and without fifty requests with one key."""
    rows = [
        [
            row["name"],
            *(f"{row[f'{cut}_ms']:.1f}" for cut in ("p50", "p95", "p99")),
            f"{row['ratio']:.2f}",
            f"{row['failed']} of {row['requests']}",
        ]
        for row in result["rows"]
    ]
    head = ["requests of other users", "p50, ms", "p95, ms", "p99, ms", "p95 to without", "failed"]
    return f"{table(head, rows)}\n\n{notes(result, *method(result))}"


def whole_request_table(result: Result) -> str:
    """Draw the processor time of everything that takes part in a first request."""
    rows = [
        [row["part"], row["name"], f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}"]
        for row in result["rows"]
    ]
    drawn = table(["part", "version", "CPU, ms", "to before"], rows, texts=2)
    return f"{drawn}\n\n{notes(result, *method(result))}"


# Chaos

CHAOS_HEAD = (
    "fault",
    "lasted",
    "requests",
    "failed: reads, writes, notes",
    "unknown: writes, notes",
    "longest gap",
    "first success after",
    "acknowledged",
    "lost",
    "duplicated",
)
CRASHES_HEAD = (
    "crash",
    "path",
    "flush",
    "crashes",
    "acknowledged",
    "unknown",
    "lost",
    "duplicated",
    "lost by the control",
)
ONCE_HEAD = (
    "changes with keys",
    "orders",
    "sends",
    "answers lost after COMMIT",
    "acknowledged",
    "lost",
    "twice",
    "answers that differ",
)
STRIKES_HEAD = ("strikes", "before COMMIT", "in COMMIT", "after COMMIT", "too late")
ONCE_TITLES = {
    "lambda-pg": "**lambda-pg**",
    "control": "control: the table forgets every key",
}
RECOVERY_HEAD = (
    "layer",
    "environments",
    "pooler's share of a core",
    "outage",
    "all logins alone",
    "limit",
    "all served after",
    "slowdown",
)


def chaos_table(result: Result) -> str:
    """Draw each fault, the control, and what they were measured on."""
    control = result["control"]
    facts = (
        (
            f"{result['clients']} clients, checkout timeout {result['checkout_timeout']} s, seed "
            f"{result['seed']} of the random sequence."
        ),
        (
            f"Control ({control['name']}): {control['failed']} of {control['requests']} requests "
            "failed."
        ),
        *_connects(result),
    )
    return f"{table(CHAOS_HEAD, map(_fault, result['rows']))}\n\n{notes(result, *facts)}"


def _connects(result: Result) -> list[str]:
    """Say how many connections came in one second, where they were limited."""
    return [
        f"Connections opened in one second ({row['title']}): at most {row['client_connects']} "
        f"client and {row['server_connects']} server connections; the limits are "
        f"{row['goal']['client_connects']} and {row['goal']['server_connects']}."
        for row in result["rows"]
        if row["goal"]["client_connects"] is not None
    ]


def _fault(row: Result) -> list[object]:
    writes = row["failed_writes"] - row["unknown_writes"]  # unknown ones have a column
    return [
        f"**{row['title']}: missed**" if row["missed"] else row["title"],
        f"{row['ended'] - row['began']:.1f} s",
        row["requests"],
        f"{row['failed_reads']}, {writes}, {row['failed_notes']}",
        f"{row['unknown_writes']}, {row['unknown_notes']}",
        f"{row['longest_gap']:.2f} s",
        "never" if row["recovery"] is None else f"{row['recovery']:.2f} s",
        *(row[key] for key in ("acknowledged", "lost", "duplicated")),
    ]


def crashes_table(result: Result) -> str:
    """Draw each kind of crash on each path, and what all of them came to."""
    rows = [
        [
            *(row[key] for key in ("kind", "path", "flush", "crashes")),
            f"{row['layer']['acknowledged']:,}",
            *(row["layer"][key] for key in ("unknown", "lost", "duplicated")),
            f"{row['control']['lost']} of {row['control']['acknowledged']:,}",
        ]
        for row in result["crashes"]
    ]
    layer = [row["layer"] for row in result["crashes"]]
    summary = (
        f"{sum(row['crashes'] for row in result['crashes'])} crashes: of "
        f"{sum(row['acknowledged'] for row in layer):,} acknowledged commits "
        f"**{sum(row['lost'] for row in layer)} were lost**."
    )
    control = (
        "Control (a layer that trusts `pg_xact_status` after a crash): "
        f"{sum(row['control']['lost'] for row in result['crashes'])} commits were lost."
    )
    return f"{table(CRASHES_HEAD, rows, texts=3)}\n\n- {summary}\n- {control}"


def recovery_table(result: Result) -> str:
    """Draw each fleet that logs in at once, the control last."""
    rows = [
        [
            "lambda-pg" if row["policy"] == "kept" else "control: discards unfinished logins",
            row["environments"],
            row["share"],
            f"{row['away']:.0f} s",
            f"{row['logins_alone']} s",
            f"{row['promised']} s",
            "not in time" if row["recovered"] is None else f"{row['recovered']} s",
            row["busy"],
        ]
        for row in result["recovery"]["rows"]
    ]
    return f"{table(RECOVERY_HEAD, rows)}\n\n{notes(result)}"


def once_table(result: Result) -> str:
    """Draw changes with keys and their control, and what was cut off and killed meanwhile."""
    rows = [
        [
            ONCE_TITLES[row["name"]],
            *(row[key] for key in ("orders", "sends", "lost_answers", "acknowledged")),
            *(row[key] for key in ("lost", "twice")),
            row["unequal"] + row["untrue"],
        ]
        for row in result["rows"]
    ]
    measured = result["rows"][0]
    statuses = ", ".join(
        f"{count} {'without an answer' if status == '0' else status}"
        for status, count in measured["statuses"].items()
    )
    facts = (
        f"{result['clients']} clients, seed {result['seed']} of orders and strikes.",
        f"What the sends of lambda-pg came to: {statuses}.",
    )
    drawn = f"{table(ONCE_HEAD, rows)}\n\n{_strikes(measured)}"
    return f"{drawn}\n\n{notes(result, *facts)}"


def _strikes(row: Result) -> str:
    """Draw what was done in which phase of a transaction."""
    struck: dict[str, dict[str, int]] = {}
    for each in row["strikes"]:
        of_action = struck.setdefault(each["action"], {"missed": 0})
        of_action[each["phase"]] = each["struck"]
        of_action["missed"] += each["missed"]
    phases = ("before", "in", "after", "missed")
    rows = [[action, *(found.get(p, 0) for p in phases)] for action, found in struck.items()]
    return table(STRIKES_HEAD, rows)
