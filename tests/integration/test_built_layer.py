"""The psycopg of the built layer, which is changed: the layer's own tests hold with it, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_pg_cdk.layer.build import Target, build_layer

ROOT = Path(__file__).resolve().parents[2]

CHOSEN = (
    "tests/integration/test_psycopg.py",
    "tests/integration/test_layer.py",
    "tests/integration/test_layer_transactions.py",
    "tests/unit/test_failures.py",
)
"""Every verb against a real server, and errors; `make test-layer` runs all of the layer's tests."""


@pytest.mark.timeout(900)
def test_the_layer_s_tests_hold_with_its_own_psycopg() -> None:
    """A separate process, in which the built layer comes before what is installed."""
    path = str(build_layer(Target.interpreter()) / "python")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHOSEN],
        env={**os.environ, "PYTHONPATH": path, "LAMBDA_PG_TESTED_PSYCOPG": path},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr
