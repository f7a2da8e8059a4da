"""Layers that are broken on purpose: what a chaos has to find."""

from collections.abc import Iterator
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
    """Change the deployed layer under a function; environments that start in the block have it.

    Bytecode of a layer is used whatever its source says, so it is taken away meanwhile.
    """
    layers = {link.resolve() for link in (cloud.folder / "code" / "layers").iterdir()}
    (file,) = (path for layer in layers for path in layer.glob(f"python/lambda_pg/{mutant[0]}"))
    compiled = [(path, path.read_bytes()) for path in file.parent.glob(f"*/{file.stem}.*.pyc")]
    text = file.read_text()
    assert text == (LAYER / mutant[0]).read_text(), "another layer is deployed"
    try:
        _replace(file, mutated(mutant, text).encode())
        for path, _ in compiled:
            path.unlink()
        cloud.end_environments(function)
        yield
    finally:
        _replace(file, text.encode())
        for path, content in compiled:
            _replace(path, content)
        cloud.end_environments(function)


def _replace(file: Path, content: bytes) -> None:
    """Give a file other content at once; a link to the layer's cache would change with it."""
    beside = file.with_suffix(".new")
    beside.write_bytes(content)
    beside.chmod(file.stat().st_mode if file.exists() else 0o644)
    beside.rename(file)
