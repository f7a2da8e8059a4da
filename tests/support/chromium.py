"""Find a headless Chromium: one that is named, the one that `make setup` has, or the machine's."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.layer.cache import cache_dir

NAME = "LAMBDA_PG_CHROMIUM"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PACKAGE = PROJECT / "node_modules" / "@sparticuz" / "chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_UNPACK = 'process.stdin.pipe(require("zlib").createBrotliDecompress()).pipe(process.stdout)'
_FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""


@dataclass(frozen=True)
class Chromium:
    """A program, and the variables that it needs on top of the environment's."""

    program: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str | float | bool]:
        """Return the whole environment to start it with."""
        return {**os.environ, **self.variables}


def find_chromium(environment: Mapping[str, str] = os.environ, package: Path = PACKAGE) -> Chromium:
    """Return a browser; raise FileNotFoundError, naming what was looked for and the remedy."""
    if named := environment.get(NAME):
        if Path(named).is_file():
            return Chromium(Path(named))
        raise FileNotFoundError(f"{NAME} is {named}, and there is no such file")
    if (package / "bin" / "chromium.br").is_file() and platform.machine() == "x86_64":
        return unpacked(package)
    for name in PROGRAMS:
        if found := shutil.which(name, path=environment.get("PATH")):
            return Chromium(Path(found))
    raise FileNotFoundError(
        f"no Chromium: {NAME} is not set, {package} is not there (`make setup` installs it, for "
        f"x86-64), and none of {', '.join(PROGRAMS)} is in PATH. Run `make setup`, or install one "
        "- Debian: apt install chromium"
    )


def unpacked(package: Path) -> Chromium:
    """Unpack the browser, its libraries and its fonts, once for each version."""
    version = json.loads((package / "package.json").read_text())["version"]
    folder = cache_dir() / f"chromium-{version}"
    if not folder.exists():
        partial = folder.with_suffix(f".{os.getpid()}")
        _unpack(package / "bin", partial)
        (partial / "fonts.conf").write_text(_FONTS.format(folder=folder))
        partial.rename(folder)
    variables = {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": f"{folder}/fonts.conf"}
    return Chromium(folder / "chromium", variables)


def _unpack(archives: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    program = folder / "chromium"
    _decompress(archives / "chromium.br", program)
    program.chmod(0o755)
    for name in ("al2023", "fonts"):
        archive = folder / f"{name}.tar"
        _decompress(archives / f"{name}.tar.br", archive)
        subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
        archive.unlink()


def _decompress(packed: Path, target: Path) -> None:
    """Node.js knows the format, Python does not."""
    with packed.open("rb") as source, target.open("wb") as sink:
        subprocess.run(["node", "-e", _UNPACK], stdin=source, stdout=sink, check=True)
