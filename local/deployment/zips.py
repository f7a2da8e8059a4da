"""Keep the zip files of assets, so that not every cloud packs the same folders again.

The CDK command line packs the folder of each function and layer, for 3 s of processor, and looks
before that in `.cache` of the assembly for `ASSET.zip`. An asset's id is the hash of its content.
"""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from lambda_pg_cdk.layer.cache import cache_dir

KEPT = cache_dir() / "assets"
KEEP_SECONDS = 24 * 3600
"""How long a zip file is kept after its last use."""


def restore(assembly: Path, kept: Path = KEPT) -> None:
    """Copy the kept zip files of an assembly's assets to where the command line looks."""
    for folder in assembly.glob("asset.*/"):
        name = f"{folder.name.removeprefix('asset.')}.zip"
        with suppress(FileNotFoundError):  # not kept
            _copy(kept / name, _packed(assembly) / name)
            os.utime(kept / name)


def keep(assembly: Path, kept: Path = KEPT) -> None:
    """Keep the zip files that the command line has made, and forget those unused for a day."""
    for packed in _packed(assembly).glob("*.zip"):
        _copy(packed, kept / packed.name)
    for old in kept.glob("*"):
        with suppress(FileNotFoundError):  # another process has forgotten it
            if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                old.unlink()


def _packed(assembly: Path) -> Path:
    return assembly / ".cache"


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless it is there; other processes never see a part of it."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        source.open("rb") as content,
        tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as copy,
    ):
        shutil.copyfileobj(content, copy)
    Path(copy.name).rename(target)
