"""One row of the storm: open environments, let each have its first request, and count."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Protocol

from benchmarks.storm.accounting import CpuSeconds, Waits
from benchmarks.storm.connections import Observed
from benchmarks.storm.meter import Meter
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.load import FunctionLog, Summary, fire, summarise

Report = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the plan: which function, how many environments, how they start.

    `again`: each environment gets a second request when all first ones have been answered.
    """

    name: str
    function: str
    environments: int
    start: Literal["restored", "cold"] = "restored"
    path: str = ""
    again: bool = False

    @property
    def route(self) -> str:
        """Where the API serves the function."""
        return self.path or f"/storm/{self.function}"


@dataclass(frozen=True)
class Result(Summary):
    """What became of one row. CPU in seconds; `answered` is what the API counted, by status.

    `others` is the share of all processors that other programs had (0 to 1), in `seconds`.
    Of a row that was measured several times it is the run with the median of the medians; the peak
    and `runs` are of all of them, and `waits`, `others` and `seconds` of the one that failed most.
    """

    name: str
    environments: int
    start: str
    max_connections: int
    budget: int
    peak_server_connections: int
    server: Observed
    cpu: CpuSeconds
    waits: Waits
    others: float
    seconds: float
    answered: dict[str, int]
    again: Summary | None = None
    runs: tuple[Summary, ...] = ()


class Driver(Protocol):
    """What sends the requests: ours, or one that is not ours."""

    def __call__(self, url: str, token: str, count: int) -> Summary:
        """Send `count` requests at the same moment and say what became of them."""


def our_driver(url: str, token: str, count: int) -> Summary:
    """Send the requests from this process."""
    return summarise(*fire(url, token, count))


@dataclass(frozen=True)
class Stage:
    """A cloud under storm: its caller's token, the user who is looked up, and who reports."""

    cloud: LocalCloud
    token: str
    user_id: str
    report: Report

    def storm(self, row: Row, driver: Driver = our_driver) -> Result:
        """Open the environments of one row, fire, and count."""
        began = time.monotonic()
        self.cloud.end_environments(row.function)
        log = FunctionLog(self.cloud.folder / "logs" / f"{row.function}.log")
        self._open(row)
        with Meter(self.cloud) as meter:
            summary = driver(self.address(row), self.token, row.environments)
        again = driver(self.address(row), self.token, row.environments) if row.again else None
        self.cloud.end_environments(row.function)
        if summary.failed:
            summary = replace(summary, failures=log.causes(summary))
        taken = time.monotonic() - began
        self.report(
            f"{row.name}: served {summary.served}, failed {summary.failed}, in {taken:.1f} s"
        )
        return replace(_result(row, summary, meter), again=again)

    def by_turns(self, rows: Sequence[Row], times: int) -> list[Result]:
        """Storm rows several times, so that none always comes first; return each one's result."""
        found: dict[str, list[Result]] = {row.name: [] for row in rows}
        for turn in range(times):
            for row in [*rows[turn:], *rows[:turn]]:
                found[row.name].append(self.storm(row))
        return [median_run(results) for results in found.values()]

    def _open(self, row: Row) -> None:
        if row.start == "restored":
            self.report(f"{row.name}: opening {row.environments} environments")
            self.cloud.environments(row.function, row.environments, row.start)
        else:
            self.cloud.start_on_demand(row.function, row.start)
        self.report(f"{row.name}: {row.environments} requests at once")

    def address(self, row: Row) -> str:
        """Name what every request of a row asks for."""
        return f"{self.cloud.url}{row.route}/{self.user_id}"


def _result(row: Row, summary: Summary, meter: Meter) -> Result:
    return Result(
        **asdict(summary),
        name=row.name,
        environments=row.environments,
        start=row.start,
        max_connections=meter.before["postgres"]["max_connections"],
        budget=meter.before["pooler"]["max_server_connections"],
        peak_server_connections=meter.server.peak,
        server=meter.server,
        cpu=meter.cpu,
        waits=meter.waits,
        others=meter.others,
        seconds=round(meter.seconds, 3),
        answered=answered_between(meter.before, meter.after),
    )


def median_run(results: Sequence[Result]) -> Result:
    """Return the run in the middle of several, with the peak and the summaries of all."""
    middle = sorted(results, key=lambda result: result.p50_ms)[len(results) // 2]
    worst = max(results, key=lambda result: result.failed)
    names = [each.name for each in fields(Summary)]
    return replace(
        middle,
        peak_server_connections=max(result.peak_server_connections for result in results),
        waits=worst.waits,
        others=worst.others,
        seconds=worst.seconds,
        again=_middle([result.again for result in results if result.again]),
        runs=tuple(
            Summary(**{name: getattr(result, name) for name in names}) for result in results
        ),
    )


def _middle(summaries: Sequence[Summary]) -> Summary | None:
    ranked = sorted(summaries, key=lambda summary: summary.p50_ms)
    return ranked[len(ranked) // 2] if ranked else None


def answered_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Count the API's answers between two looks at its status."""
    return dict(Counter(after["requests"]) - Counter(before["requests"]))
