"""The examples of docs/integrations.md and docs/how-to.md are the files that the tests run."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text()
HOW_TO = (ROOT / "docs" / "how-to.md").read_text()
FILES = {path: path.read_text() for path in (ROOT / "tests" / "documented").rglob("*.py")}


def test_every_example_is_a_file() -> None:
    """What a reader copies has been run."""
    examples = re.findall(r"(?s)```python\n(.*?)```", PAGE + HOW_TO)
    assert sorted(examples) == sorted(FILES.values())


def test_every_event_is_on_the_page() -> None:
    """Each event that the layer logs stands in the table with its level, and no other."""
    source = "".join(path.read_text() for path in (ROOT / "layer/python/lambda_pg").rglob("*.py"))
    logged = re.findall(r'report(?:_once)?\(\s*logging\.([A-Z]+),\s*"(\w+)"', source)
    documented = re.findall(r"(?m)^\| `(\w+)` \| ([A-Z]+) \|", PAGE)
    assert {(event, level) for level, event in logged} == set(documented)
