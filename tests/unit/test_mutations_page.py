"""docs/mutations.md: its code is the sample's, and it has every name and variable there is."""

import re
from pathlib import Path

from lambda_pg import http_api

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "mutations.md").read_text()
NOTES = (ROOT / "functions" / "notes" / "handler.py").read_text()
RULES = (ROOT / "layer" / "python" / "lambda_pg" / "http_api" / "rules.py").read_text()

EXPLAINED = {"Rules", "StatementFailedError"}
"""What few functions name: the rules of a test's request, and an error that nobody catches."""


def test_the_code_is_the_sample_s() -> None:
    """What a reader copies is deployed and tested."""
    blocks = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    assert len(blocks) >= 2
    assert [block for block in blocks if block not in NOTES] == []


def test_the_page_s_sql_runs_beside_the_samples() -> None:
    """A reader runs it in a database that may have the samples' functions."""
    migrations = [path.read_text() for path in (ROOT / "migrations").rglob("*.py")]
    taken = set(re.findall(r"CREATE FUNCTION (\w+)", "\n".join(migrations)))
    of_page = set(re.findall(r"CREATE FUNCTION (\w+)", PAGE))
    assert of_page
    assert of_page & taken == set()


def test_the_first_function_has_ten_lines() -> None:
    """From its name to its last statement, without empty lines."""
    (function,) = re.findall(r"(?ms)^def create_note.*?^    return [^\n]*\n", NOTES)
    assert len([line for line in function.splitlines() if line.strip()]) <= 10
    assert function in PAGE


def test_every_public_name_is_in_the_table() -> None:
    """With what it is for."""
    table = "\n".join(re.findall(r"(?m)^\| `.*$", PAGE))
    names = set(http_api.__all__) - EXPLAINED
    assert {name for name in names if f"`{name}" not in table} == set()


def test_every_variable_is_on_the_page() -> None:
    """With the setting that it comes from."""
    variables = set(re.findall(r'"(LAMBDA_PG_API_\w+)"', RULES))
    settings = dict(re.findall(r"(?m)^\| `api\.(\w+)` \| `(\w+)` \|$", PAGE))
    assert set(settings.values()) == variables
    assert all(value == f"LAMBDA_PG_API_{name.upper()}" for name, value in settings.items())
