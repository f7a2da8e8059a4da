"""The folders of a local cloud, and who may enter them."""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.layer.cache import NAME


def state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of a running local cloud: its state, data and logs.

    Its path is short: the path of a unix socket may have about 100 characters.
    """
    if chosen := environment.get("LAMBDA_PG_STATE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return _root_state_parent() / NAME
    home = Path.home() / ".local" / "state"
    return Path(environment.get("XDG_RUNTIME_DIR") or home) / NAME


def another_state_dir() -> Path:
    """Choose a folder for another cloud than that of `make up`.

    It is not in TMPDIR, whose path may be long or closed to the servers' account.
    """
    return Path("/tmp") / f"lpg-{secrets.token_hex(4)}"  # noqa: S108 - its name is random, its mode private


def import_root(folder: Path) -> Path:
    """Return a folder below another one in which Python finds this package, and nothing else.

    The folder that the package lies in may have other packages, which another interpreter than
    this one, with packages that it was set up with, would take for its own.
    """
    root = folder / "import"
    root.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        (root / PACKAGE.name).symlink_to(PACKAGE)
    return root


def _root_state_parent() -> Path:
    run = Path("/run")
    return run if run.is_dir() and os.access(run, os.W_OK) else Path("/var/tmp")  # noqa: S108 - root creates its own folder in it


def shareable(folder: Path) -> Path:
    """Create a folder that the servers' account can enter; raise PermissionError if it cannot.

    Other accounts cannot list it; each file in it has its own mode. The error names the parent
    folder that is closed to the servers' account.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return folder
    folder.chmod(folder.stat().st_mode | 0o011)
    for parent in folder.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            raise PermissionError(
                f"{parent} is closed to other accounts, but the servers do not run as root and "
                f"need {folder}. Open it with `chmod o+x {parent}`, or choose another "
                "place with LAMBDA_PG_CACHE_DIR and LAMBDA_PG_STATE_DIR."
            )
    return folder
