"""Deploy the CDK app to the control plane, with the real command line."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PACKAGE, PROJECT
from lambda_pg_cdk.local.deployment import zips
from lambda_pg_cdk.local.processes import last_lines, open_log
from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE, client_keys, credentials

STAGE = "local"
# Without a change set, which nobody would look at: the command line compares it with the template.
_DEPLOY = (
    *("deploy", "--all", "--require-approval", "never", "--method", "direct"),
    *("--concurrency", "4", "--progress", "events", "--asset-parallelism"),
)
_COMMAND_LINE = PROJECT / "node_modules" / "aws-cdk"
_SYNTHESISE = "lambda_pg_cdk.local.deployment.synthesise"
_TOOLKIT = "CDKToolkit"
# What `cdk bootstrap` gives to its template without options (aws-cdk, `modernBootstrap`).
_BOOTSTRAP_PARAMETERS = {"FileAssetsBucketKmsKeyId": "AWS_MANAGED_KEY"}
_INHERITED = (
    *("PATH", "HOME", "LANG", "LC_ALL"),
    *("XDG_CACHE_HOME", "LAMBDA_PG_CACHE_DIR", CLOUD_ID_VARIABLE),
)


class DeploymentError(RuntimeError):
    """The CDK command line failed; has the end of its output."""


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; the second wins."""
    merged = dict(one)
    for name, value in other.items():
        before = merged.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(before, value) if both else value  # type: ignore[arg-type]
    return merged


@dataclass(frozen=True, slots=True)
class Cdk:
    """The CDK command line, pointed at a control plane."""

    folder: Path  # for its output, its log and its temporary files
    endpoint: str
    account: str
    region: str
    key: str = field(repr=False)

    @property
    def log(self) -> Path:
        """The output of the command line."""
        return self.folder / "cdk.log"

    @property
    def assembly(self) -> Path:
        """The folder of the synthesised stacks."""
        return self.folder / "cdk.out"

    async def bootstrap(self) -> None:
        """Prepare a new account, as `cdk bootstrap` does; raise `DeploymentError`.

        The template is the command line's own. Its start alone would take a second of processor.
        """
        await asyncio.to_thread(self._bootstrap)

    def _bootstrap(self) -> None:
        import boto3  # noqa: PLC0415 - 0.1 s that `status` and `token` do not need
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as boto3

        client = boto3.client(
            "cloudformation",
            endpoint_url=self.endpoint,
            region_name=self.region,
            **client_keys(self.key),
        )
        template = _COMMAND_LINE / "lib" / "api" / "bootstrap" / "bootstrap-template.yaml"
        try:
            client.create_stack(
                StackName=_TOOLKIT,
                TemplateBody=template.read_text(),
                Capabilities=["CAPABILITY_NAMED_IAM"],
                Parameters=[
                    {"ParameterKey": name, "ParameterValue": value}
                    for name, value in _BOOTSTRAP_PARAMETERS.items()
                ],
            )
            waiter = client.get_waiter("stack_create_complete")
            waiter.wait(StackName=_TOOLKIT, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        except (BotoCoreError, ClientError, FileNotFoundError) as error:
            raise DeploymentError(f"the stack {_TOOLKIT} was not created: {error}") from error

    async def synth(self, app: Path, entry: str, override: Mapping[str, Any]) -> None:
        """Synthesise the stacks of the stage `local`, which a module of the app builds."""
        await self.run(["synth", "--quiet", *self._stacks_of(entry, override)], app, "synth")

    async def deploy(self, app: Path) -> None:
        """Deploy what has been synthesised."""
        await asyncio.to_thread(zips.restore, self.assembly)
        await self.run([*_DEPLOY, "--app", str(self.assembly)], app, "deploy")
        await asyncio.to_thread(zips.keep, self.assembly)

    async def synth_and_deploy(self, app: Path, entry: str, override: Mapping[str, Any]) -> None:
        """Do both in one process: the command line takes a second of processor to start."""
        await self.run([*_DEPLOY, *self._stacks_of(entry, override)], app, "deploy")

    def _stacks_of(self, entry: str, override: Mapping[str, Any]) -> list[str]:
        """Return the options to synthesise the stacks of the stage `local`."""
        context = ["--context", f"stage={STAGE}", "--context", f"override={json.dumps(override)}"]
        command = [
            "--app",
            f"{sys.executable} -m {_SYNTHESISE} {entry}",
            "--output",
            str(self.assembly),
        ]
        return [*command, *context]

    async def run(self, arguments: list[str], folder: Path, what: str) -> str:
        """Run one command in `folder` and return its output; raise `DeploymentError`."""
        log = self.folder / f"cdk-{what}.log"
        with open_log(log, "wb") as output:
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                *arguments,
                "--no-notices",
                cwd=folder,
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if code != 0:
            raise DeploymentError(f"`cdk {what}` failed with exit code {code}:\n{_reason(log)}")
        return log.read_text(errors="replace")

    def _command(self) -> list[str]:
        node = shutil.which("node")
        if node is None:
            raise DeploymentError(
                "the CDK command line needs Node.js 20 or newer: install `nodejs`"
            )
        script = _COMMAND_LINE / "bin" / "cdk"
        if not script.exists():
            raise DeploymentError(f"{script} is missing: run `make setup` in {PROJECT}")
        return [node, str(script)]

    def _environment(self) -> dict[str, str]:
        """Return variables without the developer's AWS settings: no real account is reachable."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        mine = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return {
            **mine,
            **credentials(self.key),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "CDK_DOCKER": str(PACKAGE / "local" / "deployment" / "image_builder"),
            "CDK_DISABLE_CLI_TELEMETRY": "true",
            # The CDK's own check of templates, which only warns: half of a synthesis' processor.
            "CDK_VALIDATION": "false",
            # A dozen lines about Node.js 20, in which the cause of a failure is hard to find.
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
            "NO_COLOR": "1",
            "PYTHONPATH": "",
            "TMPDIR": str(temporary),
        }


def _reason(log: Path) -> str:
    """Return the cause from a log: the failed resources, if they are listed, or its end."""
    _, found, failed = last_lines(log, 200).rpartition("Failed resources:")
    return found + failed if found else last_lines(log, 40)
