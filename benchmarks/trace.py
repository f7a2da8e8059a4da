"""Draw a trace of the layer: real spans of three invocations, through PgBouncer.

    python -m benchmarks.trace      write docs/trace.svg

A handler runs in a separate process with OpenTelemetry's SDK, whose console exporter prints each
span as a line of JSON. PostgreSQL and PgBouncer are real; there is one server connection.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from matplotlib.axes import Axes

from benchmarks.plots import FAILED, NEUTRAL, SERVED, as_svg, figure
from benchmarks.servers import ROOT, running

PICTURE: Final = ROOT / "docs" / "trace.svg"
TITLES: Final = (
    "first invocation: checkout and connect, then the statement",
    "warm invocation: a statement, then a transaction",
    "one server connection, which another client has for 50 ms: BEGIN shows the wait",
)
COLORS: Final = {"invocation": NEUTRAL, "BEGIN": FAILED}
GOOD: Final = SERVED

Span = dict[str, Any]


def record() -> list[Span]:
    """Run the handler; return its spans as the exporter printed them."""
    with running(MAX_DB_CONNECTIONS="1", DEFAULT_POOL_SIZE="1") as servers:
        environment = servers.function_environment(
            servers.pgbouncer, [ROOT / "layer" / "python", ROOT]
        )
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.functions.traced.handler"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"the traced handler failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def invocations(spans: Sequence[Span]) -> list[list[Span]]:
    """Group the spans by invocation, in order of their start."""
    traces: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: str(span["start_time"])):
        traces.setdefault(span["context"]["trace_id"], []).append(span)
    return [group for group in traces.values() if group[0]["name"] == "invocation"]


def draw(spans: Sequence[Span]) -> str:
    """Draw each invocation with its spans below each other, as a tracing service does."""
    groups = invocations(spans)
    heights = [len(group) for group in groups]
    with figure(9.6, 0.26 * sum(heights) + 0.75 * len(groups)) as drawn:
        panels = drawn.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
        for panel, group, title in zip(panels, groups, TITLES, strict=True):
            _bars(panel, group)
            panel.set_title(title)
        panels[-1].set_xlabel("ms since the invocation began")
        return as_svg(drawn)


def _bars(panel: Axes, group: Sequence[Span]) -> None:
    began = _moment(group[0]["start_time"])
    end = (_moment(group[0]["end_time"]) - began) * 1000
    for row, span in enumerate(group):
        start = (_moment(span["start_time"]) - began) * 1000
        length = (_moment(span["end_time"]) - _moment(span["start_time"])) * 1000
        panel.barh(row, max(length, end / 500), left=start, color=COLORS.get(span["name"], GOOD))
        panel.text(end * 1.02, row, f"{length:.1f} ms", va="center", fontsize=8)
    panel.set_ylim(len(group) - 0.4, -0.6)
    panel.set_xlim(0, end)
    names = ["   " * _depth(span, group) + span["name"] for span in group]
    panel.set_yticks(range(len(group)), labels=names, ha="left", fontsize=8)
    panel.tick_params(axis="y", length=0, pad=120)
    panel.spines["left"].set_visible(False)


def _depth(span: Span, group: Sequence[Span]) -> int:
    parents = {each["context"]["span_id"]: each["parent_id"] for each in group}
    depth, parent = 0, span["parent_id"]
    while parent in parents:
        depth, parent = depth + 1, parents[parent]
    return depth


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def main() -> None:
    """Record and draw."""
    PICTURE.write_text(draw(record()))
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
