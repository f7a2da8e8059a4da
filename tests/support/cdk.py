"""The CDK command line against a running cloud, as used in another terminal."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.deployment import zips
from lambda_pg_cdk.local.deployment.cdk import Cdk


def cdk(cloud: LocalCloud, folder: Path, *arguments: str, app: Path = PROJECT) -> str:
    """Run a command in the folder of an app; return its output, or raise with it."""
    return asyncio.run(command_line(cloud, folder).run(list(arguments), app, arguments[0]))


def deploy(cloud: LocalCloud, folder: Path, override: Mapping[str, Any], *stacks: str) -> Path:
    """Deploy stacks of the project with other settings; return the assembly."""
    used = command_line(cloud, folder)
    asyncio.run(used.synth(PROJECT, "app", override))
    zips.restore(used.assembly)
    options = ["--app", str(used.assembly), "--require-approval", "never", "--method", "direct"]
    asyncio.run(used.run(["deploy", *stacks, *options], PROJECT, "deploy"))
    return used.assembly


def bootstrap(cloud: LocalCloud, folder: Path) -> None:
    """Prepare the account of a cloud that has deployed nothing."""
    asyncio.run(command_line(cloud, folder).bootstrap())


def command_line(cloud: LocalCloud, folder: Path) -> Cdk:
    """Point the command line to a cloud; its output goes to a folder."""
    folder.mkdir(exist_ok=True)
    state = cloud.state
    return Cdk(folder, state.aws_endpoint_url, "000000000000", state.region, state.key)


def deployed_assembly(cloud: LocalCloud) -> Path:
    """Name the folder of the templates that the cloud has deployed."""
    return cloud.folder / "cdk" / "cdk.out"


def application_login(cloud: LocalCloud, value: str = "pooler/secret-arn") -> dict[str, Any]:
    """Read the current user and password of the application, or of another published secret."""
    client = cloud.client("secretsmanager")
    text = client.get_secret_value(SecretId=secret_arn(cloud, value))["SecretString"]
    login: dict[str, Any] = json.loads(text)
    return login


def secret_arn(cloud: LocalCloud, value: str = "pooler/secret-arn") -> str:
    """Read the ARN of the application's secret, or of another, from what the stage publishes."""
    parameter = cloud.client("ssm").get_parameter(Name=f"/lambda-pg/local/{value}")
    return str(parameter["Parameter"]["Value"])
