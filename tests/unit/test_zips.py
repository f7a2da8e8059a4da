"""The zip files of assets, which clouds share."""

import os
import time
from pathlib import Path

import pytest

from lambda_pg_cdk.local.deployment import zips


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder that all clouds share."""
    return tmp_path / "kept"


@pytest.fixture
def assembly(tmp_path: Path) -> Path:
    """An assembly with two assets, of which one has been packed."""
    folder = tmp_path / "cdk.out"
    for name in ("asset.a1", "asset.b2", ".cache"):
        (folder / name).mkdir(parents=True)
    (folder / ".cache" / "a1.zip").write_text("packed")
    return folder


def test_a_packed_asset_is_found_by_the_next_cloud(
    tmp_path: Path, kept: Path, assembly: Path
) -> None:
    """Where the command line looks for it; an asset that was not packed is passed over."""
    zips.keep(assembly, kept)
    another = tmp_path / "another"
    for name in ("asset.a1", "asset.b2"):
        (another / name).mkdir(parents=True)
    zips.restore(another, kept)
    found = {path.name: path.read_text() for path in (another / ".cache").iterdir()}
    assert found == {"a1.zip": "packed"}


def test_only_what_an_assembly_has_is_restored(tmp_path: Path, kept: Path, assembly: Path) -> None:
    """Others' zip files stay where they are."""
    zips.keep(assembly, kept)
    another = tmp_path / "another"
    (another / "asset.c3").mkdir(parents=True)
    zips.restore(another, kept)
    assert list(another.rglob("*.zip")) == []


def test_what_was_not_used_for_a_day_is_forgotten(kept: Path, assembly: Path) -> None:
    """What is used stays, however old it is."""
    zips.keep(assembly, kept)
    (kept / "c3.zip").write_text("old")
    long_ago = time.time() - zips.KEEP_SECONDS - 60
    for path in kept.iterdir():
        os.utime(path, (long_ago, long_ago))
    zips.restore(assembly, kept)
    zips.keep(assembly, kept)
    assert {path.name for path in kept.iterdir()} == {"a1.zip"}
