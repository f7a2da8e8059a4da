"""What a storm promises, held against its result; that its controls fail is a promise too."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

Result = dict[str, Any]

CONTROLS: Final = {"baseline": 0.5, "cached-direct": 0.2}
"""Rows that have to fail, and the share of their requests that has to."""

OURS: Final = ("lambda-pg", "lambda-pg-cold")
FLAT: Final = 1.5
"""How much longer a request may take with 500 environments than with 50."""

KEPT: Final = 0.5
"""The share of the time of a request with a new connection that one on a kept one may take."""

KEPT_UP: Final = 0.95
"""The share of the offered load that has to be answered."""

AGREE: Final = 0.25
"""How far the medians of two drivers may be apart."""

MOST_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Goal:
    """One promise, whether it was kept, and the numbers."""

    text: str
    held: bool
    found: str


def goals(result: Result) -> list[Goal]:
    """Hold a result against all promises that its parts are about."""
    found = [goal for row in result["rows"] for goal in _of_row(row)]
    found += _of_second_requests(result["rows"])
    if "open_loop" in result:
        found += _of_open_loop(result["open_loop"])
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
    """Name every promise that this result breaks; none is a passed run."""
    return [f"{goal.text}: {goal.found}" for goal in goals(result) if not goal.held]


def _of_row(row: Result) -> Iterator[Goal]:
    name = f"{row['name']} with {row['environments']} environments"
    if row["max_connections"] != 100:
        name += f" at max_connections {row['max_connections']}"
    failed = f"{row['failed']} of {row['requests']} failed"
    if row["name"] in CONTROLS:
        share = CONTROLS[row["name"]]
        held = row["failed"] >= share * row["requests"]
        yield Goal(f"{name}: the control fails at least {share:.0%}", held, failed)
    if row["name"] in OURS:
        causes = "".join(f"; {count} times {cause}" for cause, count in row["failures"].items())
        every = sum(run["failed"] for run in row["runs"] or [row])
        yield Goal(f"{name}: no request fails", every == 0, failed + causes)
        peak, budget = row["peak_server_connections"], row["budget"]
        text = f"{name}: server connections stay within the budget of {budget}"
        yield Goal(text, peak <= budget, f"peak {peak}")


def _of_second_requests(rows: list[Result]) -> Iterator[Goal]:
    """Hold the second requests: the first ones all log in, these show what a kept connection is."""
    found = {row["name"]: row["again"] for row in rows if row.get("again")}
    if not {"lambda-pg", "connect-through-pooler"} <= found.keys():
        return
    ours, control = found["lambda-pg"], found["connect-through-pooler"]
    failed = f"{ours['failed']} of {ours['requests']} failed"
    yield Goal("lambda-pg: no second request fails", ours["failed"] == 0, failed)
    text = f"lambda-pg: second requests take at most {KEPT} of what a new connection takes (p50)"
    held = ours["p50_ms"] <= KEPT * control["p50_ms"]
    yield Goal(text, held, f"{ours['p50_ms']} ms to {control['p50_ms']} ms")


def _of_open_loop(loop: Result) -> Iterator[Goal]:
    sizes = {size["environments"]: size for size in loop["sizes"]}
    for size in sizes.values():
        name = f"open loop with {size['environments']} environments"
        yield Goal(f"{name}: no request fails", size["failed"] == 0, f"{size['failed']} failed")
        end = size["environments_at_end"]
        yield Goal(f"{name}: the fleet stays that large", end == size["environments"], f"{end}")
        least = KEPT_UP * loop["offered_rps"]
        found = f"{size['rate']} of {loop['offered_rps']} a second"
        yield Goal(f"{name}: what arrives is answered", size["rate"] >= least, found)
    few, many = sizes[50]["p50_ms"], sizes[500]["p50_ms"]
    text = f"open loop: p50 with 500 environments is at most {FLAT} times that with 50"
    yield Goal(text, many <= FLAT * few, f"{many} ms to {few} ms")


def _of_second_driver(driver: Result) -> Iterator[Goal]:
    for row in driver["rows"]:
        for name, runs in row["runs"].items():
            wrong = [run for run in runs if not _agrees(run)]
            text = f"{row['name']} from {name}: served and failed are exactly the API's counts"
            yield Goal(text, not wrong, f"{len(wrong)} of {len(runs)} runs differ")
    (ours, theirs) = (next(_rows_of(driver, "lambda-pg"))[name] for name in ("ours", "locust"))
    counts = [(each["served"], each["failed"]) for each in (ours, theirs)]
    text = "lambda-pg: both drivers agree on served and failed"
    yield Goal(text, counts[0] == counts[1], f"{counts[0]} and {counts[1]}")
    apart = abs(theirs["p50_ms"] / ours["p50_ms"] - 1)
    text = f"lambda-pg: the drivers' p50 are within {AGREE:.0%}"
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
