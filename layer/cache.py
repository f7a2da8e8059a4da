"""The folder for files that are fetched or built once."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NAME = "lambda-pg"


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for servers, environments and built layers, which are kept."""
    if chosen := environment.get("LAMBDA_PG_CACHE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/cache") / NAME
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time make a folder; the lock file stays: removing it would race."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
