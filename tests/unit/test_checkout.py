"""What a checkout takes from the cache when it is set up, with a stand-in for npm."""

import os
from pathlib import Path

import pytest

from lambda_pg_cdk.local.install import checkout
from lambda_pg_cdk.local.install.installed import InstallError

NPM = """#!/bin/sh
echo "ran $*" >> {log}
mkdir -p node_modules/tool/bin node_modules/.bin
cp package-lock.json node_modules/tool/bin/program
ln -s ../tool/bin/program node_modules/.bin/program
exit {code}
"""


class Project:
    """Checkouts, and an npm that notes when it ran."""

    def __init__(self, folder: Path) -> None:
        """Begin with none."""
        self.folder, self.log = folder, folder / "log"
        self.npm()

    def npm(self, code: int = 0) -> None:
        """Have npm end with an exit code."""
        program = self.folder / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(NPM.format(log=self.log, code=code))
        program.chmod(0o755)

    def clone(self, name: str, lock: str = "one") -> Path:
        """Make a checkout with a lock file, unless it is there; return it."""
        root = self.folder / name
        root.mkdir(exist_ok=True)
        files = root / "requirements"
        files.mkdir(exist_ok=True)
        for file in ("package.json", ".npmrc"):
            (files / file).touch()
        (files / "package-lock.json").write_text(lock)
        return root

    @property
    def runs(self) -> int:
        """How often npm ran."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty cache."""
    monkeypatch.setenv("LAMBDA_PG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Project(tmp_path)


def installed(root: Path) -> str:
    """Return what a checkout has, by the link that runs it."""
    assert (root / "node_modules" / ".bin" / "program").is_symlink()
    return (root / "node_modules" / ".bin" / "program").read_text()


@pytest.mark.parametrize("links", [True, False])
def test_npm_runs_once_for_all_checkouts(
    project: Project, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """The next one has links, or copies where another file system takes none."""

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for name in ("first", "second"):
        root = project.clone(name)
        checkout.set_up_node_modules(root)
        assert installed(root) == "one"
    assert project.runs == 1


def test_demo_and_deployments_need_not_wait_for_a_browser(project: Project) -> None:
    """The packages of tests are left out, and are in another folder of the cache."""
    root = project.clone("first")
    checkout.set_up_node_modules(root, "--omit=dev")
    assert "--omit=dev" in project.log.read_text()
    checkout.set_up_node_modules(root)
    assert project.runs == 2
    assert project.log.read_text().count("--omit=dev") == 1


def test_another_lock_file_replaces_what_is_there(project: Project) -> None:
    """And a file that somebody has put there is gone, as with npm."""
    root = project.clone("first")
    checkout.set_up_node_modules(root)
    (root / "node_modules" / "mine").touch()
    checkout.set_up_node_modules(project.clone("first", lock="two"))
    assert installed(root) == "two"
    assert not (root / "node_modules" / "mine").exists()
    assert list((root / "build").iterdir()) == []


def test_what_npm_could_not_finish_is_not_used(project: Project) -> None:
    """The checkout gets nothing, and the next set-up runs npm again."""
    project.npm(code=1)
    root = project.clone("first")
    with pytest.raises(InstallError, match="npm ci"):
        checkout.set_up_node_modules(root)
    assert not (root / "node_modules").exists()
    project.npm()
    checkout.set_up_node_modules(root)
    assert installed(root) == "one"
    assert project.runs == 2


def test_an_interrupt_leaves_what_was_there(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it never has its name."""
    root = project.clone("first")
    checkout.set_up_node_modules(root)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkout, "_link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkout.set_up_node_modules(project.clone("first", lock="two"))
    assert installed(root) == "one"
