"""The distributions: what their archives hold, and that an installed one needs no checkout."""

import functools
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lambda_pg_cdk import PROJECT, __version__
from lambda_pg_cdk.tools.release import DISTRIBUTIONS, build_distribution
from tests.pythons import Python, find
from tests.support.modules import ROOMS

pytestmark = [pytest.mark.once, pytest.mark.timeout(900)]  # its packages are compiled once

UV = str(Path(sys.executable).with_name("uv"))
REQUIREMENTS = PROJECT / "requirements"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels and the source archives of both distributions."""
    folder = tmp_path_factory.mktemp("archives")
    for source in DISTRIBUTIONS.values():
        build_distribution(source, folder)
    return folder


def wheel(folder: Path) -> zipfile.ZipFile:
    """Open the wheel of lambda-pg-cdk."""
    return zipfile.ZipFile(folder / f"lambda_pg_cdk-{__version__}-py3-none-any.whl")


def contents(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Read all files of a wheel but the list of their hashes."""
    names = [name for name in archive.namelist() if not name.endswith("/RECORD")]
    return {name: archive.read(name) for name in names}


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, and show what it said when it does not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    found: subprocess.CompletedProcess[str] = done
    return found


def test_a_wheel_installs_one_package(archives: Path) -> None:
    """Other names would meet an app's own, such as `functions` or `tests`."""
    with wheel(archives) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert tops == {"lambda_pg_cdk", f"lambda_pg_cdk-{__version__}.dist-info"}


def listed() -> Iterator[str]:
    """List the files of the package as Git has them, by their names in the package."""
    folders = [name for name in ROOMS if name != "lambda_pg"]
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    names = run([*git, "lambda_pg_cdk", *folders], cwd=PROJECT).stdout.split("\0")
    for name in filter(None, names):
        path = PROJECT / name
        if path.is_file():
            yield name if name.startswith("lambda_pg_cdk/") else f"lambda_pg_cdk/{name}"


def test_a_wheel_has_every_file_of_every_room(archives: Path) -> None:
    """Code and what it deploys, and nothing that is not in the repository."""
    with wheel(archives) as archive:
        found = {name for name in archive.namelist() if name.startswith("lambda_pg_cdk/")}
    assert found == set(listed())
    assert {
        "lambda_pg_cdk/console/page/index.html",
        "lambda_pg_cdk/layer/LICENSE",
        "lambda_pg_cdk/layer/python/lambda_pg/certs/aws.pem",
        "lambda_pg_cdk/local/control_plane/requirements.txt",
        "lambda_pg_cdk/pgbouncer/Dockerfile",
        "lambda_pg_cdk/pgbouncer/image.lock",
    } <= found


def test_a_source_archive_holds_files_and_no_links(archives: Path) -> None:
    """A link to a folder beside the package would lead nowhere."""
    for name in ("lambda_pg", "lambda_pg_cdk"):
        with tarfile.open(archives / f"{name}-{__version__}.tar.gz") as archive:
            assert [each.name for each in archive if each.issym() or each.islnk()] == []


@pytest.mark.parametrize("name", ["lambda_pg", "lambda_pg_cdk"])
def test_a_wheel_from_a_source_archive_is_the_same(
    archives: Path, name: str, tmp_path: Path
) -> None:
    """File by file, metadata included."""
    with tarfile.open(archives / f"{name}-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    build_distribution(tmp_path / f"{name}-{__version__}", tmp_path / "again")
    file = f"{name}-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(archives / file) as one, zipfile.ZipFile(tmp_path / "again" / file) as two:
        assert contents(two) == contents(one)


def pins(file: Path) -> dict[str, str]:
    """Read the exact versions of an input of a lock."""
    lines = [line for line in file.read_text().splitlines() if "==" in line]
    return {each.name: str(each.specifier).removeprefix("==") for each in map(Requirement, lines)}


def required(archives: Path) -> dict[str | None, dict[str, Requirement]]:
    """Read the wheel's dependencies, by extra."""
    with wheel(archives) as archive:
        text = archive.read(f"lambda_pg_cdk-{__version__}.dist-info/METADATA").decode()
    found: dict[str | None, dict[str, Requirement]] = {None: {}, "local": {}}
    for line in re.findall(r"(?m)^Requires-Dist: (.*)$", text):
        requirement = Requirement(line)
        found["local" if requirement.marker else None][requirement.name] = requirement
    return found


def test_it_needs_what_a_deployment_needs_and_the_same_layer(archives: Path) -> None:
    """The packages of requirements/deploy.in, and pip, in ranges that have the tested versions."""
    needed = required(archives)[None]
    layer = needed.pop("lambda-pg")
    assert str(layer.specifier) == f"=={__version__}"
    tested = pins(REQUIREMENTS / "deploy.in")
    tested["pip"] = pins(REQUIREMENTS / "local.in")["pip"]
    assert needed.keys() == tested.keys()
    assert [name for name, each in needed.items() if tested[name] not in each.specifier] == []


def test_the_local_cloud_is_an_extra(archives: Path) -> None:
    """The packages of requirements/local.in, and those that migrations are run with."""
    needed = required(archives)["local"]
    tested = pins(REQUIREMENTS / "local.in") | pins(PROJECT / "operations/migrate/requirements.in")
    del tested["pip"]
    assert needed.keys() == tested.keys()
    assert [name for name, each in needed.items() if tested[name] not in each.specifier] == []


@pytest.mark.parametrize("folder", [PROJECT, PROJECT / "layer"])
def test_it_is_built_with_what_is_tested(folder: Path) -> None:
    """By one version of hatchling."""
    requires = tomllib.loads((folder / "pyproject.toml").read_text())["build-system"]["requires"]
    assert requires == [f"hatchling=={pins(REQUIREMENTS / 'dev.in')['hatchling']}"]


def test_the_layer_has_the_licence() -> None:
    """A copy, as a link would lead nowhere in an archive."""
    assert not (PROJECT / "layer" / "LICENSE").is_symlink()
    assert (PROJECT / "layer" / "LICENSE").read_text() == (PROJECT / "LICENSE").read_text()


def install(archives: Path, folder: Path, program: Path, extra: str = "") -> Path:
    """Install lambda-pg-cdk into a new virtual environment, in tested versions; give its Python."""
    run([UV, "venv", "--quiet", "--python", str(program), str(folder)])
    python = folder / "bin" / "python"
    constraints = folder / "constraints.txt"
    lock = (REQUIREMENTS / "dev.txt").read_text()
    constraints.write_text("\n".join(re.findall(r"(?m)^[a-z][^\\\n]*==[^\\\n]+", lock)))
    command = [UV, "pip", "install", "--quiet", "--python", str(python)]
    command += ["--constraints", str(constraints)]
    wheels = {
        name: next(archives.glob(f"{name.replace('-', '_')}-{__version__}-*.whl")).as_uri()
        for name in DISTRIBUTIONS
    }
    needed = f"lambda-pg-cdk{extra} @ {wheels['lambda-pg-cdk']}"
    run([*command, needed, f"lambda-pg @ {wheels['lambda-pg']}"])
    run([str(python), "-m", "lambda_pg_cdk.local.install.bytecode"], cwd=PROJECT)
    return python


@pytest.fixture(scope="module")
def python(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with `lambda-pg-cdk[local]`."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    return install(archives, folder, Path(sys.executable), "[local]")


@pytest.fixture
def shell(python: Path, tmp_path: Path) -> Run:
    """Return what runs a Python command there, as another user in an empty home."""
    variables = {
        "HOME": str(tmp_path / "home"),
        "PATH": os.environ["PATH"],
        "LAMBDA_PG_STATE_DIR": str(tmp_path / "state"),
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
        **{name: os.environ[name] for name in ("LAMBDA_PG_CACHE_DIR",) if name in os.environ},
    }

    def run_python(
        *arguments: str, cwd: Path = tmp_path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), *arguments],
            cwd=cwd,
            env={**variables, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    return run_python


@pytest.fixture
def project(shell: Run, tmp_path: Path) -> Path:
    """A project that the installed package has written."""
    done = shell("-m", "lambda_pg_cdk", "new", "shop")
    assert done.returncode == 0, done.stderr
    assert "cd shop" in done.stdout
    return tmp_path / "shop"


IMPORT = """
import importlib, pkgutil
from lambda_pg_cdk import IN_CHECKOUT, PACKAGE

assert not IN_CHECKOUT
SEPARATE = ("local.environments.", "local.control_plane.", "functions.", "template.", "operations.")
SEPARATE += ("migrations.testing",)
for file in sorted(PACKAGE.rglob("*.py")):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(parts)
    if parts[:2] != ("layer", "python") and parts[-1] not in ("__main__", "__init__", "env"):
        if not name.startswith(SEPARATE) and not parts[-1][0].isdigit():
            importlib.import_module(f"lambda_pg_cdk.{name}")
            print(name)
"""
"""Some processes have separate environments; Alembic runs revisions, and pytest has fixtures."""


def test_every_module_finds_what_it_reads_and_needs(shell: Run, project: Path) -> None:
    """With the extra `local`, and without a checkout."""
    done = shell("-c", IMPORT, cwd=project)
    assert done.returncode == 0, done.stderr
    assert {"stacks.app", "local.cloud", "migrations.run", "tools.preflight"} <= set(
        done.stdout.split()
    )


SYNTH = """
from pathlib import Path
from lambda_pg_cdk.tools.synth import new_stage
new_stage("dev", Path("cdk.out")).synth()
"""


def test_a_stage_is_synthesised(shell: Run, project: Path) -> None:
    """The wheel has all that is deployed: functions, migrations, the layer, the pooler's image."""
    done = shell("-c", SYNTH, cwd=project)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((project / "cdk.out" / "manifest.json").read_text())
    assert {"Shop-dev-Database", "Shop-dev-Pooler", "Shop-dev-Api"} <= set(manifest["artifacts"])
    (dockerfile,) = (project / "cdk.out").glob("asset.*/pgbouncer/Dockerfile")
    assert (dockerfile.parent / "image.lock").exists()


def test_the_tools_read_the_projects_settings(shell: Run, project: Path) -> None:
    """And name what to do in words that hold for a project."""
    done = shell("-m", "lambda_pg_cdk.tools.tunnel", "--stage", "dev", cwd=project)
    assert done.returncode == 1
    assert "network.bastion is false" in done.stderr
    done = shell("-m", "lambda_pg_cdk.tools.preflight", "--stage", "test", cwd=project)
    assert "must be one of local, dev, prod" in done.stdout
    done = shell("-m", "lambda_pg_cdk.tools.image", "lock", cwd=project)
    assert "is an installed package" in done.stderr
    done = shell("-m", "lambda_pg_cdk.layer.roots", "il-central-1", cwd=project)
    assert "set database.ca_file in cdk.json" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["lambda_pg_cdk.tools.budget"],
        ["lambda_pg_cdk.tools.preflight"],
        ["lambda_pg_cdk.tools.tunnel"],
        ["lambda_pg_cdk.local", "up"],
    ],
    ids=" ".join,
)
def test_a_folder_without_a_project_is_named(
    shell: Run, tmp_path: Path, command: list[str]
) -> None:
    """With how a project is made, and without a traceback."""
    done = shell("-m", *command)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"{tmp_path} has no cdk.json" in said
    assert "python -m lambda_pg_cdk new my-api" in said
    assert "Traceback" not in said


def test_a_program_of_the_local_cloud_can_be_run(python: Path) -> None:
    """Its mode survives in the wheel."""
    found = run(
        [str(python), "-c", "import lambda_pg_cdk; print(lambda_pg_cdk.PACKAGE)"], cwd="/"
    ).stdout.strip()
    assert os.access(Path(found) / "local" / "deployment" / "image_builder", os.X_OK)


@functools.cache
def pythons() -> list[Python]:
    """Find one Python of each version of this machine."""
    newest: dict[str, Python] = {}
    for each in find(os.environ):
        newest[each.version.rpartition(".")[0]] = each
    return list(newest.values())


VERSIONS = """
import importlib.util
import lambda_pg, lambda_pg_cdk.stage.sources, lambda_pg_cdk.tools.new
assert importlib.util.find_spec("aws_cdk")  # its import compiles for 20 s
print(lambda_pg.__version__, lambda_pg_cdk.__version__)
"""


@pytest.mark.parametrize("found", pythons(), ids=lambda each: each.version)
def test_both_are_installed_and_imported(archives: Path, tmp_path: Path, found: Python) -> None:
    """On each Python of this machine, with all that they need."""
    program = install(archives, tmp_path / "venv", found.program)
    shown = run([str(program), "-c", VERSIONS], cwd=tmp_path).stdout
    assert shown == f"{__version__} {__version__}\n"
