"""The control plane tells when something may have changed, and only then."""

import http.client
import json
import threading
import uuid
from contextlib import closing
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from lambda_pg_cdk.local.control_plane import changes
from lambda_pg_cdk.local.control_plane.signatures import presign
from tests.support.control_plane import KEY, REGION, ControlPlane

SECONDS = 30.0


def count(plane: ControlPlane, known: object = "") -> int:
    """Ask for the count of changes; the answer is held back while it is the known one."""
    connection = http.client.HTTPConnection(urlsplit(plane.url).netloc, timeout=SECONDS)
    with closing(connection):
        url = f"{plane.url}{changes.PATH}?known={known}"
        signed = presign(url, KEY, REGION, timedelta(minutes=1))
        connection.request("GET", signed.removeprefix(plane.url))
        return int(json.load(connection.getresponse())["count"])


def test_reading_counts_as_no_change(plane: ControlPlane) -> None:
    """Neither the daemon's own look at the stacks, nor a function that reads its secret."""
    plane.client("cloudformation").describe_stacks()
    before = count(plane)
    plane.inventory().signature()
    plane.client("secretsmanager").list_secrets()
    plane.client("lambda").list_functions()
    assert count(plane) == before


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "asking later"])
def test_who_waits_for_a_change_is_answered_by_it(plane: ControlPlane, waits: bool) -> None:
    """One that comes while nobody asks goes to the next who does."""
    before, found = count(plane), []
    asking = threading.Thread(target=lambda: found.append(count(plane, before)))
    if waits:
        asking.start()
        asking.join(0.2)
        assert not found
    plane.client("ssm").put_parameter(Name=f"/{uuid.uuid4()}", Value="x", Type="String")
    if not waits:
        asking.start()
    asking.join(SECONDS)
    assert found
    assert found[0] > before
