"""Which Pythons `make test-pythons` finds, and what it makes of their results, with stand-ins."""

import platform
from pathlib import Path

import pytest

from tests import pythons
from tests.pythons import Outcome, Python

# Answers as a Python does, and has a virtual environment be a copy of itself.
STAND_IN = """#!/bin/sh
case "$*" in
  -c*) echo "{version}"; exit {unusable} ;;
  "-m venv"*) echo made >> {log}; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  "-m pytest"*--last-failed*)
    for each in "$@"; do case "$each" in --junitxml=*) file=${{each#--junitxml=}} ;; esac; done
    echo '<testsuites><testsuite tests="1" failures="{again}" errors="0" skipped="0" time="30"/>\
</testsuites>' > "$file"
    exit {again} ;;
  "-m pytest"*)
    for each in "$@"; do case "$each" in --junitxml=*) file=${{each#--junitxml=}} ;; esac; done
    echo "$*" >> {log}
    test {code} = 9 || echo '<testsuites><testsuite tests="12" failures="{code}" errors="0" \
skipped="2" time="90"/></testsuites>' > "$file"
    exit {code} ;;
esac
"""


class Machine:
    """Pythons in PATH and in pyenv."""

    def __init__(self, folder: Path) -> None:
        """Have none."""
        self.folder, self.log = folder, folder / "log"
        self.environment = {"PATH": str(folder / "bin"), "PYENV_ROOT": str(folder / "pyenv")}

    def add(
        self, place: str, version: str, *, code: int = 0, again: int = 1, unusable: int = 0
    ) -> Path:
        """Put a Python into a folder."""
        minor = ".".join(version.split(".")[:2])
        program = self.folder / place / f"python{minor}"
        program.parent.mkdir(parents=True, exist_ok=True)
        text = STAND_IN.format(
            version=version, code=code, again=again, unusable=unusable, log=self.log
        )
        program.write_text(text)
        program.chmod(0o755)
        return program

    def found(self) -> list[tuple[str, Path]]:
        """Return what is found besides the Pythons of the system."""
        found = pythons.find(self.environment)
        return [(each.version, each.program) for each in found if "/usr/" not in str(each.program)]

    def ran(self) -> list[str]:
        """Return what was done."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without a Python, and a place for virtual environments."""
    monkeypatch.setattr(pythons, "FOLDER", tmp_path / "pythons")
    monkeypatch.setattr(pythons, "UV", "true")
    return Machine(tmp_path)


def only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the system itself has."""
    found = [Python(program, version) for version, program in machine.found()]
    monkeypatch.setattr(pythons, "find", lambda _: found)


def test_each_version_is_found_once_oldest_first(machine: Machine) -> None:
    """In PATH, and of pyenv, of which only one is in PATH."""
    first = machine.add("bin", "3.13.98")
    machine.add("pyenv/versions/3.13.98/bin", "3.13.98")
    second = machine.add("pyenv/versions/3.12.99/bin", "3.12.99")
    third = machine.add("pyenv/versions/3.13.100/bin", "3.13.100")
    assert machine.found() == [("3.12.99", second), ("3.13.98", first), ("3.13.100", third)]


def test_what_cannot_be_used_is_left_out(machine: Machine) -> None:
    """Too old, no virtual environments, not released."""
    machine.add("bin", "3.10.99")
    machine.add("bin", "3.12.99", unusable=1)
    machine.add("bin", "3.13.0rc1")
    assert machine.found() == []


def test_one_that_fails_makes_all_of_it_fail_and_the_others_run_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has a line in the table."""
    machine.add("bin", "3.11.99", code=1)
    machine.add("bin", "3.12.99")
    machine.add("bin", "3.13.99", code=9)
    only(machine, monkeypatch)
    assert pythons.main([]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert lines == [
        ["3.11.99", "12", "1", "0", "2", "2.0", "FAILED", "(exit", "code", "1)"],
        ["3.12.99", "12", "0", "0", "2", "1.5"],
        ["3.13.99", "0", "0", "0", "0", "0.0", "FAILED", "(exit", "code", "9)"],
    ]
    for ran in machine.ran()[1::2]:
        assert ran.endswith("tests/unit tests/integration")


def test_some_files_are_enough_where_they_are_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without those that say nothing about the interpreter, as ever."""
    machine.add("bin", "3.12.99")
    only(machine, monkeypatch)
    assert pythons.main(["tests/unit/test_url.py"]) == 0
    assert machine.ran()[1].endswith("tests/unit/test_url.py")
    assert "-m not once" in machine.ran()[1]
    assert "tests/integration" not in machine.ran()[1]


def test_what_passes_alone_has_passed_and_is_counted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six at a time on two cores is a load: what came too late runs again by itself."""
    machine.add("bin", "3.12.99", code=1, again=0)
    only(machine, monkeypatch)
    assert pythons.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "3.12.99", "12", "0", "1", "2", "2.0",
    ]  # fmt: skip


def test_a_virtual_environment_is_made_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And again when the requirements have changed."""
    requirements = tmp_path / "requirements"
    requirements.write_text("one")
    monkeypatch.setattr(pythons, "REQUIREMENTS", requirements)
    machine.add("bin", "3.12.99")
    only(machine, monkeypatch)
    assert (pythons.main([]), pythons.main([])) == (0, 0)
    assert machine.ran().count("made") == 1
    requirements.write_text("two")
    assert pythons.main([]) == 0
    assert machine.ran().count("made") == 2


def test_packages_that_cannot_be_installed_are_a_failure(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are tried again the next time."""
    machine.add("bin", "3.12.99")
    only(machine, monkeypatch)
    monkeypatch.setattr(pythons, "UV", "false")
    assert pythons.main([]) == 1
    monkeypatch.setattr(pythons, "UV", "true")
    assert pythons.main([]) == 0


def test_the_python_of_make_test_need_not_run_twice(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI has run it already; and nothing that has run is not taken for a success in silence."""
    machine.add("bin", platform.python_version())
    only(machine, monkeypatch)
    assert pythons.main(["--others"]) == 0
    assert machine.ran() == []
    assert "nothing was run" in capsys.readouterr().out
    assert pythons.main([]) == 0
    assert machine.ran()[0] == "made"


def test_results_that_pytest_did_not_write_are_a_failure(tmp_path: Path) -> None:
    """Even when it says that all is well."""
    assert pythons.read("3.12.99", 0, tmp_path / "none.xml") == Outcome("3.12.99", 1)
