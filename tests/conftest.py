"""What holds for every test."""

import freezegun
import pytest
from hypothesis import settings

# A busy machine makes an example slow, not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# freezegun looks at every attribute of every module, which here would import all of AWS's
# constructs: 28 s, which a deadline does not wait for.
freezegun.configure(extend_ignore_list=["aws_cdk"])

LONGEST = (
    "integration/test_rotation.py",
    "integration/test_outcome.py",
    "integration/test_pgbouncer.py",
    "integration/test_layer_copy.py",
    "integration/test_layer_faults.py",
    "integration/test_pgbouncer_survives.py",
    "integration/test_layer_overload.py",
    "integration/test_control_plane.py",
    "integration/test_image.py",
    "unit/test_build.py",
    "integration/test_layer_alarms.py",
    "integration/test_migrations.py",
    "integration/test_wire.py",
    "integration/test_failover_through_pooler.py",
    "unit/test_examples.py",
)
"""Files that take more than a minute, the longest first: begun last, one would outlast the rest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files come first; with `--no-loadscope-reorder` workers take them so."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONGEST)))
