"""`python -m lambda_pg_cdk new`: what it refuses, and what it writes."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambda_pg_cdk import PACKAGE, __version__
from lambda_pg_cdk.stage.loading import load
from lambda_pg_cdk.tools.new import TEMPLATE, NewProjectError, main, write
from tests.support.modules import ROOMS, SOURCES, room

ROOT = Path(__file__).resolve().parents[2]
VERBS = {"up", "redeploy", "watch", "logs", "token", "psql", "status", "down", "destroy"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A new project that has another name than the template's."""
    write("shop", tmp_path / "shop")
    return tmp_path / "shop"


@pytest.mark.parametrize(
    "name", ["", "Shop", "my_api", "my api", "1st", "aws-shop", "../shop", "shop/", "-shop", "é"]
)
def test_a_name_that_cannot_name_a_stack_is_refused(tmp_path: Path, name: str) -> None:
    """With what it must be, before anything is written."""
    with pytest.raises(
        NewProjectError, match=r"the project's name is .*; must be lower-case words"
    ):
        write(name, tmp_path / "project")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_for_a_stack_is_refused(tmp_path: Path) -> None:
    """With the name that would be too long."""
    with pytest.raises(NewProjectError, match="must be shorter"):
        write("-".join(["long"] * 40), tmp_path / "project")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    """Neither a folder with something in it nor a file."""
    there = tmp_path / "shop"
    content = there / "notes.txt" if kind == "folder" else there
    content.parent.mkdir(exist_ok=True)
    content.write_text("mine")
    with pytest.raises(NewProjectError, match=f"{there} exists and is not an empty folder"):
        write("shop", there)
    assert content.read_text() == "mine"
    assert [*tmp_path.rglob("*.py")] == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    """As one that was made for a new repository."""
    (tmp_path / "shop").mkdir()
    write("shop", tmp_path / "shop")
    assert (tmp_path / "shop" / "app.py").exists()


def test_the_command_says_what_to_type_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And an error goes to standard error, with exit code 1."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "shop"]) == 0
    assert "cd shop\n  make setup" in capsys.readouterr().out
    assert main(["new", "shop"]) == 1
    assert "is not an empty folder" in capsys.readouterr().err


def test_it_writes_these_files(project: Path) -> None:
    """And no other: what an editor or an interpreter left in the template stays there."""
    files = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert files == {
        ".gitignore",
        "Makefile",
        "README.md",
        "app.py",
        "cdk.json",
        "functions/orders/handler.py",
        "migrations/0001_orders.py",
        "package.json",
        "pytest.ini",
        "requirements.txt",
        "tests/test_orders.py",
    }


def test_it_has_its_own_name_and_this_version(project: Path) -> None:
    """Nothing of the template's is left."""
    texts = {path: path.read_text() for path in project.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if "my-api" in text or "==VERSION" in text]
    assert f"\nlambda-pg-cdk[local]=={__version__}\n" in texts[project / "requirements.txt"]


@pytest.mark.parametrize("stage", ["local", "dev", "prod"])
def test_each_stage_is_right(project: Path, stage: str) -> None:
    """Its settings are accepted, and its stacks have the project's name."""
    context = json.loads((project / "cdk.json").read_text())["context"]
    assert set(context["stages"]) == {"local", "dev", "prod"}
    config = load({**context, "stage": stage}.get)
    assert config.stack_prefix == f"Shop-{stage}"
    assert not config.baseline


def test_its_feature_flags_are_this_repositorys() -> None:
    """What is tested here is what it gets."""
    here, there = (
        json.loads((folder / "cdk.json").read_text())["context"] for folder in (ROOT, TEMPLATE)
    )
    flags = {name: value for name, value in here.items() if name != "stages"}
    assert len(flags) > 10
    assert {name: value for name, value in there.items() if name != "stages"} == flags


def test_its_command_line_is_this_repositorys() -> None:
    """The CDK's command line is pinned, to the version that is tested here."""
    here = json.loads((ROOT / "requirements" / "package.json").read_text())["dependencies"]
    assert json.loads((TEMPLATE / "package.json").read_text())["dependencies"] == here


def targets(makefile: Path) -> set[str]:
    """List the targets that a Makefile explains."""
    return set(re.findall(r"(?m)^([a-z-]+):.*## ", makefile.read_text()))


def test_the_makefile_has_the_verbs(project: Path) -> None:
    """Those of the local cloud, and what leads to AWS and back."""
    missing = {*VERBS, "setup", "test", "synth", "diff", "preflight", "deploy", "lock", "migration"}
    assert missing <= targets(project / "Makefile")


def test_make_alone_prints_what_it_can_do(project: Path) -> None:
    """Nothing is set up for that."""
    done = subprocess.run(["make"], cwd=project, capture_output=True, text=True, check=True)
    assert "  make up " in done.stdout
    assert not (project / ".venv").exists()


def test_a_stage_is_not_destroyed_by_default(project: Path) -> None:
    """The stage must be named: the command refuses an empty name, and asks before it removes."""
    command = ["make", "--just-print", "--old-file=setup", "destroy"]
    for arguments, stage in (([], ""), (["STAGE=prod"], "prod")):
        done = subprocess.run(
            [*command, *arguments], cwd=project, capture_output=True, text=True, check=True
        )
        assert f'lambda_pg_cdk.tools.destroy --stage "{stage}"' in done.stdout


IN_CHECKOUT_ONLY = {"image-lock", "image", "publish", "publish-layer", "release"}
"""Named by messages that only a checkout shows."""


def messages(source: str) -> Iterator[str]:
    """Yield the texts of a module that are not docstrings."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def test_a_message_names_no_target_that_a_project_lacks(project: Path) -> None:
    """`make X` in a message can be typed in a project, too."""
    here = targets(ROOT / "Makefile")
    named = {
        (name, target)
        for name, source in SOURCES.items()
        if room(name) in ROOMS
        for text in messages(source)
        for target in re.findall(r"\bmake ([a-z-]+)", text)
        if target in here
    }
    assert {target for _, target in named} >= {"status", "down", "setup", "deploy"}
    there = targets(project / "Makefile") | IN_CHECKOUT_ONLY
    assert {(name, target) for name, target in named if target not in there} == set()


def test_the_template_is_in_the_package() -> None:
    """Where `new` finds it, in a wheel too."""
    assert TEMPLATE.is_relative_to(PACKAGE)


SHOW = "import lambda_pg_cdk as p; print(p.PROJECT, p.IN_CHECKOUT, p.__version__, sep='|')"


def installed(folder: Path) -> Path:
    """Copy the package, as far as its import reads it, to where an installation puts it."""
    package = folder / "site-packages" / "lambda_pg_cdk"
    for name in ("__init__.py", "layer/python/lambda_pg/__init__.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text((PACKAGE / name).read_text())
    return package.parent


@pytest.mark.parametrize("where", ["checkout", "installed"])
def test_the_project_is_the_checkout_or_the_current_folder(tmp_path: Path, where: str) -> None:
    """An installed package has no cdk.json beside it."""
    current = tmp_path / "shop"
    current.mkdir()
    path = installed(tmp_path) if where == "installed" else ROOT
    shown = subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=current,
        env={"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    project, checkout = (current, False) if where == "installed" else (ROOT, True)
    assert shown == f"{project}|{checkout}|{__version__}"


def test_one_place_has_the_version() -> None:
    """Both distributions read the layer's."""
    for folder in (ROOT, ROOT / "layer"):
        settings = tomllib.loads((folder / "pyproject.toml").read_text())
        assert "version" in settings["project"]["dynamic"]
        path = folder / settings["tool"]["hatch"]["version"]["path"]
        assert f'\n__version__ = "{__version__}"\n' in path.read_text()
