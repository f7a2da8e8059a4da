"""docs/how-to.md: each task has a test, and each command names what exists."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from botocore import xform_name
from botocore.model import OperationModel, Shape
from botocore.session import Session

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.parameters import FOR_THE_APP, PARAMETERS
from lambda_pg_cdk.stage.schema import describe

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to.md").read_text()
SECTIONS = dict(re.findall(r"(?sm)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE))
SETTINGS = {name for name, _, _ in describe(Config)}
GLOBAL = {"output", "query", "region"}
"""Options that every command of AWS's command line has."""

TASKS = (
    *("instance", "migration", "table", "Delete a stage", "Restore a backup", "laptop"),
    *("slow queries", "Trace a request", "Cognito", "FastAPI", "SQLAlchemy", "Django"),
    *("row_factory", "second database", "read replica", "several apps", "costs"),
    "edge runtime",
)


def commands(text: str) -> list[str]:
    """List the commands of indented blocks, each in one line."""
    indented = re.findall(r"(?m)^    (?! *[#])(.+)$", re.sub(r"(?s)```.*?```", "", text))
    return re.sub(r" *\\\n *", " ", "\n".join(indented)).splitlines()


AWS = [command for command in commands(PAGE) if command.startswith("aws ")]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_section(task: str) -> None:
    """Exactly one, so that it is found."""
    assert len([title for title in SECTIONS if task in title]) == 1


@pytest.mark.parametrize("title", SECTIONS)
def test_each_section_has_a_test_or_says_why_not(title: str) -> None:
    """At its end; what it names exists, and commands for AWS are said not to be run."""
    end = SECTIONS[title].strip().rpartition("\n\n")[2]
    said = re.search(r"Not run by a test: [^.]*\bAWS\b", end)
    named = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", end)
    assert (end.startswith("Test: ") and named) or said
    file = ""
    for path, name in named:
        file = path or file
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name} is not there"
    needs_aws = any(
        re.match("aws |make (deploy|tunnel|destroy)", each) for each in commands(SECTIONS[title])
    )
    assert bool(said) == needs_aws


@pytest.mark.parametrize("command", AWS)
def test_each_command_of_aws_is_right_by_its_models(command: str) -> None:
    """Service, operation and options exist, none that is required is missing, enums are right."""
    assert list(faults(command)) == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("aws rds modify-instance --db-instance-identifier x", "no operation modify-instance"),
        ("aws rds reboot-db-instance", "--db-instance-identifier is missing"),
        ("aws rds reboot-db-instance --db-instance-identifier x --now", "no option --now"),
        ("aws pi get-resource-metrics --service-type ECS", "--service-type ECS"),
        ("aws xray batch-get-traces --no-trace-ids", "no option --no-trace-ids"),
        ("aws rds reboot-db-instance --db-instance-identifier {a", "not JSON"),
    ],
)
def test_a_wrong_command_is_noticed(command: str, fault: str) -> None:
    """Each way in which one can be wrong."""
    assert any(fault in each for each in faults(command))


def faults(command: str) -> Iterator[str]:
    """Compare a command with botocore's models, which AWS's command line is made from."""
    _, service, name, *words = shlex.split(command)
    model = Session().get_service_model(service)
    operations = {xform_name(each, "-"): each for each in model.operation_names}
    if name not in operations:
        yield f"no operation {name}"
        return
    operation = model.operation_model(operations[name])
    given = options(words)
    members = members_of(operation)
    for option, value in given.items():
        if option not in members:
            yield from [] if option in GLOBAL else [f"no option --{option}"]
        elif members[option].type_name == "string":
            allowed = getattr(members[option], "enum", [])
            yield from [f"--{option} {value}"] if allowed and value not in allowed else []
        if value.startswith("{") and not is_json(value):
            yield f"--{option} is not JSON"
    shape = operation.input_shape
    for member in shape.required_members if shape else ():
        option = xform_name(member, "-")
        if not {option, f"no-{option}"} & set(given):
            yield f"--{option} is missing"


def options(words: list[str]) -> dict[str, str]:
    """Return each option with its values."""
    given: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            given[name] = ""
        else:
            given[name] = f"{given[name]} {word}".strip()
    return given


def members_of(operation: OperationModel) -> Mapping[str, Shape]:
    """Return an operation's options; a boolean has one with `no-`, too."""
    shape = operation.input_shape
    plain = {xform_name(name, "-"): member for name, member in shape.members.items()}
    return plain | {f"no-{k}": each for k, each in plain.items() if each.type_name == "boolean"}


def is_json(text: str) -> bool:
    """Tell whether a text is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_each_published_value_exists() -> None:
    """A name in angle brackets is one that a stage publishes, or a function's."""
    named = set(re.findall(r"<([a-z-]+/[a-z-]+)>", PAGE))
    assert "database/identifier" in named
    assert {each for each in named if not each.startswith("functions/")} <= {
        *PARAMETERS,
        *FOR_THE_APP,
    }


@pytest.mark.parametrize("makefile", ["Makefile", "template/Makefile"])
def test_each_target_of_make_exists(makefile: str) -> None:
    """In this repository and in a new project."""
    targets = re.findall(r"(?m)^\.PHONY: (.+)$", (ROOT / makefile).read_text())
    named = set(re.findall(r"(?m)(?:^    |`)make ([a-z-]+)", PAGE))
    assert {"deploy", "destroy", "migration", "psql", "token", "tunnel"} <= named
    assert named <= set(" ".join(targets).split())


def test_each_module_exists() -> None:
    """What `python -m` starts, as far as it is this project's."""
    modules = re.findall(r"python -m ([\w.]+)", PAGE)
    assert modules
    assert all(importlib.util.find_spec(module) for module in modules)


def test_each_setting_exists() -> None:
    """A setting in the text is the configuration's."""
    groups = {name.partition(".")[0] for name in SETTINGS if "." in name}
    named = {
        name
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", PAGE)
        if name.partition(".")[0] in groups
    }
    assert {"database.min_acu", "network.bastion", "functions.other_clients"} <= named
    assert named - SETTINGS == set()


def test_each_block_of_settings_is_right() -> None:
    """It loads on top of prod's."""
    blocks = re.findall(r"(?s)```json\n(.*?)```", PAGE)
    assert blocks
    for block in blocks:
        load_stage("prod", json.loads(block))


def test_the_stack_that_it_names_has_the_outputs() -> None:
    """The ids of the user pool are outputs of the stack Api."""
    template = json.loads((ROOT / "tests/synth/snapshot/Api.json").read_text())
    named = set(re.findall(r"<(User\w+)>", PAGE))
    assert named == {"UserPoolId", "UserPoolClientId"}
    assert named <= set(template["Outputs"])
