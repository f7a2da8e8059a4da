"""docs/problems.md: a section for each problem that the project's code can answer with."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from lambda_pg.http_api.problems import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "problems.md").read_text()
SECTIONS = dict(re.findall(r"(?m)^## (\S+)\n\n(\d+)\.", PAGE))
CODE = [
    *(ROOT / "layer" / "python" / "lambda_pg" / "http_api").glob("*.py"),
    *(ROOT / "functions").rglob("*.py"),
]


def problems(source: str) -> Iterator[tuple[str, int]]:
    """Yield name and status of each problem that a module makes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Problem":
            name = ast.literal_eval(node.args[0])
            given = {each.arg: each.value for each in node.keywords}
            status = given.get("status")
            yield name, KINDS[name].status if status is None else ast.literal_eval(status)


def test_every_problem_has_a_section() -> None:
    """With its status; in the order of the alphabet, and no other."""
    known = {name: str(kind.status) for name, kind in KINDS.items()}
    made = {name: str(status) for path in CODE for name, status in problems(path.read_text())}
    assert known | made == SECTIONS
    assert list(SECTIONS) == sorted(SECTIONS)
    assert re.findall(r"(?m)^## (.*)$", PAGE) == list(SECTIONS)


def test_a_problem_of_a_function_is_found() -> None:
    """By its name, as it stands in the source."""
    source = 'raise Problem("too-late", "It is over.", status=410, title="Gone")'
    assert list(problems(source)) == [("too-late", 410)]
    assert list(problems('Problem("not-found", "None.")')) == [("not-found", 404)]
