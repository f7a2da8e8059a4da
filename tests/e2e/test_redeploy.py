"""Deploying what is deployed, and deploying one function's new code."""

import re
import uuid
from pathlib import Path

import psutil
import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call
from tests.support.cdk import cdk, deployed_assembly

pytestmark = pytest.mark.timeout(600)  # deployments take minutes where the machine is busy


def test_nothing_is_left_to_deploy(cloud: LocalCloud, tmp_path: Path) -> None:
    """`cdk diff` finds no difference in any stack."""
    assembly = str(deployed_assembly(cloud))
    said = cdk(cloud, tmp_path / "cli", "diff", "--fail", "--app", assembly)
    stacks = len(re.findall(r"(?m)^Stack LambdaPg-local-", said))
    assert stacks == len(re.findall(r"There were no differences", said)) == 6


def test_deploying_twice_changes_nothing(cloud: LocalCloud) -> None:
    """No stack is updated, and the environments that were there serve on."""
    cloud.end_environments("users")
    (pid,) = cloud.environments("users", 1)
    before = versions(cloud)
    cloud.deploy()
    assert versions(cloud) == before
    token = cloud.token(str(uuid.uuid4()))
    assert call(cloud.url, "GET", "/users", token).status == 200
    assert psutil.pid_exists(pid)


def test_new_code_of_one_function_replaces_that_function_only(
    cloud: LocalCloud, project: Path
) -> None:
    """Other functions keep their code, their version and their environments."""
    cloud.end_environments("health")
    (health,) = cloud.environments("health", 1)
    before = versions(cloud)
    handler = project / "functions" / "users" / "handler.py"
    handler.write_text(handler.read_text() + '\nlogger.debug("another version")\n')
    cloud.deploy(app=project)
    after = versions(cloud)
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == 1
    assert "Users" in changed.pop()
    assert psutil.pid_exists(health)
    token = cloud.token(str(uuid.uuid4()))
    assert call(cloud.url, "GET", "/users", token).status == 200


def versions(cloud: LocalCloud) -> dict[str, tuple[str, str]]:
    """Read each function's code and the version that its alias points at."""
    client = cloud.client("lambda")
    found = {}
    for function in client.list_functions()["Functions"]:
        name = function["FunctionName"]
        aliases = client.list_aliases(FunctionName=name)["Aliases"]
        live = aliases[0]["FunctionVersion"] if aliases else ""
        found[name] = (function["CodeSha256"], live)
    return found
