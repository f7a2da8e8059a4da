"""Why the import of psycopg failed: a function's own copy comes before the layer's.

Nothing here imports psycopg. Imported only after an ImportError.
"""

import re
from importlib import metadata, util
from pathlib import Path
from typing import Final

NEEDED: Final = "3.3.9"
"""The oldest psycopg that is tested; any 3.3 has the names that the layer imports."""

_MINOR: Final = (3, 3)


def explain(error: ImportError) -> None:
    """Raise ImportError, caused by `error`, where a psycopg of another version was found."""
    spec = util.find_spec("psycopg")
    version = _version()
    if spec is None or spec.origin is None or _minor(version) == _MINOR:
        return
    raise ImportError(
        f"psycopg {version} in {Path(spec.origin).parent} does not fit: lambda_pg needs "
        f"psycopg>={NEEDED},<3.4. Leave psycopg out of the function's package, so that the "
        f"layer's own is used, or bundle psycopg[binary]>={NEEDED},<3.4"
    ) from error


def _version() -> str:
    """Read the installed version, without an import of the package, which may fail."""
    try:
        return metadata.version("psycopg")
    except metadata.PackageNotFoundError:
        return "of an unknown version"


def _minor(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None
