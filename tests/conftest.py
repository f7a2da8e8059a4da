"""What holds for every test, and which tests run side by side."""

from typing import Any

import freezegun
import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# A busy machine makes an example slow, not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# freezegun looks at every attribute of every module, which here would import all of AWS's
# constructs: 28 s, which a deadline does not wait for.
freezegun.configure(extend_ignore_list=["aws_cdk"])

SYNTHESIS = "synthesis"
"""The tests of the templates: one process starts the CDK, which takes seconds, and keeps it."""

END_TO_END = ("one cloud", "several clouds")
SEVERAL_CLOUDS = (
    "test_down.py",
    "test_external.py",
    "test_first_function.py",
    "test_proxy_login.py",
    "test_second_app.py",
    "test_strangers.py",
)
"""End-to-end tests of a cloud that the command line starts, or that one test starts. The others
share another cloud. The two groups run side by side, each in one process: neither changes what the
other looks at."""

LAST_IN_A_CLOUD = (
    "e2e/test_strict_stage.py",
    "e2e/test_redeploy.py",
    "e2e/test_deployment.py",
    "e2e/test_watch.py",
    "e2e/test_destroy.py",
    "e2e/test_down.py",
)
"""They deploy changed copies of the project, destroy what is deployed, and stop the cloud. Tests
that came after them would need another cloud. test_watch.py leaves a migration that the project
does not have."""

LONGEST = (
    "integration/test_rotation.py",
    "integration/test_reloads.py",
    "integration/test_pgbouncer.py",
    "integration/test_layer_overload.py",
    "integration/test_outcome.py",
    "integration/test_pgbouncer_survives.py",
    "integration/test_layer_faults.py",
    "integration/test_layer_copy.py",
    "integration/test_pgbouncer_second_name.py",
    "integration/test_built_layer.py",
    "integration/test_layer_clock.py",
    "integration/test_layer_languages.py",
    "integration/test_distribution.py",
    "integration/test_other_languages.py",
    "integration/test_pgbouncer_metrics.py",
    "integration/test_control_plane.py",
    "integration/test_pgbouncer_failover.py",
    "integration/test_sql_attacks.py",
    "integration/test_measuring.py",
    "integration/test_migrations.py",
)
"""Files that take half a minute or more, the longest first: begun last, one would outlast the
rest."""


def group_of(file: str) -> str:
    """Name the group of a test file, by its path: tests of one group run in one process."""
    folder, _, name = file.rpartition("/")
    if folder.endswith("tests/e2e"):
        return END_TO_END[name in SEVERAL_CLOUDS]
    return SYNTHESIS if folder.endswith("tests/synth") else file


def place_of(item: pytest.Item) -> int:
    """Tell when a test comes: end-to-end tests, then templates, the longest files, the others."""
    folder, name = item.path.parts[-2:]
    file = f"{folder}/{name}"
    if folder == "e2e":
        return LAST_IN_A_CLOUD.index(file) - len(LAST_IN_A_CLOUD) if file in LAST_IN_A_CLOUD else -9
    if folder == "synth":
        return -1
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest groups come first; with `--no-loadscope-reorder` workers take them so."""
    items.sort(key=place_of)


class InGroups(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Give each process whole groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> InGroups | None:
    """Have `--dist loadfile` keep groups of files together."""
    return InGroups(config, log) if config.getoption("dist") == "loadfile" else None
