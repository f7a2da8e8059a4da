"""One row of the storm: open environments, send each its first request, and count."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Protocol

from benchmarks.storm.accounting import CpuSeconds, Waits
from benchmarks.storm.connections import Observed
from benchmarks.storm.meter import Meter, Reading
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.load import FunctionLog, Summary, fire, summarise

Report = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the plan: which function, how many environments, and how they start.

    `again`: each environment gets a second request after all first ones were answered.
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
    """The result of one row. Large because it is flat, as in the JSON files.

    `cpu` is in seconds. `answered`: the API's count of answers by status. `others`: the share of
    all processors that other programs used (0 to 1), in `seconds`. A row that was measured several
    times shows the run with the middle median; the peak and `runs` are of all runs, and `waits`,
    `others` and `seconds` of the run with the most failures.
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
    """A load generator: ours, or Locust."""

    def __call__(self, url: str, token: str, count: int) -> Summary:
        """Send `count` requests at the same moment and return their summary."""


def our_driver(url: str, token: str, count: int) -> Summary:
    """Send the requests from this process."""
    return summarise(*fire(url, token, count))


@dataclass(frozen=True)
class Stage:
    """A cloud under storm, a caller's token, the user to look up, and a reporter of progress."""

    cloud: LocalCloud
    token: str
    user_id: str
    report: Report

    def storm(self, row: Row, driver: Driver = our_driver) -> Result:
        """Open the environments of one row, send the requests, and count."""
        began = time.monotonic()
        self.cloud.end_environments(row.function)
        log = FunctionLog(self.cloud.folder / "logs" / f"{row.function}.log")
        self._open(row)
        meter = Meter(self.cloud)
        summary = driver(self.address(row), self.token, row.environments)
        used = meter.read()
        again = driver(self.address(row), self.token, row.environments) if row.again else None
        self.cloud.end_environments(row.function)
        if summary.failed:
            summary = replace(summary, failures=log.causes(summary))
        taken = time.monotonic() - began
        self.report(
            f"{row.name}: served {summary.served}, failed {summary.failed}, in {taken:.1f} s"
        )
        return replace(_result(row, summary, used), again=again)

    def interleaved(self, rows: Sequence[Row], times: int) -> list[Result]:
        """Storm rows several times, each time in another order; return the result of each row."""
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
        """Return the URL of every request of a row."""
        return f"{self.cloud.url}{row.route}/{self.user_id}"


def _result(row: Row, summary: Summary, used: Reading) -> Result:
    return Result(
        **asdict(summary),
        name=row.name,
        environments=row.environments,
        start=row.start,
        max_connections=used.before["postgres"]["max_connections"],
        budget=used.before["pooler"]["max_server_connections"],
        peak_server_connections=used.server.peak,
        server=used.server,
        cpu=used.cpu,
        waits=used.waits,
        others=used.others,
        seconds=round(used.seconds, 3),
        answered=answered_between(used.before, used.after),
    )


def median_run(results: Sequence[Result]) -> Result:
    """Return the run with the middle median, with the peak and the summaries of all runs."""
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
    """Count the API's answers between two readings of its status, by HTTP status."""
    return dict(Counter(after["requests"]) - Counter(before["requests"]))
