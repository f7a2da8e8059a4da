"""A page of the documentation as steps: what its reader types, writes and sees."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PART = re.compile(
    r"(?m)^## (?P<heading>.+)\n"
    r"|^(?:`(?P<file>[^`\n]+)`:\n\n)?```(?P<kind>\w+)\n(?P<text>(?s:.*?))^```$"
)
ANYTHING = "…"
"""In what a page shows as the answer: it differs each time."""


@dataclass(frozen=True)
class Step:
    """A fenced block: `sh` is typed, `text` is its answer, all else is a file or its change."""

    heading: str
    kind: str
    text: str
    file: str | None


def read(page: Path) -> list[Step]:
    """Read the steps of a page. Each block that is neither typed nor shown names its file."""
    return list(_steps(page.read_text()))


def _steps(text: str) -> Iterator[Step]:
    heading = ""
    for part in _PART.finditer(text):
        if part["heading"]:
            heading = part["heading"]
            continue
        if (part["kind"] in {"sh", "text"}) == (part["file"] is not None):
            raise ValueError(f"under {heading!r}: does this block have a file?\n{part[0]}")
        yield Step(heading, part["kind"], part["text"], part["file"])


def write(step: Step, project: Path) -> None:
    """Write the step's file, or change it: its lines must be there, once."""
    path = project / str(step.file)
    if step.kind != "diff":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text)
        return
    lines = step.text.splitlines(keepends=True)
    before = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
    after = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
    whole = path.read_text()
    if whole.count(before) != 1:
        raise ValueError(f"{path} has these lines {whole.count(before)} times, not once:\n{before}")
    path.write_text(whole.replace(before, after))


def shows(said: str, expected: str) -> bool:
    """Tell whether each expected line is in what was said."""
    patterns = (re.escape(line).replace(ANYTHING, ".*") for line in expected.splitlines())
    return all(re.search(pattern, said) for pattern in patterns)
