"""The CDK command line against a running cloud, as used in another terminal."""

import asyncio
import json
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.deployment.cdk import Cdk


def cdk(cloud: LocalCloud, folder: Path, *arguments: str, app: Path = PROJECT) -> str:
    """Run a command in the folder of an app; return its output, or raise with it."""
    folder.mkdir(exist_ok=True)
    state = cloud.state
    command_line = Cdk(folder, state.aws_endpoint_url, "000000000000", state.region, state.key)
    return asyncio.run(command_line.run(list(arguments), app, arguments[0]))


def deployed_assembly(cloud: LocalCloud) -> Path:
    """Name the folder of the templates that the cloud has deployed."""
    return cloud.folder / "cdk" / "cdk.out"


def application_login(cloud: LocalCloud) -> dict[str, Any]:
    """Read the application's current user and password."""
    client = cloud.client("secretsmanager")
    text = client.get_secret_value(SecretId=secret_arn(cloud))["SecretString"]
    login: dict[str, Any] = json.loads(text)
    return login


def secret_arn(cloud: LocalCloud) -> str:
    """Read the application's secret from what the stage publishes."""
    parameter = cloud.client("ssm").get_parameter(Name="/lambda-pg/local/pooler/secret-arn")
    return str(parameter["Parameter"]["Value"])
