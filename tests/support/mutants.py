"""Layers that are broken on purpose: what a chaos has to find."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud

LAYER = PROJECT / "layer" / "python" / "lambda_pg"

Mutant = tuple[str, str, str]
"""A module of the layer, a part of it, and what stands there instead."""

RETRY = (
    "_retry.py",
    "        self._open_window().pause(error, absent=absent)\n",
    "        raise DatabaseUnavailableError('a mutant does not retry') from error\n",
)
LIVENESS = (
    "_pool.py",
    "if lease.idle_since <= now < lease.fresh_until and not connection.poll(0):",
    "if lease.idle_since <= now < lease.fresh_until:",
)
REFRESH = (
    "_login.py",
    "other = self._credentials.after_refusal(credentials, left)",
    "other = None",
)
FAILED = "                attempts.failed(error, connection, alone=alone, idempotent=idempotent)\n"
SAYS_DONE = (
    "_database.py",
    FAILED,
    f"""{FAILED}                if attempts._failed.failure.name == 'NOT_RUN':
                    self._pool.release(connection)
                    return Rows(connection, row_factory=self._row_factory)
""",
)
REPEATS_ALL = (
    "_retry.py",
    "            case Failure.LOST if failed.repeatable:\n",
    "            case Failure.LOST:\n",
)
MUTANTS = (RETRY, LIVENESS, REFRESH, SAYS_DONE, REPEATS_ALL)


def mutated(mutant: Mutant, text: str) -> str:
    """Change a module's text; the part has to be there, once."""
    name, part, instead = mutant
    assert text.count(part) == 1, f"{name} is not what this mutant was made for"
    return text.replace(part, instead)


@contextmanager
def deployed_mutant(cloud: LocalCloud, mutant: Mutant, function: str) -> Iterator[None]:
    """Change the deployed layer under a function; environments that start in the block have it."""
    layers = {link.resolve() for link in (cloud.folder / "code" / "layers").iterdir()}
    (file,) = (path for layer in layers for path in layer.glob(f"python/lambda_pg/{mutant[0]}"))
    assert file.read_text() == (LAYER / mutant[0]).read_text(), "another layer is deployed"
    with _changed(file, mutated(mutant, file.read_text()), cloud, function):
        yield


@contextmanager
def mutant_function(
    cloud: LocalCloud, function: str, change: Callable[[str], str]
) -> Iterator[None]:
    """Change the deployed handler.py of a sample; environments that start in the block have it."""
    source = (PROJECT / "functions" / function / "handler.py").read_text()
    found = (cloud.folder / "code").glob("*/handler.py")
    (file,) = (path for path in found if path.read_text() == source)
    with _changed(file, change(source), cloud, function):
        yield


@contextmanager
def _changed(file: Path, text: str, cloud: LocalCloud, function: str) -> Iterator[None]:
    """Give a deployed file another text.

    Its bytecode is used whatever its source says, so it is taken away meanwhile.
    """
    compiled = [(path, path.read_bytes()) for path in file.parent.glob(f"*/{file.stem}.*.pyc")]
    before = file.read_bytes()
    try:
        _replace(file, text.encode())
        for path, _ in compiled:
            path.unlink()
        cloud.end_environments(function)
        yield
    finally:
        _replace(file, before)
        for path, content in compiled:
            _replace(path, content)
        cloud.end_environments(function)


def _replace(file: Path, content: bytes) -> None:
    """Give a file other content at once; a link to the layer's cache would change with it."""
    beside = file.with_suffix(".new")
    beside.write_bytes(content)
    beside.chmod(file.stat().st_mode if file.exists() else 0o644)
    beside.rename(file)
