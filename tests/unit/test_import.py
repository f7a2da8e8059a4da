"""What `import lambda_pg` does to the process it happens in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYER = Path(__file__).parents[2] / "layer" / "python"

LOOK = (
    "frozen = gc.get_freeze_count(); "  # Python 3.12 begins with some
    "import lambda_pg; print(gc.isenabled(), gc.get_freeze_count() > frozen)"
)


@pytest.mark.parametrize(
    ("before", "environment", "after"),
    [
        ("import gc", {"AWS_LAMBDA_FUNCTION_NAME": "users"}, "True True"),
        ("import gc; gc.disable()", {"AWS_LAMBDA_FUNCTION_NAME": "users"}, "False False"),
        ("import gc", {}, "True False"),
    ],
)
def test_the_collector_leaves_imports_alone_in_a_function_only(
    before: str, environment: dict[str, str], after: str
) -> None:
    """What is imported in Lambda is set aside; who has switched the collector off keeps it off."""
    said = subprocess.run(
        [sys.executable, "-c", f"{before}; {LOOK}"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(LAYER), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == after


def test_it_imports_no_adapter_and_no_http_api() -> None:
    """Who does not use them pays nothing for them at a cold start."""
    apart = "('django', 'http_api', 'sqlalchemy', 'testing', 'text')"
    program = (
        "import sys, lambda_pg; "
        f"print([name for name in sys.modules for part in {apart} "
        "if f'{name}.'.startswith(f'lambda_pg.{part}.')])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(LAYER)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"
