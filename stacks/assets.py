"""The code of functions, layer and pooler, as assets of the CDK."""

from pathlib import Path

from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk.layer.build import build_layer
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.sources import (
    function_code,
    migration_code,
    pooler_context,
    target_of,
)


class Assets:
    """The code of a stage, assembled for its Python version and architecture."""

    def __init__(self, config: Config) -> None:
        self.target = target_of(config)
        arm = self.target.architecture == "arm64"
        self.runtime = lambda_.Runtime(
            f"python{self.target.python}", lambda_.RuntimeFamily.PYTHON, supports_snap_start=True
        )
        self.architecture = lambda_.Architecture.ARM_64 if arm else lambda_.Architecture.X86_64
        platform, cpu = ecr_assets.Platform, ecs.CpuArchitecture
        self._platform = platform.LINUX_ARM64 if arm else platform.LINUX_AMD64
        self.cpu = cpu.ARM64 if arm else cpu.X86_64

    def layer(self) -> lambda_.Code:
        """Assemble the layer."""
        return lambda_.Code.from_asset(str(build_layer(self.target)))

    def pooler_image(self) -> ecs.AssetImage:
        """Return the image's folder as an asset; the deployment builds the image, not synth."""
        return ecs.ContainerImage.from_asset(
            str(pooler_context(self.target)), file="pgbouncer/Dockerfile", platform=self._platform
        )

    def function(self, source: Path, *extra: str) -> lambda_.Code:
        """Assemble a function's folder, its dependencies, and the project's folders in `extra`."""
        return lambda_.Code.from_asset(str(function_code(source, extra, self.target)))

    def migration(self, *, sample: bool) -> lambda_.Code:
        """Assemble the migration with the project's files, and the sample's if it is on."""
        return lambda_.Code.from_asset(str(migration_code(self.target, sample=sample)))
