"""Run the unit and integration tests on every Python of this machine: `make test-pythons`.

Left out are those marked `once`, which say nothing about the interpreter: `make test` runs them.
Each Python has a virtual environment that is kept in `build/pythons` until the requirements change.
"""

import argparse
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "pythons"
REQUIREMENTS = ROOT / "requirements" / "dev.txt"
UV = Path(sys.executable).with_name("uv")
MINORS = range(11, 15)
TESTS = ("tests/unit", "tests/integration")
# Most of these tests wait for servers that they broke. Beside so many others a few come too late
# for their own timeouts: those run again, one at a time, and the table says how many.
WORKERS = 6
TESTS_FAILED = 1
"""pytest's exit code where the tests ran and some of them failed."""
_PROBE = "import ensurepip, platform, venv; print(platform.python_version())"


@dataclass(frozen=True)
class Python:
    """An interpreter that can make virtual environments, and its version, such as 3.11.2."""

    program: Path
    version: str


@dataclass(frozen=True)
class Outcome:
    """What the tests on one Python came to."""

    version: str
    code: int
    tests: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    alone: int = 0
    """How many failed beside others, and passed when they ran again one at a time."""


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run the tests on one Python after the other; return 0 only if all of them passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument(
        "--others", action="store_true", help="leave out the Python that this runs on"
    )
    parser.add_argument("tests", nargs="*", help="run these files or folders only")
    chosen = parser.parse_args(arguments)
    found = find(environment)
    if chosen.others:
        found = [python for python in found if python.version != platform.python_version()]
    print(f"Pythons: {', '.join(python.version for python in found) or 'none'}", flush=True)
    outcomes = [run(python, chosen.tests or TESTS) for python in found]
    print(f"\n{table(outcomes)}" if outcomes else "There is no such Python: nothing was run.")
    return int(any(outcome.code for outcome in outcomes))


def find(environment: Mapping[str, str]) -> list[Python]:
    """Find one interpreter of each version in PATH, of the system, and of pyenv; oldest first."""
    found: dict[str, Python] = {}
    for program in _candidates(environment):
        if (version := _version(program)) is not None:
            found.setdefault(version, Python(program, version))
    return sorted(found.values(), key=lambda python: [*map(int, python.version.split("."))])


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    pyenv = Path(environment.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [Path(entry) for entry in environment.get("PATH", "").split(os.pathsep) if entry]
    folders += [Path("/usr/bin"), *sorted(pyenv.glob("versions/*/bin"))]
    for folder in folders:
        for minor in MINORS:
            if os.access(program := folder / f"python3.{minor}", os.X_OK):
                yield program


def _version(program: Path) -> str | None:
    """Ask an interpreter for its version; None where it is not released, or cannot be used."""
    try:
        answer = subprocess.run(
            [program, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = answer.stdout.strip()
    return version if re.fullmatch(r"3\.\d+\.\d+", version) else None


def run(python: Python, tests: Sequence[str] = TESTS) -> Outcome:
    """Run the tests on one Python."""
    print(f"\nPython {python.version} ({python.program})", flush=True)
    try:
        program = prepare(python)
    except subprocess.CalledProcessError as error:
        print(f"no virtual environment: {error}", file=sys.stderr)
        return Outcome(python.version, error.returncode)
    beside = ["--numprocesses", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder"]
    first = run_pytest(python.version, program, [*beside, *tests])
    if first.code != TESTS_FAILED:
        return first
    print(f"Python {python.version}: what has failed runs again, one test at a time", flush=True)
    alone = ["--last-failed", "--last-failed-no-failures=none", *tests]
    again = run_pytest(python.version, program, alone)
    return replace(
        first,
        code=again.code,
        failed=again.failed,
        alone=first.failed - again.failed,
        seconds=first.seconds + again.seconds,
    )


def run_pytest(version: str, program: Path, options: Sequence[str]) -> Outcome:
    """Run pytest once, with these options and tests."""
    results, cache = FOLDER / f"{version}.xml", FOLDER / f"{version}.cache"
    results.unlink(missing_ok=True)
    command = [str(program), "-m", "pytest", "--quiet", f"--junitxml={results}"]
    command += ["-m", "not once"]
    command += ["-o", f"cache_dir={cache}", *options]
    done = subprocess.run(command, cwd=ROOT, check=False)
    return read(version, done.returncode, results)


def prepare(python: Python) -> Path:
    """Return the interpreter of a virtual environment with the requirements, made if needed."""
    folder = FOLDER / python.version
    content = REQUIREMENTS.read_bytes() + str(python.program).encode()
    digest = hashlib.sha256(content).hexdigest()
    done, program = folder / "digest", folder / "bin" / "python"
    if not done.exists() or done.read_text() != digest:
        print("setting up its packages (once)", flush=True)
        options = ["--clear", str(folder), "--without-pip"]
        subprocess.run([python.program, "-m", "venv", *options], check=True)
        install = [str(UV), "pip", "install", "--quiet", "--require-hashes"]
        subprocess.run([*install, "--python", program, "-r", REQUIREMENTS], check=True)
        done.write_text(digest)
    return program


def read(version: str, code: int, results: Path) -> Outcome:
    """Read what pytest has written; a run without results has failed."""
    if not results.exists():
        return Outcome(version, code or 1)
    suite = ElementTree.parse(results).getroot().find("testsuite")  # noqa: S314 - pytest wrote it
    if suite is None:
        return Outcome(version, code or 1)
    counted = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return Outcome(
        version,
        code,
        tests=counted["tests"],
        failed=counted["failures"] + counted["errors"],
        skipped=counted["skipped"],
        seconds=float(suite.get("time", 0)),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Show one line for each Python."""
    heads = (
        f"{'Python':10}{'tests':>8}{'failed':>8}{'passed alone':>14}{'skipped':>9}{'minutes':>9}"
    )
    lines = [heads]
    for each in outcomes:
        numbers = (
            f"{each.tests:8}{each.failed:8}{each.alone:14}{each.skipped:9}{each.seconds / 60:9.1f}"
        )
        verdict = "" if each.code == 0 else f"  FAILED (exit code {each.code})"
        lines.append(f"{each.version:10}{numbers}{verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
