"""The control plane refuses to start where its hooks are not what they were."""

import os
import subprocess

import pytest

from local import installed
from local.deployment import REPOSITORY

BREAKAGES = {
    "_execute_function_warm": (
        "import ministack.services.lambda_svc as m; del m._execute_function_warm"
    ),
    "AWS::RDS::DBInstance": (
        "import ministack.services.cloudformation.provisioners as m;"
        "del m._RESOURCE_HANDLERS['AWS::RDS::DBInstance']['update']"
    ),
    "_instances": "import ministack.services.rds as m; del m._instances",
    "_lambda_create": (
        "import ministack.services.cloudformation.provisioners as m;"
        "m._lambda_create = lambda props: None"
    ),
}


def start(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in the control plane's interpreter."""
    return subprocess.run(
        [str(installed.control_plane_python()), "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_pinned_version_has_every_hook() -> None:
    """The check passes with what is installed."""
    done = start("from local.control_plane import hooks; hooks.check()")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("hook", BREAKAGES)
def test_a_moved_hook_is_named_with_the_version(hook: str) -> None:
    """The start fails at once, and says what to look at."""
    done = start(f"{BREAKAGES[hook]}; from local.control_plane import hooks; hooks.check()")
    assert done.returncode == 1
    assert hook in done.stderr
    assert "1.5.33" in done.stderr


def test_it_serves_loopback_only() -> None:
    """Without the address it does not start, rather than listen everywhere."""
    done = start("from local.control_plane.__main__ import main; main()", BIND_HOST="0.0.0.0")  # noqa: S104 - what is refused
    assert done.returncode == 1
    assert "loopback" in done.stderr
