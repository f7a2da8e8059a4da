"""Assemble what runs in Lambda, for any supported Python and architecture, from any machine.

Wheels come from a lock file with hashes; no Docker and no compiler. The same input gives the same
tree, byte for byte. Results are kept in the project's cache, which all checkouts share, keyed by a
hash of everything they are made of.

    python -m lambda_pg_cdk.layer.build --python 3.13 --architecture arm64 --output build/layer
"""

import argparse
import hashlib
import io
import os
import platform
import posixpath
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import cache_from_source
from pathlib import Path

from packaging.requirements import Requirement

from lambda_pg_cdk import PACKAGE, __version__
from lambda_pg_cdk.layer.cache import cache_dir, one_at_a_time

BUILD = cache_dir() / "built"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
NEWEST_GLIBC = 34
"""Amazon Linux 2023 has glibc 2.34; Lambda's Python 3.11 runs on Amazon Linux 2, which has 2.26."""

UNUSED = ("*.pyi", "*.pyx", "*.pxd", "*.c", "*.h")
UNUSED_METADATA = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
KEEP_SECONDS = 24 * 3600
KEEP_LAST = 3
"""How many of one kind are kept at any age: a checkout may be used again after a week."""

IMPORTS = ("psycopg", "lambda_pg")
"""Modules whose import is timed; lambda_pg's time includes psycopg's."""


class BuildError(RuntimeError):
    """A part could not be assembled; the message says which and what to do."""


@dataclass(frozen=True)
class Target:
    """A Python version and an architecture, of this machine or another one."""

    python: str
    architecture: str
    native: bool = False

    def __post_init__(self) -> None:
        """Refuse what the layer does not support."""
        if self.python not in PYTHONS:
            raise BuildError(f"Python {self.python} is not supported: use {', '.join(PYTHONS)}")
        if self.architecture not in MACHINES:
            known = ", ".join(MACHINES)
            raise BuildError(f"architecture {self.architecture!r} is not one of {known}")

    @classmethod
    def interpreter(cls) -> "Target":
        """Return the target of the running interpreter."""
        python = "{}.{}".format(*sys.version_info[:2])
        machine = platform.machine().lower()
        architecture = {"aarch64": "arm64", "amd64": "x86_64"}.get(machine, machine)
        return cls(python, architecture, native=True)

    @property
    def machine(self) -> str:
        """Name the architecture as Linux does."""
        return MACHINES[self.architecture]

    @property
    def compiles(self) -> bool:
        """Tell whether this interpreter's bytecode is the target's."""
        return self.python == "{}.{}".format(*sys.version_info[:2])

    @property
    def maker(self) -> str:
        """Name the interpreter if the result depends on it: 3.11.2 and 3.11.7 compile differently.

        Without bytecode and without wheels for this machine, all interpreters give the same result.
        """
        if not (self.native or self.compiles):
            return ""
        return f"{sys.version} {sysconfig.get_platform()}"

    def marker_environment(self) -> dict[str, str]:
        """Return the values for the markers of a lock file.

        pip uses the values of the Python that runs it, even with --python-version.
        """
        if self.native:
            return {}
        return {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def pip_options(self) -> list[str]:
        """Return pip's options for wheels that run there, those for older systems first."""
        if self.native:
            return []
        tags = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, NEWEST_GLIBC + 1))]
        options = [f"--platform={tag}_{self.machine}" for tag in tags]
        return [*options, f"--python-version={self.python}", "--implementation=cp"]


@dataclass(frozen=True)
class Recipe:
    """The parts of one folder."""

    name: str
    prefix: str
    """Path at which Lambda unpacks it; bytecode has the path of its source."""
    sources: tuple[tuple[Path, str], ...]
    """Files and folders of the project, and where each goes."""
    requirements: Path | None = None
    packages: str = "."
    """Folder for the wheels, relative to the folder."""
    patch: Path | None = None
    """Changes of the wheels: a unified diff, named after the distribution and its version."""
    bytecode: bool = True
    """Whether it runs on the target's Python."""


LAYER = Recipe(
    name="layer",
    prefix="/opt",
    sources=((PACKAGE / "layer" / "python", "python"), (PACKAGE / "layer" / "LICENSE", "LICENSE")),
    requirements=PACKAGE / "layer" / "requirements.txt",
    packages="python",
    patch=PACKAGE / "layer" / "psycopg-3.3.9.patch",
)
PUBLISHED = replace(LAYER, name="psycopg", sources=(), patch=None)
"""The layer with unchanged wheels, for comparison."""


def build_layer(target: Target) -> Path:
    """Assemble the layer: lambda_pg and its dependencies below python/."""
    return assemble(LAYER, target)


def assemble(recipe: Recipe, target: Target) -> Path:
    """Build the folder unless it exists already; return its path."""
    inputs = tuple(_source_files(recipe.sources))
    key = _key(recipe, target, inputs)
    label = f"{recipe.name}-{target.python}-{target.architecture}"
    destination = BUILD / label / key
    if not _is_kept(destination):
        with _new_folder(destination) as folder:
            _fill(folder, recipe, target, inputs)
    return destination


def tree_hash(folder: Path) -> str:
    """Hash names, modes and contents of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        mode = path.stat().st_mode & 0o777
        digest.update(f"{path.relative_to(folder).as_posix()}\0{mode:o}\0".encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _fill(folder: Path, recipe: Recipe, target: Target, inputs: Sequence[tuple[Path, str]]) -> None:
    compiles = recipe.bytecode and target.compiles
    if recipe.requirements is not None:
        wheels = install(recipe.requirements, target)
        if compiles and recipe.patch is None:
            wheels = _compiled(wheels, posixpath.normpath(f"{recipe.prefix}/{recipe.packages}"))
        shutil.copytree(wheels, folder / recipe.packages, dirs_exist_ok=True)
    if recipe.patch is not None:
        apply_patch(recipe.patch, folder / recipe.packages)
    for source, name in inputs:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        _bytecode(place).unlink(missing_ok=True)  # of a wheel's file in the same place
    if compiles:
        _compile(folder, recipe.prefix)
    _normalise(folder)


def install(requirements: Path, target: Target) -> Path:
    """Unpack the lock file's wheels for the target, without files not needed at run time."""
    wanted = "\n".join(pinned(requirements.read_text(encoding="utf-8"), target)) + "\n"
    key = hashlib.sha256(f"{_builder()}\0{target}\0{target.maker}\0{wanted}".encode())
    destination = BUILD / "wheels" / key.hexdigest()[:16]
    if not _is_kept(destination):
        with _new_folder(destination) as folder:
            _pip(wanted, folder, target, requirements)
            _prune(folder)
            _require_licences(folder)
    return destination


def _compiled(wheels: Path, prefix: str) -> Path:
    """Return unpacked wheels with their bytecode, which is made once: it takes a second or more."""
    key = hashlib.sha256(f"{_builder()}\0{wheels.name}\0{prefix}".encode())
    destination = BUILD / "compiled" / key.hexdigest()[:16]
    if not _is_kept(destination):
        with _new_folder(destination) as folder:
            shutil.copytree(wheels, folder, dirs_exist_ok=True)
            _compile(folder, prefix)
    return destination


def pinned(lock: str, target: Target) -> Iterator[str]:
    """Yield the lines of the lock file that apply to the target, without their markers."""
    text = "\n".join(line for line in lock.splitlines() if not line.lstrip().startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        specifier, *hashes = line.split(" --hash=")
        if not specifier.strip():
            continue
        requirement = Requirement(specifier.strip())
        marker, requirement.marker = requirement.marker, None
        if marker is None or marker.evaluate(target.marker_environment()):
            yield " --hash=".join([str(requirement), *(value.strip() for value in hashes)])


def apply_patch(patch: Path, folder: Path) -> None:
    """Apply a unified diff to a folder; raise BuildError unless it applies exactly.

    Its name is the distribution and the version that it is for, as psycopg-3.3.9.patch.
    """
    if not (folder / f"{patch.stem}.dist-info").is_dir():
        raise BuildError(
            f"{patch.name} is a patch for {patch.stem}, which is not among the wheels. Check "
            "what has changed in the pinned version, and write a patch for it"
        )
    for part in re.split(r"(?m)^--- ", patch.read_text(encoding="utf-8"))[1:]:
        header, *hunks = re.split(r"(?m)^@@ .*\n", part)
        old_name, new_name = re.findall(r"(?m)^(?:\+\+\+ )?(\S+)$", header)
        file = folder / new_name.removeprefix("b/")
        text = "" if old_name == "/dev/null" else file.read_text(encoding="utf-8")
        for hunk in hunks:
            old, new = _sides(hunk)
            if text.count(old) != 1 and old:
                raise BuildError(
                    f"{patch.name} does not apply to {file.relative_to(folder)}: the text that it "
                    f"replaces occurs {text.count(old)} times, must occur once:\n{old[:200]}"
                )
            text = text.replace(old, new) if old else new
        file.write_text(text, encoding="utf-8")


def _sides(hunk: str) -> tuple[str, str]:
    """Return the old and the new text of a hunk of a diff."""
    lines = hunk.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
    return old, new


def _pip(wanted: str, folder: Path, target: Target, requirements: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as lock:
        lock.write(wanted)
        lock.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
        command += ["--no-compile", "--disable-pip-version-check", "--require-hashes"]
        command += ["--only-binary=:all:", f"--target={folder}", f"--requirement={lock.name}"]
        result = subprocess.run(
            [*command, *target.pip_options()], capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        raise BuildError(
            f"the wheels of {requirements} for Python {target.python} on {target.architecture} "
            f"could not be installed; pip said:\n{result.stderr.strip()}"
        )


def _prune(folder: Path) -> None:
    shutil.rmtree(folder / "bin", ignore_errors=True)
    for pattern in UNUSED:
        _remove(folder.rglob(pattern))
    for name in UNUSED_METADATA:
        _remove(folder.glob(f"*.dist-info/{name}"))
    for name in ("tests", "__pycache__"):
        for path in sorted(folder.rglob(name)):
            shutil.rmtree(path, ignore_errors=True)


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


def _require_licences(folder: Path) -> None:
    """Raise BuildError for a package without the text of its licence."""
    for metadata in folder.glob("*.dist-info"):
        if not any(is_licence(path) for path in metadata.rglob("*")):
            raise BuildError(
                f"{metadata.name} has no licence text: add it to the wheel's metadata, or "
                "choose another package"
            )


def is_licence(path: Path) -> bool:
    """Tell whether a file has the text of a licence, by its name."""
    name = path.name.upper()
    return path.is_file() and name.startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE"))


def compile_layer(folder: Path, program: str) -> None:
    """Add another interpreter's bytecode to a copy of a layer."""
    _compile(folder, LAYER.prefix, program)
    _normalise(folder)


def _compile(folder: Path, prefix: str, program: str = sys.executable) -> None:
    """Write bytecode that is never checked against its source: /opt and /var/task are read-only.

    Files that have some keep it. In a separate process with a fixed hash seed, since sets are
    written in order of hashes.
    """
    sources = [path for path in sorted(folder.rglob("*.py")) if not _bytecode(path).exists()]
    command = [program, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run(
        [*command, "-s", str(folder), "-p", prefix, "-i", "-"],
        input="".join(f"{path}\n" for path in sources).encode(),
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        check=False,  # files that are not Python, such as Alembic's template, stay as source
    )


def _bytecode(source: Path) -> Path:
    return Path(cache_from_source(str(source), optimization=""))


def _normalise(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() or path.suffix == ".so" or ".so." in path.name:
            path.chmod(0o755)
        else:
            path.chmod(0o644)
        os.utime(path, (0, 0))


def _source_files(sources: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    for source, name in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist, so nothing can be assembled from it")
        if source.is_file():
            yield source, name
        for path in sorted(source.rglob("*")):
            if path.is_file() and not _is_ignored(path):
                yield path, f"{name}/{path.relative_to(source).as_posix()}"


def _is_ignored(path: Path) -> bool:
    return "__pycache__" in path.parts or path.name in {"requirements.in", "requirements.txt"}


def _key(recipe: Recipe, target: Target, inputs: Iterable[tuple[Path, str]]) -> str:
    """Hash all parts of a folder, but not the path of this checkout."""
    identity = (_builder(), target, target.maker, recipe.name, recipe.prefix, recipe.packages)
    digest = hashlib.sha256("\0".join(map(str, (*identity, recipe.bytecode))).encode())
    for file in filter(None, (recipe.requirements, recipe.patch)):
        digest.update(f"\0{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    for source, name in inputs:
        digest.update(f"\0{name}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _builder() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


class _new_folder:  # noqa: N801 - reads as a verb where it is used
    """Fill a temporary folder and move it to its place; another process may have been faster."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination

    def __enter__(self) -> Path:
        """Make the folder."""
        self.destination.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=self.destination.parent, prefix=".new-"))
        return self.folder

    def __exit__(self, kind: object, *_: object) -> None:
        """Move it to its place, or remove it after an error."""
        if kind is None and not self.destination.exists():
            self.folder.chmod(0o755)
            try:
                self.folder.rename(self.destination)
            except OSError:
                if not self.destination.exists():
                    raise
        shutil.rmtree(self.folder, ignore_errors=True)
        _forget_old(self.destination.parent)


def _is_kept(folder: Path) -> bool:
    """Tell whether a folder exists; if so, keep it for another day."""
    with one_at_a_time(folder.parent), suppress(FileNotFoundError):
        os.utime(folder)
        return True
    return False


def _forget_old(parent: Path) -> None:
    """Remove folders that were not used for a day, except the newest few.

    They are moved aside first, under the lock of `_is_kept`, so that none is found half removed.
    """
    with one_at_a_time(parent):
        used = {path: _last_use(path) for path in parent.iterdir()}
        aside = Path(tempfile.mkdtemp(dir=parent, prefix=".old-"))
        for path in sorted(used, key=used.__getitem__, reverse=True)[KEEP_LAST:]:
            if time.time() - used[path] > KEEP_SECONDS:
                path.rename(aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a rival has moved what it built to its place, or is removing it
        return time.time()


def notes(target: Target) -> Iterator[str]:
    """Yield the limitations of the result."""
    if not target.compiles:
        running = platform.python_version()
        yield (
            f"no bytecode: Python {running} cannot make it for {target.python}; the first import "
            "in each new environment compiles, about 0.4 s for psycopg"
        )
    if (target.python, target.architecture) == ("3.11", "arm64") and not target.native:
        yield (
            "psycopg's binary for arm64 needs glibc 2.27 and Lambda's Python 3.11 has 2.26: "
            "deploy on Python 3.12 or newer, or on x86_64"
        )


def main() -> None:
    """Build the layer; print its path, its size and its import time."""
    parser = argparse.ArgumentParser(description="Assemble the layer.")
    parser.add_argument("--python", choices=PYTHONS, default="3.13")
    parser.add_argument("--architecture", choices=tuple(MACHINES), default="arm64")
    parser.add_argument("--output", type=Path, help="copy the result here (replaced)")
    parser.add_argument("--release", type=Path, help="write a versioned zip file into this folder")
    arguments = parser.parse_args()
    target = Target(arguments.python, arguments.architecture)
    folder = build_layer(target)
    if arguments.output:
        shutil.rmtree(arguments.output, ignore_errors=True)
        shutil.copytree(folder, arguments.output)
    if arguments.release:
        print(write_release(folder, target, arguments.release))
    for line in (*_report(arguments.output or folder), *notes(target)):
        print(line)


def write_release(folder: Path, target: Target, releases: Path) -> Path:
    """Write the layer as a zip file named by version, Python and processor; return its path.

    Equal layers give equal files, byte by byte. `aws lambda publish-layer-version` accepts them.
    """
    releases.mkdir(parents=True, exist_ok=True)
    file = releases / release_name(target)
    file.write_bytes(zipped(folder))
    return file


def release_name(target: Target) -> str:
    """Name a layer's zip file by version, Python and processor."""
    return f"lambda-pg-{__version__}-python{target.python}-{target.architecture}.zip"


def zipped(folder: Path, level: int = 6) -> bytes:
    """Return the folder as a zip file, without times and owners, which differ between machines.

    `level` is zlib's: 0 is fast, 9 is small.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes(), compresslevel=level)
    return buffer.getvalue()


def zipped_bytes(folder: Path) -> int:
    """Return the size of the folder as a zip file, as Lambda fetches it."""
    return len(zipped(folder))


def import_milliseconds(module: str, starts: int = 5) -> float:
    """Return the shortest time in which this interpreter imports a module of its layer.

    Each time in a new process, without other installed packages (`-S`).
    """
    program = (
        "import time; began = time.perf_counter(); "
        f"import {module}; print((time.perf_counter() - began) * 1000)"
    )
    environment = {"PYTHONPATH": str(build_layer(Target.interpreter()) / "python")}
    command = [sys.executable, "-S", "-c", program]
    return min(
        float(subprocess.check_output(command, env=environment, text=True)) for _ in range(starts)
    )


def _report(folder: Path) -> Iterator[str]:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    bytecode = sum(size for path, size in sizes.items() if path.suffix == ".pyc")
    yield f"{folder}  {len(sizes)} files"
    yield f"  zipped    {zipped_bytes(folder) / 1e6:.1f} MB"
    yield f"  unpacked  {sum(sizes.values()) / 1e6:.1f} MB, of it bytecode {bytecode / 1e6:.1f} MB"
    imports = (f"{module} {import_milliseconds(module):.0f} ms" for module in IMPORTS)
    yield f"  imports   {', '.join(imports)} (Python {platform.python_version()}, this machine)"
    yield f"  sha256    {tree_hash(folder)}"


if __name__ == "__main__":
    main()
