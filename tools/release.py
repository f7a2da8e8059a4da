"""Make a release from a checkout: archives, checksums, licences, the changelog's section, a tag.

    python -m lambda_pg_cdk.tools.release build [--dry-run]     all of it; no tag in a dry run
    python -m lambda_pg_cdk.tools.release publish [--dry-run]   the distributions, to an index
    python -m lambda_pg_cdk.tools.release publish-layer --region eu-west-1 [--dry-run]

The last two ask first, and publish what the first one has written to build/release/VERSION.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from lambda_pg_cdk import IN_CHECKOUT, PROJECT, __version__
from lambda_pg_cdk.layer import build as layer
from lambda_pg_cdk.layer.build import MACHINES, PYTHONS, BuildError, Target

RELEASES = PROJECT / "build" / "release"
MAIN = "main"
VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
HEADING = re.compile(r"(?m)^## (?P<version>\S+) — (?P<date>unreleased|\d{4}-\d\d-\d\d)$")
"""A section of the changelog: `## 0.1.0 — 2026-12-01`, or `unreleased` until its tag is made."""

DISTRIBUTIONS = {"lambda-pg": PROJECT / "layer", "lambda-pg-cdk": PROJECT}
LAYER_LICENCE = "Apache-2.0; psycopg: LGPL-3.0-only"
"""At most 512 characters for Lambda; the zip has the texts."""

NOT_DEPLOYABLE = frozenset({("3.11", "arm64")})
"""Lambda's Python 3.11 on arm64 has an older glibc than psycopg's wheel needs."""


class ReleaseError(RuntimeError):
    """A release cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Section:
    """A version's part of the changelog; without a date it is unreleased."""

    date: str | None
    text: str


def section(changelog: str, version: str) -> Section:
    """Return a version's section. Raises ReleaseError if there is none, or nothing in it."""
    found = list(HEADING.finditer(changelog))
    for heading, following in zip(found, [*found[1:], None], strict=True):
        if heading["version"] == version:
            text = changelog[heading.end() : following.start() if following else None].strip()
            if not text:
                break
            return Section(None if heading["date"] == "unreleased" else heading["date"], text)
    raise ReleaseError(
        f"CHANGELOG.md has no section of version {version}, or nothing in it: write one under "
        f"`## {version} — unreleased`"
    )


def refusals(root: Path, version: str, written: Section) -> Iterator[str]:
    """Yield each reason for which no tag is made."""
    if not VERSION.fullmatch(version):
        yield f"the version is {version!r}; must be like 0.1.0 or 0.1.0rc1: set __version__"
    branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD")
    if branch != MAIN:
        yield f"the branch is {branch!r}; must be {MAIN!r}: merge, then git switch {MAIN}"
    if changes := _git(root, "status", "--porcelain"):
        yield f"{len(changes.splitlines())} files are changed; must be none: commit them"
    if _git(root, "tag", "--list", f"v{version}"):
        yield f"the tag v{version} exists; must be new: set __version__ to the next version"
    if written.date is None:
        yield (
            f"the changelog's section of {version} is unreleased; must have a date: write "
            f"`## {version} — YYYY-MM-DD` and commit it"
        )


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ReleaseError(f"`git {shlex.join(arguments)}` failed in {root}: {done.stderr.strip()}")
    return done.stdout.strip()


def build_distribution(source: Path, folder: Path) -> None:
    """Write a distribution's wheel and source archive into a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"{source} could not be built:\n{done.stdout}{done.stderr}")


def targets() -> Iterator[Target]:
    """Yield what a layer is released for."""
    for python in PYTHONS:
        for architecture in MACHINES:
            if (python, architecture) not in NOT_DEPLOYABLE:
                yield Target(python, architecture)


def build_layer(target: Target, folder: Path) -> tuple[Path, bool]:
    """Write a layer's zip into a folder; return its path, and whether there is bytecode in it."""
    built = layer.build_layer(target)
    if target.compiles:
        return layer.write_release(built, target, folder), True
    program = find_python(target.python)
    if program is None:
        return layer.write_release(built, target, folder), False
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(built, Path(scratch) / "layer")
        layer.compile_layer(copy, program)
        compiled = any(copy.rglob("*.pyc"))
        return layer.write_release(copy, target, folder), compiled


def find_python(version: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Find an interpreter of a version, as 3.13, among pyenv's or in PATH; None without one.

    pyenv's programs in PATH run only the versions that a folder has chosen.
    """
    pyenv = Path(environment.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [*map(str, pyenv.glob(f"versions/{version}.*/bin")), environment.get("PATH", "")]
    return shutil.which(f"python{version}", path=os.pathsep.join(folders))


def licences(built: Path) -> str:
    """Return the names, versions and licences of what a layer holds, then the texts."""
    names, texts = [], []
    for metadata in sorted(built.glob("python/*.dist-info")):
        about = HeaderParser().parsestr((metadata / "METADATA").read_text(encoding="utf-8"))
        licence = about["License-Expression"] or about["License"] or "see below"
        names.append(f"{about['Name']} {about['Version']}: {licence}")
        texts += [
            f"{about['Name']}: {file.name}\n\n{file.read_text(encoding='utf-8')}"
            for file in sorted(filter(layer.is_licence, metadata.rglob("*")))
        ]
    names.insert(0, f"lambda-pg {__version__}: Apache-2.0")
    texts.insert(0, f"lambda-pg: LICENSE\n\n{(built / 'LICENSE').read_text(encoding='utf-8')}")
    return f"\n{'=' * 80}\n".join(["\n".join(names) + "\n", *texts])


def checksums(folder: Path) -> str:
    """Return the checksums of a folder's files, for `sha256sum --check`."""
    return "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.is_file()
    )


def build(root: Path = PROJECT, *, dry_run: bool) -> None:
    """Write everything to build/release/VERSION, and make the tag unless this is a dry run."""
    written = section((root / "CHANGELOG.md").read_text(encoding="utf-8"), __version__)
    reasons = list(refusals(root, __version__, written))
    if reasons and not dry_run:
        raise ReleaseError("\n".join([f"{__version__} is not released:", *reasons]))
    folder = RELEASES / __version__
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in DISTRIBUTIONS.values():
        build_distribution(source, folder)
    for target in targets():
        name, compiled = build_layer(target, folder)
        if not compiled:
            print(f"{name.name} has no bytecode: no python{target.python} runs here")
    newest = layer.build_layer(Target(PYTHONS[-1], "arm64"))
    (folder / "LICENCES.txt").write_text(licences(newest), encoding="utf-8")
    (folder / "CHANGES.md").write_text(written.text + "\n", encoding="utf-8")
    (folder / "SHA256SUMS").write_text(checksums(folder), encoding="utf-8")
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size / 1e6:8.2f} MB  {file.relative_to(root)}")
    if dry_run:
        print(f"dry run: the tag v{__version__} was not made")
        for reason in reasons:
            print(f"  it would be refused: {reason}")
    else:
        _tag(root, written)
    print("not run: make publish, make publish-layer, git push")


def _tag(root: Path, written: Section) -> None:
    """Make the annotated tag, and write what the next version is compared with."""
    message = f"lambda-pg {__version__}\n\n{written.text}"
    _git(root, "tag", "--annotate", f"v{__version__}", "--cleanup=verbatim", "--message", message)
    print(f"made the tag v{__version__}")
    command = [sys.executable, "-m", "lambda_pg_cdk.tools.released", f"v{__version__}"]
    subprocess.run(command, cwd=root, check=True)
    print("wrote tests/synth/released: commit it")


@dataclass(frozen=True)
class Order:
    """A command that publishes, and what it needs that is not in it."""

    command: tuple[str, ...]
    needs: str


def index_orders(folder: Path) -> Iterator[Order]:
    """Yield what publishes the distributions; the layer first, since the other one needs it."""
    for name in DISTRIBUTIONS:
        prefix = f"{name.replace('-', '_')}-{__version__}"
        files = [folder / f"{prefix}-py3-none-any.whl", folder / f"{prefix}.tar.gz"]
        uv = Path(sys.executable).with_name("uv")
        yield Order((str(uv), "publish", *map(str, files)), "a token in UV_PUBLISH_TOKEN")


def layer_orders(folder: Path, regions: Sequence[str]) -> Iterator[Order]:
    """Yield what publishes the layers, in each region."""
    for region in regions:
        for target in targets():
            architecture = target.architecture
            name = f"lambda-pg-python{target.python}-{architecture}".replace(".", "")
            file = folder / layer.release_name(target)
            options = {
                "--region": region,
                "--layer-name": name,
                "--description": f"lambda_pg {__version__}",
                "--license-info": LAYER_LICENCE,
                "--compatible-runtimes": f"python{target.python}",
                "--compatible-architectures": architecture,
                "--zip-file": f"fileb://{file}",
            }
            words = [word for option in options.items() for word in option]
            yield Order(
                ("aws", "lambda", "publish-layer-version", *words), "credentials of the account"
            )


def publish(orders: Sequence[Order], *, dry_run: bool, ask: Callable[[str], str] = input) -> None:
    """Show the commands, and run them once the version has been typed."""
    _check_files(RELEASES / __version__)
    for order in orders:
        print(f"{shlex.join(order.command)}   # needs {order.needs}")
    if dry_run:
        print("dry run: nothing was published")
        return
    if ask(f"type the version to publish it ({__version__}): ").strip() != __version__:
        raise ReleaseError("another text was typed: nothing was published")
    if not _git(PROJECT, "tag", "--list", f"v{__version__}"):
        raise ReleaseError(f"there is no tag v{__version__}: nothing was published. make release")
    for done, order in enumerate(orders):
        if subprocess.run(order.command, check=False).returncode != 0:
            raise ReleaseError(
                f"`{shlex.join(order.command)}` failed; {done} of {len(orders)} commands were run"
            )


def _check_files(folder: Path) -> None:
    """Raise ReleaseError unless the folder has what its checksums name, unchanged."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        raise ReleaseError(f"{folder} has no release: make release")
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ReleaseError(
                f"{folder / name} does not match its checksum in SHA256SUMS: "
                "run `make release` again"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lambda_pg_cdk.tools.release")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "publish", "publish-layer"):
        added = commands.add_parser(name)
        added.add_argument("--dry-run", action="store_true")
        if name == "publish-layer":
            added.add_argument("--region", action="append", required=True, dest="regions")
    chosen = parser.parse_args(arguments)
    if not IN_CHECKOUT:
        print("a release is made from a checkout, not from an installed package", file=sys.stderr)
        return 1
    folder = RELEASES / __version__
    try:
        if chosen.command == "build":
            build(dry_run=chosen.dry_run)
        elif chosen.command == "publish":
            publish(list(index_orders(folder)), dry_run=chosen.dry_run)
        else:
            publish(list(layer_orders(folder, chosen.regions)), dry_run=chosen.dry_run)
    except (ReleaseError, BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
