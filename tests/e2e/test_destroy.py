"""Destroying what is deployed."""

from pathlib import Path

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.cdk import cdk, deployed_assembly


def test_destroy_removes_everything(cloud: LocalCloud, tmp_path: Path) -> None:
    """Where the stage allows it: no stack is left, and nothing of theirs runs.

    The last test of its cloud: all the others need what it destroys (tests/conftest.py).
    """
    assembly = str(deployed_assembly(cloud))
    cdk(cloud, tmp_path / "cli", "destroy", "--all", "--force", "--app", assembly)
    stacks = cloud.client("cloudformation").list_stacks()["StackSummaries"]
    left = {
        stack["StackName"]
        for stack in stacks
        if stack["StackStatus"] != "DELETE_COMPLETE" and stack["StackName"] != "CDKToolkit"
    }
    assert left == set()
    cloud.reconcile()
    assert cloud.status()["functions"] == {}
    assert cloud.status()["pooler"] is None
