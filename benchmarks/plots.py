"""Draw the committed results as SVG: the same result gives the same bytes.

Text is drawn as outlines of matplotlib's font, so the pictures are the same on every machine.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.tables import STORM_TITLES, Result, compared

SERVED, FAILED, NEUTRAL, LIMIT, SHADE = (
    "#2a78b5",
    "#c8452f",
    "#8a8f98",
    "#3b3f46",
    "#dcdfe4",
)
COLUMNS = 2
PERIOD = 0.1
"""Seconds of a point in the results' series."""
METADATA = ("Date", "Creator", "Format", "Type")
STYLE = Path(__file__).with_suffix(".mplstyle")


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """Open a figure of this size in inches, in the pictures' style."""
    with mpl.rc_context(fname=STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def as_svg(drawn: Figure) -> str:
    """Return a figure as SVG, without the date, version and URL that matplotlib adds."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata=dict.fromkeys(METADATA))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _lines(count: int) -> int:
    return -(-count // COLUMNS)


def _panels(drawn: Figure, count: int, **options: Any) -> list[Axes]:
    """Lay out so many panels, two in a row; an unused place stays empty."""
    panels: list[Axes] = [*drawn.subplots(_lines(count), COLUMNS, squeeze=False, **options).flat]
    for spare in panels[count:]:
        spare.set_axis_off()
    return panels[:count]


# The storm


def storm_plot(result: Result) -> str:
    """Draw the requests and server connections of each way to connect.

    All ways have the same number of environments; another plot shows the other sizes.
    """
    rows = compared(result)
    names = [_plain(row) for row in rows]
    with figure(9.6, 0.42 * len(rows) + 1.2) as drawn:
        left, middle, right = drawn.subplots(1, 3, sharey=True, width_ratios=[3, 2, 2])
        _outcomes(left, names, rows)
        _peaks(middle, rows, result["max_connections"], result["budget"])
        _second_requests(right, rows)
        left.invert_yaxis()
        drawn.suptitle(
            f"{rows[0]['environments']} execution environments, one request each, at the same"
            " moment",
            x=0.01,
            ha="left",
            fontweight="bold",
        )
        return as_svg(drawn)


def _outcomes(axes: Axes, names: Sequence[str], rows: list[Result]) -> None:
    served = [row["served"] for row in rows]
    failed = [row["failed"] for row in rows]
    axes.barh(names, served, color=SERVED, label="served")
    axes.barh(names, failed, left=served, color=FAILED, label="failed")
    for place, row in enumerate(rows):
        text = f"{row['served']} served" + (f", {row['failed']} failed" if row["failed"] else "")
        axes.text(8, place, text, va="center", color="white", fontweight="bold")
    axes.set_xlim(0, rows[0]["requests"])
    axes.set_xlabel("requests")
    axes.tick_params(left=False)


def _peaks(axes: Axes, rows: list[Result], max_connections: int, budget: int) -> None:
    peaks = [row["peak_server_connections"] for row in rows]
    axes.barh(range(len(rows)), peaks, color=NEUTRAL)
    for place, peak in enumerate(peaks):
        axes.text(peak + 1, place, str(peak), va="center")
    for limit, name in ((budget, "budget"), (max_connections, "max_connections")):
        axes.axvline(limit, color=LIMIT, linestyle="--", linewidth=1)
        axes.text(limit, -0.62, f"{name} {limit}", ha="center", va="bottom", fontsize=7)
    axes.set_xlim(0, max_connections * 1.15)
    axes.set_xlabel("peak server connections")
    axes.tick_params(left=False)


def _second_requests(axes: Axes, rows: list[Result]) -> None:
    """Draw the time of a second request, for the ways that had one."""
    for place, row in enumerate(rows):
        if (again := row["again"]) is not None:
            seconds = again["p50_ms"] / 1000
            axes.barh(place, seconds, color=SERVED)
            axes.text(seconds, place, f" {seconds:.2f} s", va="center")
    axes.margins(x=0.3)
    axes.set_xlabel("p50 of a second request, s")
    axes.tick_params(left=False)


def concurrency_plot(result: Result) -> str:
    """Draw failures and latency of lambda-pg against the number of environments."""
    rows = _by_size(result)
    baseline = next(row for row in result["rows"] if row["name"] == "baseline")
    sizes = [row["environments"] for row in rows]
    with figure(8.6, 3.2) as drawn:
        failures, latency = drawn.subplots(1, 2)
        share = [100 * row["failed"] / row["requests"] for row in rows]
        failures.plot(sizes, share, color=SERVED, marker="o", label="lambda-pg")
        lost = 100 * baseline["failed"] / baseline["requests"]
        failures.plot(
            [baseline["environments"]],
            [lost],
            color=FAILED,
            marker="X",
            linestyle="",
            ms=8,
            label="a connection per request",
        )
        failures.set(ylim=(-4, 104), ylabel="failed, %", title="Failures")
        failures.legend()
        for key, shade in (("p50_ms", 1.0), ("p95_ms", 0.7), ("p99_ms", 0.45)):
            seconds = [row[key] / 1000 for row in rows]
            latency.plot(sizes, seconds, color=SERVED, alpha=shade, marker="o", label=key[:3])
        latency.set(ylabel="seconds", title="Latency of the first request of all at once")
        latency.set_ylim(bottom=0)
        latency.legend()
        for axes in (failures, latency):
            axes.set_xlabel("environments")
            axes.grid(axis="y")
        return as_svg(drawn)


def _by_size(result: Result) -> list[Result]:
    rows = [
        row
        for row in result["rows"]
        if row["name"] == "lambda-pg"
        and row["start"] == "restored"
        and row["max_connections"] == result["max_connections"]
    ]
    return sorted(rows, key=lambda row: int(row["environments"]))


def connections_plot(result: Result) -> str:
    """Draw server connections over the time of each storm, with their limits."""
    rows = compared(result)
    with figure(8.6, 1.35 * _lines(len(rows)) + 0.6) as drawn:
        panels = _panels(drawn, len(rows), sharey=True)
        for axes, row in zip(panels, rows, strict=True):
            series = row["server"]["series"]
            axes.stairs(series, _edges(series), fill=True, color=SERVED)
            axes.axhline(result["budget"], color=LIMIT, linestyle=":", linewidth=1)
            axes.axhline(result["max_connections"], color=FAILED, linestyle="--", linewidth=1)
            axes.set_title(_plain(row), fontsize=9)
            axes.set_ylim(0, result["max_connections"] * 1.1)
        drawn.supxlabel(
            f"seconds; dashed: max_connections {result['max_connections']}, dotted: budget"
            f" {result['budget']}",
            fontsize=9,
        )
        drawn.supylabel("server connections", fontsize=9)
        return as_svg(drawn)


def open_loop_plot(result: Result) -> str:
    """Draw latency and cost of a request as the same load spreads over a growing fleet."""
    rows = result["open_loop"]["sizes"]
    sizes = [str(row["environments"]) for row in rows]
    with figure(8.6, 3.0) as drawn:
        latency, cost = drawn.subplots(1, 2)
        for key, shade in (("p50_ms", 1.0), ("p95_ms", 0.6)):
            latency.plot(
                sizes,
                [row[key] for row in rows],
                color=SERVED,
                alpha=shade,
                marker="o",
                label=key[:3],
            )
        latency.set(ylabel="milliseconds", title="Latency")
        latency.set_ylim(bottom=0)
        latency.legend()
        below = [0.0] * len(rows)
        parts = {"functions": SERVED, "pgbouncer": NEUTRAL, "postgresql": LIMIT}
        for part, color in parts.items():
            values = [row["cpu_ms"][part] for row in rows]
            cost.bar(sizes, values, bottom=below, color=color, label=part, width=0.5)
            below = [one + other for one, other in zip(below, values, strict=True)]
        cost.set(ylabel="CPU milliseconds per request", title="Cost", ylim=(0, 1.3 * max(below)))
        cost.legend(ncols=3)
        for axes in (latency, cost):
            axes.set_xlabel("environments")
            axes.grid(axis="y")
        return as_svg(drawn)


def _plain(row: Result) -> str:
    return STORM_TITLES[row["name"]].replace("**", "").replace("`", "")


# Chaos


def chaos_plot(result: Result) -> str:
    """Draw a timeline for each fault: answers per second, and the fault in grey."""
    rows = result["rows"]
    with figure(8.6, 1.3 * _lines(len(rows)) + 0.5) as drawn:
        for axes, row in zip(_panels(drawn, len(rows)), rows, strict=True):
            _timeline(axes, row)
        drawn.supxlabel("seconds; the fault lasts where it is grey", fontsize=9)
        drawn.supylabel("requests a second", fontsize=9)
        return as_svg(drawn)


def _timeline(axes: Axes, row: Result) -> None:
    served = [well / PERIOD for well, _ in row["timeline"]]
    all_of_them = [(well + badly) / PERIOD for well, badly in row["timeline"]]
    edges = _edges(served)
    axes.axvspan(row["began"], max(row["ended"], row["began"] + PERIOD), color=SHADE, linewidth=0)
    axes.stairs(all_of_them, edges, fill=True, color=FAILED)
    axes.stairs(served, edges, fill=True, color=SERVED)
    axes.set_title(row["title"], fontsize=9)
    axes.set_ylim(bottom=0)
    axes.locator_params(nbins=4)


def _edges(series: Sequence[float]) -> list[float]:
    return [point * PERIOD for point in range(len(series) + 1)]
