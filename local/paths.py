"""Where a local cloud keeps its state, and how its servers reach it."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from lambda_pg_cdk.layer.cache import NAME


def state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Name the folder of one running local cloud: its state, data and logs.

    It is short, because the path of a unix socket has room for about 100 characters.
    """
    if chosen := environment.get("LAMBDA_PG_STATE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return _root_state_parent() / NAME
    home = Path.home() / ".local" / "state"
    return Path(environment.get("XDG_RUNTIME_DIR") or home) / NAME


def another_state_dir() -> Path:
    """Choose a folder for a cloud besides that of `make up`.

    Not below TMPDIR, which may be long, or closed to the servers' account.
    """
    return Path("/tmp") / f"lpg-{secrets.token_hex(4)}"  # noqa: S108 - a folder of our own


def _root_state_parent() -> Path:
    run = Path("/run")
    return run if run.is_dir() and os.access(run, os.W_OK) else Path("/var/tmp")  # noqa: S108 - a folder of our own is made in it, and its owner is root


def shareable(folder: Path) -> Path:
    """Create a folder that the servers' account may enter, and check that it can be reached.

    Nobody may list it: what is inside is open to that account, or closed, by modes of its own.
    Raises PermissionError, naming the closed parent, where root's servers could not get through.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return folder
    folder.chmod(folder.stat().st_mode | 0o011)
    for parent in folder.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            raise PermissionError(
                f"{parent} is closed to other accounts, but the servers do not run as root and "
                f"have to reach {folder}. Open it with `chmod o+x {parent}`, or choose another "
                "place with LAMBDA_PG_CACHE_DIR and LAMBDA_PG_STATE_DIR."
            )
    return folder
