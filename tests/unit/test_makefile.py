"""What `make` says before it installs anything, with stand-ins for Python, Node.js and the rest."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("awk", "bash", "cat", "chmod", "cp", "head", "mkdir", "rm", "sh", "touch")

# A Python of a version; it records what it installs, and a virtual environment is a copy of it.
PYTHON = """#!/bin/sh
case "$*" in
  *base_prefix*) echo "{version} in /opt/{version}" ;;
  *version_info*) exit {old} ;;
  *ensurepip*) exit {without_venv} ;;
  *--version*) echo "Python {version}" ;;
  "-m venv"*) echo "$*" >> "$INSTALLED"; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m lambda_pg_cdk.local.install.checkout uv") echo uv ;;
  "-m lambda_pg_cdk.local.install.checkout node_modules"*) shift 2; npm ci "$@" ;;
  "-m lambda_pg_cdk.local up") echo "it started${{PYTHONDONTWRITEBYTECODE+ without bytecode}}" ;;
esac
"""
NODE = """#!/bin/sh
case "$1" in
  --version) echo v{version}.1.0 ;;
  -e) test {version} -ge 20 ;;
esac
"""
NPM = """#!/bin/sh
echo "npm $*" >> "$INSTALLED"
mkdir -p node_modules
"""
UV = """#!/bin/sh
echo "uv $*" >> "$INSTALLED"
"""
DF = """#!/bin/sh
echo "Filesystem 1024-blocks Used Available Capacity Mounted"
echo "/dev/a 9 9 {free} 9% /"
"""


class Machine:
    """A fresh clone, on a machine where everything is that is needed."""

    def __init__(self, folder: Path) -> None:
        """Put the stand-ins in place."""
        self.clone, self.bin = folder / "clone", folder / "bin"
        self.clone.mkdir()
        self.bin.mkdir()
        self.log = folder / "installed"
        shutil.copy(ROOT / "Makefile", self.clone)
        shutil.copytree(ROOT / "requirements", self.clone / "requirements")
        for packages in (Path("examples", "typescript"), Path("tests", "clients")):
            (self.clone / packages / "node_modules").mkdir(parents=True)
            shutil.copy(ROOT / packages / "package-lock.json", self.clone / packages)
        for name in TOOLS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.python("python3", "3.12.1")
        self.add("node", NODE.format(version=22))
        self.add("npm", NPM)
        self.add("uv", UV)
        self.add("git", "#!/bin/sh\n")
        self.add("df", DF.format(free=9_000_000))
        self.add("pgbouncer", "#!/bin/sh\n")

    def add(self, name: str, text: str) -> None:
        """Put a program into PATH."""
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def remove(self, name: str) -> None:
        """Take a program out of PATH."""
        (self.bin / name).unlink()

    def python(self, name: str, version: str, *, without_venv: bool = False) -> None:
        """Put a Python into PATH."""
        old = int(tuple(map(int, version.split("."))) < (3, 11))
        text = PYTHON.format(version=version, old=old, without_venv=int(without_venv))
        self.add(name, text)

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run make there."""
        return subprocess.run(
            [str(shutil.which("make")), *arguments],
            cwd=self.clone,
            env={"PATH": str(self.bin), "INSTALLED": str(self.log), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def installed(self) -> str:
        """What has been installed."""
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine where nothing is missing."""
    return Machine(tmp_path)


def refused(machine: Machine, *arguments: str, **variables: str) -> str:
    """Expect that make stops before it has installed anything; return what it says."""
    before = machine.installed
    done = machine.make(*arguments, **variables)
    assert done.returncode != 0
    assert machine.installed == before
    return done.stderr


def test_where_nothing_is_missing_everything_is_installed_once(machine: Machine) -> None:
    """The second time there is nothing to do."""
    done = machine.make("setup")
    assert (done.returncode, done.stderr) == (0, "")
    installed = machine.installed
    assert "-m venv" in installed
    assert "uv pip sync" in installed
    assert "requirements/dev.txt" in installed
    assert "npm ci" in installed
    assert machine.make("setup").returncode == 0
    assert machine.installed == installed


@pytest.mark.parametrize("target", ["report", "synth", "setup-tools"])
def test_a_tool_does_not_wait_for_the_clients_of_tests(machine: Machine, target: str) -> None:
    """They are more than half of all that is installed."""
    assert machine.make(target).returncode == 0
    installed = machine.installed
    assert "requirements/dev.txt" in installed
    assert "npm ci node_modules\n" in installed
    assert "npm ci node_modules_of" not in installed
    assert machine.make("setup").returncode == 0
    assert "npm ci node_modules_of tests/clients\n" in machine.installed


@pytest.mark.parametrize("target", ["up", "setup-local"])
def test_a_cloud_does_not_wait_for_the_packages_of_tests(machine: Machine, target: str) -> None:
    """No linter, no browser and no matplotlib; tests install them on top, without a new .venv."""
    assert machine.make(target).returncode == 0
    installed = machine.installed
    assert "requirements/local.txt" in installed
    assert "npm ci node_modules --omit=dev" in installed
    assert "requirements/dev.txt" not in installed
    assert "npm ci node_modules_of" not in installed
    done = machine.make("setup")
    assert (done.returncode, done.stderr) == (0, "")
    added = machine.installed.removeprefix(installed)
    assert "-m venv" not in added
    assert "requirements/dev.txt" in added
    assert "npm ci node_modules\n" in added
    assert "npm ci node_modules_of examples/typescript\n" in added
    assert "npm ci node_modules_of tests/clients\n" in added
    installed = machine.installed
    for again in (target, "setup"):
        assert machine.make(again).returncode == 0
    assert machine.installed == installed


def test_both_are_installed_at_the_same_time(machine: Machine) -> None:
    """Neither needs the other, and each waits for its files and its registry."""
    wait = 'n=0; until test -e "$INSTALLED.{}" || test $n = 30; do n=$((n+1)); sleep 1; done'
    (machine.bin / "sleep").symlink_to(str(shutil.which("sleep")))
    for mine, others in (("npm", "uv"), ("uv", "npm")):
        text = (machine.bin / mine).read_text()
        text += f'touch "$INSTALLED.{mine}"; {wait.format(others)}; test -e "$INSTALLED.{others}"'
        machine.add(mine, f"{text}\n")
    assert machine.make("setup").returncode == 0


def test_a_missing_node_is_told_before_the_python_packages_are_installed(machine: Machine) -> None:
    """They take a minute, and would have been for nothing."""
    machine.remove("node")
    assert "lambda-pg needs Node.js 20 or newer, and there is no node." in refused(machine, "setup")


def test_an_old_node_is_told_with_its_version(machine: Machine) -> None:
    """Debian 12 has Node.js 18."""
    machine.add("node", NODE.format(version=18))
    assert "lambda-pg needs Node.js 20 or newer; node is v18.1.0." in refused(machine, "setup")


def test_an_old_python_is_told_with_its_version(machine: Machine) -> None:
    """And how another one is chosen."""
    machine.python("python3", "3.9.2")
    said = refused(machine, "setup")
    assert "lambda-pg needs Python 3.11 or newer; python3 is Python 3.9.2." in said
    assert "make PYTHON=" in said


def test_a_python_without_venv_is_told(machine: Machine) -> None:
    """Debian has it in a separate package."""
    machine.python("python3", "3.11.2", without_venv=True)
    assert "apt install python3-venv" in refused(machine, "setup")


def test_a_full_disk_is_told(machine: Machine) -> None:
    """With what is needed, and what is there."""
    machine.add("df", DF.format(free=150_000))
    for target, needed in (("setup", 3000), ("setup-local", 2000)):
        said = refused(machine, target)
        assert f"{needed} MB of disk space" in said
        assert "146 MB are free" in said


def test_all_that_is_missing_is_told_at_once(machine: Machine) -> None:
    """Nobody wants to run it five times."""
    for name in ("python3", "node", "npm", "git"):
        machine.remove(name)
    lines = [line for line in refused(machine, "setup").splitlines() if "lambda-pg needs" in line]
    assert [line.split()[2].rstrip(",.") for line in lines] == ["Python", "Node.js", "npm", "git"]


@pytest.mark.parametrize("target", ["demo", "test", "up", "storm", "chaos", "bench"])
def test_where_pgbouncer_cannot_come_from_is_told(machine: Machine, target: str) -> None:
    """Neither installed nor a relative of Debian: a cloud cannot run there."""
    machine.remove("pgbouncer")
    if (Path("/usr/sbin/pgbouncer")).exists():
        pytest.skip("this machine has a PgBouncer outside of PATH")
    assert "lambda-pg needs PgBouncer, or apt-get and dpkg-deb" in refused(machine, target)


def test_apt_is_enough_to_have_a_pgbouncer(machine: Machine) -> None:
    """It is fetched from Debian into a separate folder."""
    machine.remove("pgbouncer")
    machine.add("apt-get", "#!/bin/sh\n")
    machine.add("dpkg-deb", "#!/bin/sh\n")
    done = machine.make("up")
    assert (done.returncode, "it started" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_another_python_than_that_of_the_virtual_environment_is_told(
    machine: Machine, given: str
) -> None:
    """It is not ignored because .venv is there."""
    assert machine.make("setup").returncode == 0
    machine.python("python3.13", "3.13.0")
    if given == "argument":
        said = refused(machine, "up", "PYTHON=python3.13")
    else:
        said = refused(machine, "up", PYTHON="python3.13")
    assert "PYTHON=python3.13 is 3.13.0 in /opt/3.13.0" in said
    assert ".venv was made with 3.12.1 in /opt/3.12.1" in said
    assert "rm -rf .venv && make setup PYTHON=python3.13" in said


def test_the_same_python_by_another_name_is_no_other(machine: Machine) -> None:
    """What counts is the interpreter."""
    assert machine.make("setup").returncode == 0
    machine.python("python3.12", "3.12.1")
    assert machine.make("setup", "PYTHON=python3.12").returncode == 0


def test_a_newer_default_python_does_not_matter(machine: Machine) -> None:
    """Nobody asked for it: what is installed goes on."""
    assert machine.make("setup").returncode == 0
    machine.python("python3", "3.14.0")
    assert machine.make("up").returncode == 0


def test_a_python_that_is_not_there_is_told(machine: Machine) -> None:
    """Beside a virtual environment, too."""
    assert machine.make("setup").returncode == 0
    said = refused(machine, "setup", "PYTHON=python3.99")
    assert "PYTHON=python3.99 is no Python that runs" in said


def test_a_virtual_environment_whose_python_is_gone_is_told(machine: Machine) -> None:
    """As after an upgrade of the system."""
    assert machine.make("setup").returncode == 0
    (machine.clone / ".venv" / "bin" / "python").unlink()
    assert "the Python of .venv does not run any more" in refused(machine, "up")


def test_bytecode_is_kept_whatever_the_shell_says(machine: Machine) -> None:
    """Each of a cloud's processes would compile the same packages."""
    said = machine.make("up", PYTHONDONTWRITEBYTECODE="1").stdout
    assert said.splitlines()[-1] == "it started"


def test_every_target_is_in_the_list(machine: Machine) -> None:
    """`make` alone prints each with its sentence."""
    for name in ("grep", "sed", "sort"):
        (machine.bin / name).symlink_to(str(shutil.which(name)))
    said = machine.make().stdout
    for target in ("demo", "test", "test-pythons", "up", "down"):
        assert f"  make {target} " in said
