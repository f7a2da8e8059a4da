"""The code of functions, layer and pooler, as assets of the CDK."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk.layer.build import Target, build_layer
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.sources import (
    CONTAINER,
    function_code,
    migration_code,
    pooler_context,
    targets_of,
)


class Assets:
    """The code of a stage, assembled for its Python version and architecture."""

    def __init__(self, config: Config) -> None:
        self.targets = targets_of(config)
        self.target = self.targets[0]
        arm = self.target.architecture == "arm64"
        self.architecture = lambda_.Architecture.ARM_64 if arm else lambda_.Architecture.X86_64
        platform, cpu = ecr_assets.Platform, ecs.CpuArchitecture
        self._platform = platform.LINUX_ARM64 if arm else platform.LINUX_AMD64
        self.cpu = cpu.ARM64 if arm else cpu.X86_64

    def runtime_of(self, name: str | None) -> lambda_.Runtime:
        """Return a runtime by Lambda's name for it; None is the stage's Python."""
        pythons = [f"python{target.python}" for target in self.targets]
        if name is None or name in pythons:
            python = lambda_.RuntimeFamily.PYTHON
            return lambda_.Runtime(name or pythons[0], python, supports_snap_start=True)
        return runtimes()[name]

    def starts_from_snapshots(self, runtime: str | None) -> bool:
        """Tell whether Lambda can restore a runtime from a snapshot; no container image."""
        return runtime != CONTAINER and self.runtime_of(runtime).supports_snap_start

    def layer(self, target: Target) -> lambda_.Code:
        """Assemble the layer for one of the stage's Python versions."""
        return lambda_.Code.from_asset(str(build_layer(target)))

    def pooler_image(self) -> ecs.AssetImage:
        """Return the image's folder as an asset; the deployment builds the image, not synth."""
        return ecs.ContainerImage.from_asset(
            str(pooler_context(self.target)), file="pgbouncer/Dockerfile", platform=self._platform
        )

    def container(self, source: Path) -> lambda_.DockerImageCode:
        """Return a folder with a Dockerfile as an asset; the deployment builds the image."""
        return lambda_.DockerImageCode.from_image_asset(str(source), platform=self._platform)

    def function(self, source: Path, *extra: str, runtime: str | None = None) -> lambda_.Code:
        """Assemble a function's folder, its dependencies, and the project's folders in `extra`.

        Code for a runtime that is not Python is deployed as it is.
        """
        targets = {f"python{target.python}": target for target in self.targets}
        if runtime is not None and runtime not in targets:
            return lambda_.Code.from_asset(str(source))
        target = self.target if runtime is None else targets[runtime]
        return lambda_.Code.from_asset(str(function_code(source, extra, target)))

    def migration(self, *, sample: bool) -> lambda_.Code:
        """Assemble the migration with the project's files, and the sample's if it is on."""
        return lambda_.Code.from_asset(str(migration_code(self.target, sample=sample)))


@cache
def runtimes() -> Mapping[str, lambda_.Runtime]:
    """Return the runtimes that the installed CDK knows, by name."""
    return {runtime.name: runtime for runtime in lambda_.Runtime.ALL}
