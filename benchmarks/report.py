"""Show the committed results in tables and pictures, or check that these show what was measured."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import plots, tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGE = RESULTS / "README.md"

Result = dict[str, Any]
COMMANDS = {"storm": "make storm", "chaos": "make chaos", "chaos_long": "make chaos-long"}


@dataclass(frozen=True)
class Part:
    """A place in a document, and the result that is shown there."""

    document: Path
    name: str
    result: str
    draw: Callable[[Result], str]

    @property
    def marks(self) -> tuple[str, str]:
        """The lines before and after."""
        command = COMMANDS.get(self.result, "make bench")
        return f"<!-- {self.name}: made by `{command}` -->", f"<!-- /{self.name} -->"

    def filled(self, text: str, result: Result) -> str:
        """Return the document with what the result says in its place."""
        return between(text, self.marks, self.draw(result))


PARTS = (
    Part(README, "storm", "storm", tables.storm_table),
    Part(README, "chaos", "chaos", tables.chaos_summary),
    Part(README, "overhead", "overhead", tables.overhead_table),
    Part(README, "cold_start", "cold_start", tables.cold_start_table),
    Part(PAGE, "storm", "storm", tables.whole_storm_table),
    Part(PAGE, "causes", "storm", tables.causes_table),
    Part(PAGE, "growth", "storm", tables.growth_table),
    Part(PAGE, "driver", "storm", tables.second_driver_table),
    Part(PAGE, "goals", "storm", tables.goals_table),
    Part(PAGE, "logins", "logins", tables.logins_table),
    Part(PAGE, "first_request", "first_request", tables.first_request_table),
    Part(PAGE, "whole_request", "whole_request", tables.whole_request_table),
    Part(PAGE, "chaos", "chaos", tables.chaos_table),
    Part(PAGE, "crashes", "chaos", tables.crashes_table),
    Part(PAGE, "crashes-long", "chaos_long", tables.crashes_table),
    Part(PAGE, "recovery", "chaos_long", tables.recovery_table),
)
PICTURES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "storm.svg": ("storm", plots.storm_plot),
    "concurrency.svg": ("storm", plots.concurrency_plot),
    "connections.svg": ("storm", plots.connections_plot),
    "growth.svg": ("storm", plots.open_loop_plot),
    "chaos.svg": ("chaos", plots.chaos_plot),
}
"""Below the results' folder: the result that each shows, and how."""


def between(text: str, marks: tuple[str, str], table: str) -> str:
    """Return a document with a table between two marks."""
    begin, end = marks
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"there is no place for a table: {begin} … {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def drawn() -> Iterator[tuple[Path, str]]:
    """Give each file that shows results, as the results have it."""
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    for document in (README, PAGE):
        text = document.read_text()
        for part in PARTS:
            if part.document == document:
                text = part.filled(text, results[part.result])
        yield document, text
    for name, (result, draw) in PICTURES.items():
        yield RESULTS / name, draw(results[result])


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="put the results into the documents")
    action.add_argument("--check", action="store_true", help="fail when a document differs")
    arguments = parser.parse_args()
    code = 0
    for path, text in drawn():
        if arguments.write:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            name = path.relative_to(ROOT)
            print(f"{name} does not show what was measured: make report", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
