"""The files that functions and the pooler's image are built from, without the CDK."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lambda_pg_cdk import PACKAGE, PROJECT
from lambda_pg_cdk.layer.build import Recipe, Target, assemble
from lambda_pg_cdk.migrations.declarations import FILE as SQL_ACCESS
from lambda_pg_cdk.migrations.declarations import read_access
from lambda_pg_cdk.migrations.revisions import Branch, MigrationError, read
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.messages import problem

FUNCTIONS = PACKAGE / "functions"
OPERATIONS = PACKAGE / "operations"

CONTAINER = "container"
"""Runtime of a function whose code is a container image."""

SOURCE = "lambda-pg:source"
"""Type of the metadata that names a function's folder, in an assembly but not in a template."""

NUMBERED = re.compile(r"[0-9]{4}_.+")
"""Names of an app's migrations and of the files that they read."""

MODULES = (
    *("access", "declarations", "declared_tables", "level_names", "levels", "plan", "policies"),
    *("public_rights", "revisions", "rights", "roles", "run", "tables", "upgrade"),
)
"""The room's modules that the function `migrate` imports."""


def targets_of(config: Config) -> tuple[Target, ...]:
    """Return the stage's Python versions, each with its architecture; the first is the default.

    'interpreter' means the version and the architecture of this one.
    """
    here = Target.interpreter()
    versions = (config.python,) if isinstance(config.python, str) else config.python
    architecture = (
        here.architecture if config.architecture == "interpreter" else config.architecture
    )
    found: dict[str, Target] = {}
    for version in versions:
        if version == config.architecture == "interpreter":
            target = here
        else:
            target = Target(here.python if version == "interpreter" else version, architecture)
        found.setdefault(target.python, target)
    return tuple(found.values())


def target_of(config: Config) -> Target:
    """Return the Python version and the architecture of the stage's own functions."""
    return targets_of(config)[0]


def layer_parameter(config: Config, target: Target) -> str:
    """Name the published value of the layer for one of the stage's Python versions."""
    return "layer/arn" if target == target_of(config) else f"layer/python{target.python}/arn"


SUFFIXES = {"python": (".py", "/__init__.py"), "nodejs": (".js", ".mjs", ".cjs")}
"""Files that a handler's module can be, by the beginning of the runtime's name."""


def folder_problems(
    name: str, source: Path, runtime: str, handler: str, shared: Sequence[str]
) -> Iterator[str]:
    """Yield what a function's folder lacks for its runtime; of other languages less is known."""
    for folder in (source, *map(_shared_folder, shared)):
        if not folder.exists():
            yield f"{name}: the folder {folder} does not exist"
    if not source.exists():
        return
    if shared and not runtime.startswith("python"):
        yield f"{name}: shared folders are for Python only; bundle the code of {runtime} yourself"
    if runtime == CONTAINER:
        if not (source / "Dockerfile").is_file():
            yield f"{name}: {source} has no Dockerfile, which runtime {CONTAINER!r} builds"
        return
    suffixes = next((found for kind, found in SUFFIXES.items() if runtime.startswith(kind)), None)
    if suffixes is None:
        return
    module, dot, _ = handler.rpartition(".")
    file = module.replace(".", "/") if runtime.startswith("python") else module
    if not dot or not any((source / f"{file}{suffix}").is_file() for suffix in suffixes):
        yield problem(
            f"the handler of {name}",
            handler,
            f"be FILE.FUNCTION of a file in {source}, which has no {file or handler}{suffixes[0]}",
        )


def source_metadata(function: str, source: Path) -> dict[str, str]:
    """Describe where a function's code comes from: its tag, and its folder in the project."""
    return {"function": function, "folder": os.path.relpath(source.resolve(), PROJECT.resolve())}


def _shared_folder(name: str) -> Path:
    """Find a folder of this package, by its path from there, or of the project."""
    package = PACKAGE.parent if name.startswith(f"{PACKAGE.name}/") else PROJECT
    return package / name


def function_code(source: Path, extra: Sequence[str], target: Target) -> Path:
    """Assemble a function's folder, its dependencies, and the folders in `extra`."""
    lock = source / "requirements.txt"
    recipe = Recipe(
        name=f"function-{source.name}",
        prefix="/var/task",
        sources=((source, "."), *((PACKAGE.parent / name, name) for name in extra)),
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


def migration_code(target: Target, *, sample: bool, project: Path = PROJECT) -> Path:
    """Assemble the function `migrate`: its code, the base, the sample, the project's migrations.

    Raise `MigrationError` for a file of the project that would not be applied, and for files that
    do not follow one another.
    """
    source = OPERATIONS / "migrate"
    recipe = Recipe(
        name="function-migrate",
        prefix="/var/task",
        sources=((source, "."), *migrations(project, sample=sample)),
        requirements=source / "requirements.txt",
    )
    return assemble(recipe, target)


def migrations(project: Path, *, sample: bool) -> tuple[tuple[Path, str], ...]:
    """Return the migration's code and all revisions, and where each goes; raise as above."""
    folder = project / "migrations"
    read(Branch(folder))
    read_access([folder])
    room, goes = PACKAGE / "migrations", "lambda_pg_cdk/migrations"
    names = [f"{name}.py" for name in MODULES] + (["base", "sample"] if sample else ["base"])
    ours = ((room / name, f"{goes}/{name}") for name in names)
    files = [*_numbered(folder, room), *folder.glob(SQL_ACCESS)]
    own = ((path, f"migrations/{path.name}") for path in files)
    return (*ours, *own)


def _numbered(folder: Path, room: Path) -> Iterator[Path]:
    """List the project's migrations; in a checkout of this package, its room has them too."""
    if old := sorted(folder.glob("versions/*.py")):
        raise MigrationError(
            f"{old[0]} is not read. Move the files of migrations/versions/ to migrations/, give "
            "the first of them down_revision = None, and leave out 0001_users.py and "
            "0002_claims_of_this_transaction.py, which lambda-pg has itself"
        )
    is_room = folder.resolve() == room.resolve()
    for path in sorted(folder.glob("*")):
        if NUMBERED.fullmatch(path.name):
            yield path
        elif path.suffix == ".py" and path.name != "__init__.py" and not is_room:
            raise MigrationError(
                f"{path} is not read. Rename it: a migration's name begins with four digits and an "
                "underscore, like 0001_orders.py"
            )
