"""What checkouts share of the packages' bytecode, and that a wrong file is never used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_pg_cdk.local.install import bytecode


class Checkout:
    """A folder of packages, as of one virtual environment."""

    def __init__(self, folder: Path, value: int = 1) -> None:
        """Install the package `thing`."""
        self.packages = folder / "site-packages"
        self.package = self.packages / "thing"
        self.package.mkdir(parents=True)
        self.source = self.package / "__init__.py"
        self.source.write_text(f"value = {value}\n")

    @property
    def compiled(self) -> list[Path]:
        """The files of bytecode."""
        return list(self.packages.rglob("*.pyc"))

    def imported(self, *options: str) -> str:
        """Import the package in a new process; return its value."""
        program = "import thing; print(thing.value)"
        command = [sys.executable, *options, "-S", "-c", program]
        environment = {"PYTHONPATH": str(self.packages)}
        return subprocess.check_output(command, env=environment, text=True).strip()


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and requirements."""
    monkeypatch.setenv("LAMBDA_PG_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "requirements.txt"
    file.write_text("thing==1\n")
    return file


@pytest.fixture
def kept(tmp_path: Path, requirements: Path) -> Checkout:
    """A checkout whose bytecode is kept."""
    checkout = Checkout(tmp_path / "first")
    assert checkout.imported() == "1"
    bytecode.keep(checkout.packages, requirements)
    return checkout


@pytest.mark.parametrize("links", [True, False])
def test_the_next_checkout_need_not_compile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: Checkout,
    requirements: Path,
    links: bool,
) -> None:
    """Its files have other times; and where another file system takes no links, it has copies."""

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    second = Checkout(tmp_path / "second")
    os.utime(second.source, (1, 1))
    bytecode.restore(second.packages, requirements)
    (compiled,) = second.compiled
    before = compiled.stat()
    # Bytecode that Python takes for good is used: it says what it was compiled from.
    compiled.write_bytes(compiled.read_bytes().replace(b"value", b"valu_"))
    with pytest.raises(subprocess.CalledProcessError):
        second.imported()
    assert compiled.stat().st_ino == before.st_ino
    assert list(compiled.parent.iterdir()) == [compiled]


def test_another_source_is_compiled(tmp_path: Path, kept: Checkout, requirements: Path) -> None:
    """Of the same size and the same time, which is all that Python looks at by default."""
    second = Checkout(tmp_path / "second", value=2)
    times = kept.source.stat()
    os.utime(second.source, ns=(times.st_atime_ns, times.st_mtime_ns))
    bytecode.restore(second.packages, requirements)
    assert len(second.compiled) == 1
    assert second.imported() == "2"


def test_bytecode_of_an_older_source_is_not_kept(tmp_path: Path, requirements: Path) -> None:
    """It would get the hash of a source that it was not compiled from."""
    first = Checkout(tmp_path / "first")
    first.imported()
    first.source.write_text("value = 22\n")
    bytecode.keep(first.packages, requirements)
    second = Checkout(tmp_path / "second", value=22)
    bytecode.restore(second.packages, requirements)
    assert second.compiled == []
    assert second.imported() == "22"


def test_what_is_there_stays(tmp_path: Path, kept: Checkout, requirements: Path) -> None:
    """Neither another checkout's file nor one of a package that is not installed comes there."""
    second = Checkout(tmp_path / "second", value=2)
    second.imported()
    (compiled,) = second.compiled
    before = compiled.read_bytes()
    bytecode.restore(second.packages, requirements)
    assert compiled.read_bytes() == before
    empty = tmp_path / "third"
    empty.mkdir()
    bytecode.restore(empty, requirements)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("other", ["requirements", "interpreter"])
def test_others_get_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: Checkout,
    requirements: Path,
    other: str,
) -> None:
    """Other requirements, and another interpreter of the same version."""
    if other == "requirements":
        requirements.write_text("thing==2\n")
    else:
        monkeypatch.setattr(sys, "version", f"{sys.version} of another day")
    second = Checkout(tmp_path / "second")
    bytecode.restore(second.packages, requirements)
    assert second.compiled == []


def test_half_of_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirements: Path
) -> None:
    """An interrupt leaves it, and the next synthesis makes it again."""
    first = Checkout(tmp_path / "first")
    first.imported()

    def interrupted(packages: Path, folder: Path) -> None:
        copy(packages, folder)
        raise KeyboardInterrupt

    copy = bytecode._copy
    with monkeypatch.context() as patched:
        patched.setattr(bytecode, "_copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bytecode.keep(first.packages, requirements)
    second = Checkout(tmp_path / "second")
    bytecode.restore(second.packages, requirements)
    assert second.compiled == []
    bytecode.keep(first.packages, requirements)
    bytecode.restore(second.packages, requirements)
    assert len(second.compiled) == 1
