"""Apps of somebody else's: a stage of cdk.json and what they add to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambda_pg_cdk.tools.context import context_of
from tests.support.templates import Resources

if TYPE_CHECKING:
    from aws_cdk import Stack
    from aws_cdk import aws_lambda as lambda_

HANDLER = "def handler(event, context):\n    return {'statusCode': 204}\n"


class OwnApp:
    """An app with a stage, a folder with one function, and another stack."""

    def __init__(
        self, folder: Path, override: Mapping[str, Any] | None = None, stage: str = "dev"
    ) -> None:
        """Make the app; `folder` is empty."""
        from aws_cdk import App, Stack  # noqa: PLC0415 - the CDK starts in seconds

        from lambda_pg_cdk import Stage  # noqa: PLC0415 - the CDK starts in seconds

        self.folder = folder / "orders"
        self.folder.mkdir()
        (self.folder / "handler.py").write_text(HANDLER)
        context = context_of(stage, override)
        # test_rules.py looks at what the CDK's own rules find.
        self.app = App(
            outdir=str(folder / "cdk.out"),
            context=context,
            builtin_cloud_formation_validation=False,
        )
        self.stage = Stage(self.app)
        self.stack = Stack(self.app, "Own")
        self._count = 0

    def name(self) -> str:
        """Return a new name for a function."""
        self._count += 1
        return f"orders-{self._count}"

    def function(self, name: str = "Function", **options: Any) -> lambda_.Function:
        """Make a function in the app's own stack, in the way of the CDK."""
        return plain_function(self.stack, name, **options)

    def template(self, stack: str) -> dict[str, Any]:
        """Synthesise, and read the template of a stack by the last part of its name."""
        prefix = "" if stack == "Own" else f"{self.stage.config.stack_prefix}-"
        assembly = self.stage.synth()
        template: dict[str, Any] = assembly.get_stack_by_name(f"{prefix}{stack}").template
        return template

    def resources(self, stack: str, kind: str) -> Resources:
        """Synthesise, and find a stack's resources of one type."""
        found = self.template(stack).get("Resources", {}).items()
        return {name: each for name, each in found if each["Type"] == kind}

    def depends(self, stack: str) -> list[str]:
        """Synthesise, and name the stacks that are deployed before a stack."""
        assembly = self.stage.synth()
        return [each.id for each in assembly.get_stack_by_name(stack).dependencies]


def plain_function(scope: Stack, name: str, **options: Any) -> lambda_.Function:
    """Make a function of Python 3.13 on arm64 whose timeout nests."""
    from aws_cdk import Duration  # noqa: PLC0415 - the CDK starts in seconds
    from aws_cdk import aws_lambda as lambda_  # noqa: PLC0415 - the CDK starts in seconds

    settings: dict[str, Any] = {
        "runtime": lambda_.Runtime.PYTHON_3_13,
        "architecture": lambda_.Architecture.ARM_64,
        "handler": "index.handler",
        "code": lambda_.Code.from_inline("handler = print"),
        "timeout": Duration.seconds(10),
        **options,
    }
    return lambda_.Function(scope, name, **settings)
