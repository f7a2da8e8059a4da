"""What is installed into the cache, and for whom."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lambda_pg_cdk.local.install import installed


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache, into which nothing is really installed: the folders that were made."""
    folders: list[Path] = []

    def make(folder: Path, _requirements: Path) -> None:
        folder.mkdir()
        folders.append(folder)

    monkeypatch.setenv("LAMBDA_PG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(installed, "_make_environment", make)
    return folders


def test_checkouts_of_one_interpreter_share_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Path]
) -> None:
    """Each has its own virtual environment, and would install 65 MB for itself."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("moto==1\n")
    interpreter = tmp_path / "usr" / "python3"
    interpreter.parent.mkdir()
    interpreter.touch()
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(interpreter)
        monkeypatch.setattr(sys, "executable", str(tmp_path / name))
        installed.environment_python("tool", requirements)
    assert len(made) == 1


@pytest.mark.parametrize("other", ["requirements", "interpreter"])
def test_other_requirements_or_another_interpreter_get_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Path], other: str
) -> None:
    """Nothing that does not fit is used."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("moto==1\n")
    before = installed.environment_python("tool", requirements)
    if other == "requirements":
        requirements.write_text("moto==2\n")
    else:
        monkeypatch.setattr(sys, "executable", "/opt/python/bin/python3")
    after = installed.environment_python("tool", requirements)
    assert before != after
    assert len(made) == 2


def test_rivals_wait_for_whoever_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Path]
) -> None:
    """Test runs begin with several processes, each of which needs the same."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("moto==1\n")
    make, begun, go_on = installed._make_environment, threading.Event(), threading.Event()

    def slowly(folder: Path, requirements: Path) -> None:
        begun.set()
        assert go_on.wait(10)
        make(folder, requirements)

    monkeypatch.setattr(installed, "_make_environment", slowly)
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(installed.environment_python, "tool", requirements)
        assert begun.wait(10)
        second = executor.submit(installed.environment_python, "tool", requirements)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        go_on.set()
        assert first.result() == second.result()
    assert len(made) == 1
