"""Destroying what is deployed."""

from pathlib import Path

from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.paths import another_state_dir
from tests.support.cdk import cdk, deployed_assembly


def test_destroy_removes_everything(tmp_path: Path) -> None:
    """Where the stage allows it: no stack is left, and nothing of theirs runs."""
    with LocalCloud(another_state_dir(), Options(bound=True)) as mine:
        assembly = str(deployed_assembly(mine))
        cdk(mine, tmp_path / "cli", "destroy", "--all", "--force", "--app", assembly)
        stacks = mine.client("cloudformation").list_stacks()["StackSummaries"]
        left = {
            stack["StackName"]
            for stack in stacks
            if stack["StackStatus"] != "DELETE_COMPLETE" and stack["StackName"] != "CDKToolkit"
        }
        assert left == set()
        mine.reconcile()
        assert mine.status()["functions"] == {}
        assert mine.status()["pooler"] is None
