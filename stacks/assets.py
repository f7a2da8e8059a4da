"""What the functions run: their folders, their dependencies and the layer, as CDK code."""

from pathlib import Path

from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk import PACKAGE, PROJECT
from lambda_pg_cdk.layer.build import Recipe, Target, assemble, build_layer
from lambda_pg_cdk.stage.config import Config

FUNCTIONS = PACKAGE / "functions"
OPERATIONS = PACKAGE / "operations"


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
        """Name what the image is built from at deployment: nothing is built here."""
        return ecs.ContainerImage.from_asset(
            str(pooler_context(self.target)), file="pgbouncer/Dockerfile", platform=self._platform
        )

    def function(self, source: Path, *extra: str) -> lambda_.Code:
        """Assemble a function's folder, its dependencies, and the project's folders in `extra`."""
        lock = source / "requirements.txt"
        recipe = Recipe(
            name=f"function-{source.name}",
            prefix="/var/task",
            sources=((source, "."), *((PROJECT / name, name) for name in extra)),
            requirements=lock if lock.exists() else None,
        )
        return lambda_.Code.from_asset(str(assemble(recipe, self.target)))


def pooler_context(target: Target) -> Path:
    """Gather what the Dockerfile of the pooler's image copies, and only that."""
    certificates = "layer/python/lambda_pg/certs/aws.pem"
    recipe = Recipe(
        name="pooler-image",
        prefix="/opt/lambda-pg",
        sources=((PACKAGE / "pgbouncer", "pgbouncer"), (PACKAGE / certificates, certificates)),
        bytecode=False,
    )
    return assemble(recipe, target)


def target_of(config: Config) -> Target:
    """Say what to build for; 'interpreter' is the Python that runs this, on this machine."""
    here = Target.interpreter()
    if config.python == config.architecture == "interpreter":
        return here
    python = here.python if config.python == "interpreter" else config.python
    architecture = (
        here.architecture if config.architecture == "interpreter" else config.architecture
    )
    return Target(python, architecture)
