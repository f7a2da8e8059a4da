"""One local cloud for all end-to-end tests: the whole project, deployed."""

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.cloud import LocalCloud, Options

DEPLOYMENT_SECONDS = 300  # a slow machine's first one fetches servers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test here the time of a deployment, as any may be the first to need one."""
    for item in items:
        if "e2e" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(DEPLOYMENT_SECONDS))


@pytest.fixture(scope="session")
def cloud() -> Iterator[LocalCloud]:
    """Start a local cloud with everything deployed; it ends with the tests."""
    # Not pytest's own folder: the servers' account has to get there, and unix sockets have to fit.
    folder = Path(tempfile.gettempdir()) / f"lpg-{secrets.token_hex(4)}"
    with LocalCloud(folder, Options(bound=True)) as started:
        yield started
