"""Deployments to a running cloud: a failed migration, a warning, other settings.

The tests follow each other on one cloud: later ones look at what the second deployment made.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from lambda_pg_cdk.local.cloud import DeploymentError, LocalCloud
from lambda_pg_cdk.local.http.caller import call
from tests.support.api_load import load
from tests.support.cdk import application_login
from tests.support.rotation import limit_of, rotate

pytestmark = pytest.mark.timeout(600)  # deployments take minutes where the machine is busy

RAISING = '''"""Raise, as a migration with a mistake in it does."""

from alembic import op

revision = "9999"
down_revision = None


def upgrade() -> None:
    """Create something, then fail."""
    op.execute("CREATE TABLE half_done (id int)")
    op.execute("DO $$ BEGIN RAISE EXCEPTION 'the canary of the migration'; END $$")
'''
FORGETFUL = '''"""Make a table, and forget the grant."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.execute("CREATE TABLE orders (id int)")
'''


def test_a_failed_migration_rolls_back(cloud: LocalCloud, project: Path) -> None:
    """The failure shows the migration's message, and nothing of it stays."""
    token = cloud.token(str(uuid.uuid4()))
    assert call(cloud.url, "GET", "/users", token).status == 200
    assert variable_of_running(cloud, "users", "POWERTOOLS_LOG_LEVEL") == "INFO"
    revision = project / "migrations" / "9999_raising.py"
    revision.write_text(RAISING)
    try:
        with pytest.raises(DeploymentError, match="the canary of the migration") as caught:
            cloud.deploy(app=project)
    finally:
        revision.unlink()
    assert "migration 9999 (migrations/9999_raising.py, line 12) failed" in str(caught.value)
    assert call(cloud.url, "GET", "/users", token).status == 200
    assert stack_status(cloud, "LambdaPg-local-Api") == "UPDATE_ROLLBACK_COMPLETE"
    provider = (cloud.folder / "logs" / "migration_provider.log").read_text()
    assert "the stack rolls back" in provider, "the old version was run again"


@pytest.fixture(scope="module")
def changed(cloud: LocalCloud, project: Path) -> None:
    """Deploy, after the failure, another setting of the functions and another rotation.

    What the migration warns of reaches the person who deploys.
    """
    change_setting(project / "cdk.json", "log_level", "ERROR")
    (project / "migrations" / "0001_orders.py").write_text(FORGETFUL)
    told: list[Mapping[str, Any]] = []
    override = {"database": {"rotation": "single"}}
    LocalCloud(cloud.folder, report=told.append).deploy(app=project, override=override)
    (warning,) = [message["note"] for message in told]
    assert warning.startswith("migration: table orders: functions may not use it")
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO lambda_pg_app;" in warning


def test_a_changed_setting_arrives(cloud: LocalCloud, changed: None) -> None:
    """The next deployment works, and the functions' new environments have the setting."""
    token = cloud.token(str(uuid.uuid4()))
    assert stack_status(cloud, "LambdaPg-local-Api") == "UPDATE_COMPLETE"
    assert call(cloud.url, "GET", "/users", token).status == 200
    assert variable_of_running(cloud, "users", "POWERTOOLS_LOG_LEVEL") == "ERROR"


def test_one_user_gets_a_new_password_and_no_request_fails(
    cloud: LocalCloud, changed: None
) -> None:
    """The pooler and the functions follow."""
    before = application_login(cloud)
    with load(cloud) as seen:
        seen.wait_for_more()
        rotated = rotate(cloud)
        seen.wait_for_more()
        rotate(cloud)
        seen.wait_for_more()
    assert seen.failed == []
    assert rotated["username"] == before["username"]
    assert rotated["password"] != before["password"]
    assert limit_of(cloud, application_login(cloud)) == "10s"


def change_setting(path: Path, name: str, value: str) -> None:
    """Change one setting of the functions in the stage `local` of a cdk.json."""
    document = json.loads(path.read_text())
    document["context"]["stages"]["local"].setdefault("functions", {})[name] = value
    path.write_text(json.dumps(document, indent=2))


def stack_status(cloud: LocalCloud, name: str) -> str:
    """Ask the control plane how a stack is."""
    stacks = cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    return str(stacks[0]["StackStatus"])


def variable_of_running(cloud: LocalCloud, function: str, name: str) -> str | None:
    """Read a variable out of the process that served the last request."""
    for process in psutil.process_iter():
        try:
            variables = process.environ()
        except psutil.Error:
            continue
        mine = variables.get("LAMBDA_PG_CLOUD") == cloud.state.cloud_id
        if mine and variables.get("POWERTOOLS_SERVICE_NAME") == function:
            return variables.get(name)
    return None
