"""Locales of other languages, made in a folder: most machines have only English."""

import shutil
import subprocess
from pathlib import Path

import pytest

DEFINITIONS = Path("/usr/share/i18n/locales")
CATALOGUES = Path("/usr/share/locale")


def make_locale(folder: Path, name: str, *, catalogue: str) -> None:
    """Make the locale `name`, as de_DE, with UTF-8 in a folder that LOCPATH then names.

    Skips the test where the machine lacks what it takes, or the language's messages of `catalogue`.
    """
    messages = CATALOGUES / name.partition("_")[0] / "LC_MESSAGES" / f"{catalogue}.mo"
    for needed in (DEFINITIONS / name, messages):
        if not needed.exists():
            pytest.skip(f"there is no {needed} (Debian: packages locales and postgresql)")
    if shutil.which("localedef") is None:
        pytest.skip("localedef is missing (Debian: package libc-bin)")
    place = folder / f"{name}.UTF-8"
    made = subprocess.run(
        ["localedef", "--no-archive", "-i", name, "-f", "UTF-8", str(place)],
        capture_output=True,
        text=True,
        umask=0o022,
        check=False,
    )
    if not (place / "LC_CTYPE").exists():  # it also warns, with the exit code 1
        pytest.skip(f"localedef could not make {place}: {made.stderr.strip()}")
