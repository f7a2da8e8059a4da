"""The files that functions and the pooler's image are built from, without the CDK."""

import os
from pathlib import Path

from lambda_pg_cdk import PACKAGE, PROJECT
from lambda_pg_cdk.layer.build import Recipe, Target, assemble
from lambda_pg_cdk.stage.config import Config

FUNCTIONS = PACKAGE / "functions"
OPERATIONS = PACKAGE / "operations"

SOURCE = "lambda-pg:source"
"""Type of the metadata that names a function's folder, in an assembly but not in a template."""


def target_of(config: Config) -> Target:
    """Return the stage's Python version and architecture; 'interpreter' means those of this one."""
    here = Target.interpreter()
    if config.python == config.architecture == "interpreter":
        return here
    python = here.python if config.python == "interpreter" else config.python
    architecture = (
        here.architecture if config.architecture == "interpreter" else config.architecture
    )
    return Target(python, architecture)


def source_metadata(function: str, source: Path) -> dict[str, str]:
    """Describe where a function's code comes from: its tag, and its folder in the project."""
    return {"function": function, "folder": os.path.relpath(source.resolve(), PROJECT.resolve())}


def function_code(source: Path, extra: tuple[str, ...], target: Target) -> Path:
    """Assemble a function's folder, its dependencies, and the project's folders in `extra`."""
    lock = source / "requirements.txt"
    recipe = Recipe(
        name=f"function-{source.name}",
        prefix="/var/task",
        sources=((source, "."), *((PROJECT / name, name) for name in extra)),
        requirements=lock if lock.exists() else None,
    )
    return assemble(recipe, target)


def pooler_context(target: Target) -> Path:
    """Assemble exactly what the Dockerfile of the pooler's image copies."""
    certificates = "layer/python/lambda_pg/certs/aws.pem"
    recipe = Recipe(
        name="pooler-image",
        prefix="/opt/lambda-pg",
        sources=((PACKAGE / "pgbouncer", "pgbouncer"), (PACKAGE / certificates, certificates)),
        bytecode=False,
    )
    return assemble(recipe, target)
