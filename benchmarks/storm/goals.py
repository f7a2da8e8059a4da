"""The goals of a storm, checked against its result; its controls must fail."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Result = dict[str, Any]

CONTROLS: Final = {"baseline": 0.5, "cached-direct": 0.2}
"""Rows that must fail, and the smallest share of failed requests."""

OURS: Final = ("lambda-pg", "lambda-pg-cold")
RAW: Final = "connect-through-pooler"
"""Raw psycopg through the same pooler. If it fails, it is no measure for the layer."""

FLAT: Final = 1.5
"""Highest ratio of a request's time with 500 environments to that with 50."""

KEPT: Final = 0.5
"""Highest ratio of a request's time on a kept connection to that on a new one."""

KEPT_UP: Final = 0.95
"""Smallest share of the offered load that must be answered."""

AGREE: Final = 0.25
"""Largest relative difference between the medians of two drivers."""

MOST_SECONDS: Final = 600.0

TO_RAW: Final = {"p50_ms": 0.7, "p99_ms": 0.8}
"""Highest ratio of a first request's time to that of raw psycopg through the same pooler.

Raw psycopg has the same cheap logins and fetches no secret (docs/decisions/0026).
"""

TWICE: Final = 2.2
"""Highest ratio of the p99 with 1,000 environments to that with 500."""

OTHERS: Final = 0.25
"""From this share of all processors on, other programs make the machine busy."""

WAITED: Final = 1 / 3
"""From this share of its time on, a process has waited too long for a processor."""

Verdict = Literal["held", "failed", "not measurable"]
VERDICTS: Final[dict[Verdict, str]] = {
    "held": "All goals were met",
    "failed": "Some goals were missed",
    "not measurable": "Not measurable here: failed requests got too little processor time",
}


@dataclass(frozen=True)
class Goal:
    """One goal, whether it was met (`held`), and the numbers.

    `unmeasured`: why a missed goal could not be measured on this machine; "" otherwise.
    """

    text: str
    held: bool
    found: str
    unmeasured: str = ""


def goals(result: Result) -> list[Goal]:
    """Check a result against the goals of all its parts."""
    found = [goal for row in result["rows"] for goal in _of_row(row, result["calibration"])]
    found += _of_second_requests(result["rows"], result["calibration"])
    found += _of_costs(result)
    if "open_loop" in result:
        found += _of_open_loop(result)
    if "second_driver" in result:
        found += _of_second_driver(result["second_driver"])
    if "planned" in result:
        found.append(_nothing_left_out(result))
    if "seconds" in result:
        seconds = result["seconds"]
        found.append(
            Goal("the run ends within 10 minutes", seconds <= MOST_SECONDS, f"{seconds:.0f} s")
        )
    return found


def shortfalls(result: Result) -> list[str]:
    """Name every goal that this result misses."""
    broken = [goal for goal in goals(result) if not goal.held and not goal.unmeasured]
    return [f"{goal.text}: {goal.found}" for goal in broken]


def unmeasured(result: Result) -> list[str]:
    """Name every missed goal that this machine had too little processor time for."""
    missed = [goal for goal in goals(result) if goal.unmeasured]
    return [f"{goal.text}: {goal.found}; {goal.unmeasured}" for goal in missed]


def verdict(found: Sequence[Goal]) -> Verdict:
    """Return the verdict on all goals together."""
    missed = [goal for goal in found if not goal.held]
    if not missed:
        return "held"
    return "not measurable" if all(goal.unmeasured for goal in missed) else "failed"


def without_a_processor(part: Result, calibration: Result) -> str:
    """Return why requests of a part got too little processor time, "" if they got enough.

    Both must be true. First: other programs used the processors, or this machine is too slow for
    the raw control. Second: environments waited for a processor for a good part of the checkout
    timeout, or a server of the cloud for a good part of the whole time. If no environment is left
    (they timed out), the first is enough.
    """
    busy, slow = part["others"] >= OTHERS, calibration["needed"] > calibration["most"]
    if not (busy or slow):
        return ""
    limit, seconds = calibration["limits"]["checkout"], part["seconds"]
    environment, server = part["waits"]["environment"], part["waits"]["server"]
    if environment is None:
        waited = "no environment is left"
    elif environment >= WAITED * limit:
        waited = f"environments waited {environment:.1f} s of {limit} s for a processor"
    elif server >= WAITED * seconds:
        waited = f"a server waited {server:.1f} s of {seconds:.1f} s for a processor"
    else:
        return ""
    control = (
        f"raw psycopg needed {calibration['seconds']:.1f} s for {calibration['requests']} requests "
        "in the calibration"
    )
    return f"other programs used {part['others']:.0%} of the processors; {waited}; {control}"


def _of_row(row: Result, calibration: Result) -> Iterator[Goal]:
    name = f"{row['name']} with {row['environments']} environments"
    if row["max_connections"] != 100:
        name += f" at max_connections {row['max_connections']}"
    failed = f"{row['failed']} of {row['requests']} failed"
    if row["name"] in CONTROLS:
        share = CONTROLS[row["name"]]
        held = row["failed"] >= share * row["requests"]
        yield Goal(f"{name}: the control fails at least {share:.0%}", held, failed)
    if row["name"] in (*OURS, RAW):
        causes = "".join(f"; {cause} ({count})" for cause, count in row["failures"].items())
        text = f"{name}: no request fails"
        yield Goal(text, _failed(row) == 0, failed + causes, _why(row, calibration))
    if row["name"] in OURS:
        peak, budget = row["peak_server_connections"], row["budget"]
        text = f"{name}: server connections stay within the budget of {budget}"
        yield Goal(text, peak <= budget, f"peak {peak}")


def ratios(rows: Sequence[Result]) -> dict[str, float]:
    """Return ratios of first requests: to raw psycopg's, and of the largest fleet to a smaller one.

    Medians over the runs of a row; a ratio whose rows are missing is left out.
    """
    found: dict[str, float] = {}
    sizes = {row["environments"]: row for row in rows if _plain(row, "lambda-pg")}
    raw = next((row for row in rows if _plain(row, RAW)), None)
    if raw and (ours := sizes.get(raw["environments"])):
        found |= {f"{key}_to_raw": _median(ours, key) / _median(raw, key) for key in TO_RAW}
    if {500, 1000} <= sizes.keys():
        found["p99_of_1000_to_500"] = _median(sizes[1000], "p99_ms") / _median(sizes[500], "p99_ms")
    return {name: round(ratio, 3) for name, ratio in found.items()}


def _of_costs(result: Result) -> Iterator[Goal]:
    rows, found = result["rows"], ratios(result["rows"])

    def goal(text: str, value: float, most: float, *of: tuple[str, int]) -> Goal:
        about = [row for row in rows for name, size in of if _plain(row, name, size)]
        whys = [_why(row, result["calibration"]) for row in about]
        held = value <= most
        return Goal(text, held, f"{value:.2f}", "" if held else next(filter(None, whys), ""))

    raw = [("lambda-pg", 500), (RAW, 500)]
    for key, most in TO_RAW.items():
        if (ratio := found.get(f"{key}_to_raw")) is not None:
            text = f"lambda-pg: {key[:3]} of first requests is at most {most} of raw psycopg's"
            yield goal(text, ratio, most, *raw)
    if (ratio := found.get("p99_of_1000_to_500")) is not None:
        text = f"lambda-pg: p99 with 1000 environments is at most {TWICE} times that with 500"
        yield goal(text, ratio, TWICE, ("lambda-pg", 1000), ("lambda-pg", 500))


def _plain(row: Result, name: str, environments: int | None = None) -> bool:
    """Whether a row has this name and size, and the usual max_connections."""
    size = environments in (None, row["environments"])
    return size and row["name"] == name and row["max_connections"] == 100


def _median(row: Result, key: str) -> float:
    return float(statistics.median(run[key] for run in row["runs"] or [row]))


def _failed(row: Result) -> int:
    return sum(run["failed"] for run in row.get("runs") or [row])


def _why(row: Result, calibration: Result) -> str:
    """Return why a missed goal of a row could not be measured, "" if it could."""
    return without_a_processor(row, calibration) if _failed(row) else ""


def _of_second_requests(rows: list[Result], calibration: Result) -> Iterator[Goal]:
    """Check the second requests: first ones log in, second ones use the kept connection."""
    found = {row["name"]: row["again"] for row in rows if row.get("again")}
    if not {"lambda-pg", "connect-through-pooler"} <= found.keys():
        return
    ours, control = found["lambda-pg"], found["connect-through-pooler"]
    failed = f"{ours['failed']} of {ours['requests']} failed"
    row = next(row for row in rows if row["again"] is ours)
    why = _why(row, calibration) if ours["failed"] else ""
    yield Goal("lambda-pg: no second request fails", ours["failed"] == 0, failed, why)
    text = f"lambda-pg: p50 of second requests is at most {KEPT} of that with a new connection"
    held = ours["p50_ms"] <= KEPT * control["p50_ms"]
    yield Goal(text, held, f"{ours['p50_ms']} ms and {control['p50_ms']} ms")


def _of_open_loop(result: Result) -> Iterator[Goal]:
    loop = result["open_loop"]
    sizes = {size["environments"]: size for size in loop["sizes"]}
    for size in sizes.values():
        name = f"open loop with {size['environments']} environments"
        why = _why(size, result["calibration"])
        failed = f"{size['failed']} failed"
        yield Goal(f"{name}: no request fails", size["failed"] == 0, failed, why)
        end = size["environments_at_end"]
        yield Goal(f"{name}: the fleet keeps its size", end == size["environments"], f"{end}")
        least = KEPT_UP * loop["offered_rps"]
        found = f"{size['rate']} of {loop['offered_rps']} requests/s"
        yield Goal(
            f"{name}: at least {KEPT_UP:.0%} of the load is answered", size["rate"] >= least, found
        )
    few, many = sizes[50]["p50_ms"], sizes[500]["p50_ms"]
    text = f"open loop: p50 with 500 environments is at most {FLAT} times that with 50"
    yield Goal(text, many <= FLAT * few, f"{many} ms and {few} ms")


def _of_second_driver(driver: Result) -> Iterator[Goal]:
    for row in driver["rows"]:
        for name, runs in row["runs"].items():
            wrong = [run for run in runs if not _agrees(run)]
            text = f"{row['name']} from {name}: served and failed equal the API's counts"
            yield Goal(text, not wrong, f"{len(wrong)} of {len(runs)} runs differ")
    (ours, theirs) = (next(_rows_of(driver, "lambda-pg"))[name] for name in ("ours", "locust"))
    counts = [(each["served"], each["failed"]) for each in (ours, theirs)]
    text = "lambda-pg: both drivers agree on served and failed"
    yield Goal(text, counts[0] == counts[1], f"{counts[0]} and {counts[1]}")
    apart = abs(theirs["p50_ms"] / ours["p50_ms"] - 1)
    text = f"lambda-pg: the drivers' p50 differ by at most {AGREE:.0%}"
    yield Goal(text, apart <= AGREE, f"{ours['p50_ms']} ms and {theirs['p50_ms']} ms")


def _agrees(run: Result) -> bool:
    return (run["served"], run["failed"]) == (run["api_served"], run["api_failed"])


def _rows_of(part: Result, name: str) -> Iterator[Result]:
    return (row for row in part["rows"] if row["name"] == name)


def _nothing_left_out(result: Result) -> Goal:
    missing = _missing(result["planned"], result["rows"])
    return Goal("every planned row is in the result", not missing, f"missing: {missing or 'none'}")


def _missing(planned: Iterable[Result], rows: Iterable[Result]) -> list[str]:
    keys = ("name", "environments", "start", "max_connections")
    there = [[row[key] for key in keys] for row in rows]
    wanted = [[row[key] for key in keys] for row in planned]
    return [" ".join(map(str, row)) for row in wanted if row not in there]
