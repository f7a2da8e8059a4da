"""What `make destroy` says and asks before it removes anything."""

from collections.abc import Sequence
from typing import Any

import pytest

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.tools import destroy

OPEN = {"termination_protection": False, "database": {"deletion_protection": False}}
CLOSED = {"termination_protection": True, "database": {"deletion_protection": True}}


def config(**override: Any) -> Config:
    """Return the stage dev of this project, changed."""
    return load_stage("dev", override)


def said(**override: Any) -> str:
    """Return all that is said of it."""
    return "\n".join(destroy.consequences(config(**override)))


def test_an_open_stage_is_removed_with_its_data() -> None:
    """It says that no snapshot is made."""
    text = said(**OPEN)
    assert "removed with all its data, without a final snapshot" in text
    assert "refuses" not in text


def test_a_protected_stage_says_who_refuses_and_what_to_do() -> None:
    """Both protections, with the command or the setting that switches each off."""
    text = said(**CLOSED)
    assert "leaves a final snapshot" in text
    assert "CloudFormation refuses to delete LambdaPg-dev-Network and LambdaPg-dev-Database" in text
    assert "--no-enable-termination-protection" in text
    assert "RDS refuses to delete the database" in text
    assert "stop half-way" in text


class Shell:
    """Answers the question, and notes the command."""

    def __init__(self, answer: str, code: int = 0) -> None:
        """Take what is typed, and the exit code of the command."""
        self.answer, self.code = answer, code
        self.commands: list[list[str]] = []

    def ask(self, _question: str) -> str:
        """Type."""
        return self.answer

    def run(self, command: Sequence[str]) -> int:
        """Note it."""
        self.commands.append(list(command))
        return self.code


@pytest.mark.parametrize("answer", ["", "y", "prod"])
def test_only_the_stages_name_removes_it(answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else keeps it, and says so."""
    shell = Shell(answer)
    assert destroy.destroy(config(**OPEN), shell.ask, shell.run) == 1
    assert shell.commands == []
    assert capsys.readouterr().out.endswith("nothing was removed\n")


@pytest.mark.parametrize(("code", "last"), [(0, "removed: stage dev"), (1, "may be left")])
def test_the_stage_is_removed_by_the_cdk(
    code: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """That stage only, and it is said what came of it."""
    shell = Shell("dev", code)
    assert destroy.destroy(config(**OPEN), shell.ask, shell.run) == code
    ((_, *arguments),) = shell.commands
    assert arguments == ["destroy", "--all", "--force", "--context", "stage=dev"]
    assert last in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("", "make destroy STAGE=dev"),
        ("local", "make down"),
        ("nowhere", "must be one of local, dev, prod"),
    ],
)
def test_a_wrong_stage_is_refused_with_what_to_type(
    stage: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked, and nothing is removed."""
    assert destroy.main(["--stage", stage]) == 1
    assert reason in capsys.readouterr().err


def test_nobody_to_ask_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script without a terminal."""

    def ended(_question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    called = "lambda_pg_cdk.tools.destroy.subprocess.call"
    monkeypatch.setattr(called, lambda *_, **__: pytest.fail("it was removed"))
    assert destroy.main(["--stage", "dev"]) == 1
