"""What a release refuses, and what it writes; no release is made here."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from lambda_pg_cdk import __version__
from lambda_pg_cdk.layer.build import Target
from lambda_pg_cdk.tools import release
from lambda_pg_cdk.tools.release import ReleaseError, Section, refusals, section

CHANGELOG = """# Changelog

## 0.3.0 — unreleased

### Added
- A third thing.

## 0.2.0 — 2026-12-24

## 0.1.0 — 2026-12-01

- The first thing.
"""
DATED = Section("2026-12-01", "- The first thing.")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository on its main branch, with nothing to commit."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "config", "user.name", "Ada")
    git(tmp_path, "config", "user.email", "ada@example.com")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Begin")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    """Run git, which must succeed."""
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def test_a_section_ends_before_the_next_one() -> None:
    """With its date, or None until it is released."""
    assert section(CHANGELOG, "0.1.0") == DATED
    assert section(CHANGELOG, "0.3.0") == Section(None, "### Added\n- A third thing.")


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0"])
def test_a_version_without_changes_is_refused(version: str) -> None:
    """An empty section is like none."""
    with pytest.raises(ReleaseError, match=f"no section of version {version}"):
        section(CHANGELOG, version)


def test_the_changelog_has_this_version() -> None:
    """And every heading of it has the one form."""
    text = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    assert section(text, __version__).text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert [line for line in headings if not release.HEADING.fullmatch(line)] == []


def test_a_clean_main_branch_is_released(repository: Path) -> None:
    """With a dated section and a new tag."""
    assert list(refusals(repository, "0.1.0", DATED)) == []


def test_everything_that_refuses_a_release_is_said_at_once(repository: Path) -> None:
    """Each reason with what to do."""
    git(repository, "tag", "v0.1.0")
    git(repository, "switch", "--quiet", "--create", "work")
    (repository / "new.txt").write_text("")
    reasons = list(refusals(repository, "0.1.0", Section(None, "…")))
    expected = ["the branch is 'work'", "1 files are changed", "the tag v0.1.0", "is unreleased"]
    assert [any(part in reason for reason in reasons) for part in expected] == [True] * 4
    assert len(reasons) == 4


@pytest.mark.parametrize("version", ["1", "0.1", "0.1.0-beta", "v0.1.0"])
def test_a_number_of_another_form_is_refused(repository: Path, version: str) -> None:
    """An index would change it, and the tag would be another one."""
    assert "must be like 0.1.0" in next(refusals(repository, version, DATED))


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `make release` has written, as far as publishing reads it."""
    monkeypatch.setattr(release, "RELEASES", tmp_path)
    folder = tmp_path / __version__
    folder.mkdir()
    (folder / "a.whl").write_text("a wheel")
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(b'a wheel').hexdigest()}  a.whl\n")
    return folder


def never(_: str) -> str:
    """Be asked, which a dry run must not."""
    raise AssertionError("it asked")


def test_a_dry_run_prints_what_would_be_published(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command as it would be run, and nothing is asked or run."""
    orders = list(release.index_orders(built))
    release.publish(orders, dry_run=True, ask=never)
    shown = capsys.readouterr().out
    assert f"uv publish {built}/lambda_pg-{__version__}-py3-none-any.whl" in shown
    assert f"{built}/lambda_pg_cdk-{__version__}.tar.gz" in shown
    assert shown.endswith("dry run: nothing was published\n")


def test_the_layer_is_published_before_what_needs_it(built: Path) -> None:
    """An installation between the two would not find its dependency."""
    first, second = release.index_orders(built)
    assert "lambda_pg-" in first.command[2]
    assert "lambda_pg_cdk-" in second.command[2]


def test_layers_are_published_for_each_region_and_target(built: Path) -> None:
    """With names that Lambda allows; Lambda limits the licence to 512 characters."""
    orders = list(release.layer_orders(built, ["eu-west-1", "us-east-1"]))
    targets = list(release.targets())
    assert len(orders) == 2 * len(targets)
    assert Target("3.11", "arm64") not in targets
    words = orders[0].command
    assert words[:3] == ("aws", "lambda", "publish-layer-version")
    assert words[words.index("--layer-name") + 1] == "lambda-pg-python311-x86_64"
    assert len(release.LAYER_LICENCE) <= 512


@pytest.mark.parametrize("answer", ["", "y", "yes", "9.9.9"])
def test_another_answer_than_the_version_publishes_nothing(
    built: Path, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing cannot be undone."""
    monkeypatch.setattr(subprocess, "run", never)
    order = release.Order(("false",), "nothing")
    with pytest.raises(ReleaseError, match="nothing was published"):
        release.publish([order], dry_run=False, ask=lambda _: answer)


def test_a_changed_file_is_not_published(built: Path) -> None:
    """What is published is what was checked."""
    (built / "a.whl").write_text("another wheel")
    with pytest.raises(ReleaseError, match=r"a\.whl does not match its checksum"):
        release.publish([], dry_run=True, ask=never)


def test_nothing_is_published_before_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to run first."""
    monkeypatch.setattr(release, "RELEASES", tmp_path)
    with pytest.raises(ReleaseError, match="has no release: make release"):
        release.publish([], dry_run=True, ask=never)


def test_licences_are_listed_with_their_texts(tmp_path: Path) -> None:
    """Of the layer itself, and of each package in it."""
    metadata = tmp_path / "python" / "thing-1.2.dist-info"
    metadata.mkdir(parents=True)
    (tmp_path / "LICENSE").write_text("the layer's text")
    (metadata / "METADATA").write_text("Name: thing\nVersion: 1.2\nLicense-Expression: MIT\n")
    (metadata / "LICENSE.txt").write_text("its text")
    text = release.licences(tmp_path)
    assert text.startswith(f"lambda-pg {__version__}: Apache-2.0\nthing 1.2: MIT\n")
    assert "the layer's text" in text
    assert "thing: LICENSE.txt\n\nits text" in text


def test_another_interpreter_is_found_before_a_stand_in_of_pyenv(tmp_path: Path) -> None:
    """A layer's bytecode needs the Python that it is for; pyenv's own program may refuse to run."""
    program, stand_in = (
        tmp_path / folder / "python3.13" for folder in ("versions/3.13.2/bin", "shims")
    )
    for file in (program, stand_in):
        file.parent.mkdir(parents=True)
        file.write_text("")
        file.chmod(0o755)
    environment = {"PATH": str(stand_in.parent), "PYENV_ROOT": str(tmp_path)}
    assert release.find_python("3.13", environment) == str(program)
    assert release.find_python("3.12", environment) is None
