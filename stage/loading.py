"""Read the settings of a stage from cdk.json, and check them."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.consistency import inconsistencies
from lambda_pg_cdk.stage.messages import problem
from lambda_pg_cdk.stage.schema import ConfigurationError, read

CDK_JSON = PROJECT / "cdk.json"
STAGE = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


class NoProjectError(FileNotFoundError):
    """A folder is not a project's; the message names it and says how a project is made."""


def read_context(file: Path) -> dict[str, Any]:
    """Return the context of a project's cdk.json. Raises NoProjectError where there is none."""
    if not file.is_file():
        raise NoProjectError(
            f"{file.parent} has no {file.name}: run this in a project's folder, or make a new "
            "project: python -m lambda_pg_cdk new my-api"
        )
    context: dict[str, Any] = json.loads(file.read_text()).get("context", {})
    return context


def load(context: Callable[[str], object]) -> Config:
    """Build the settings of the chosen stage, with the override merged into its block.

    `context` returns a value of cdk.json's context by its key: `stages`, `stage` (default: dev) or
    `override` (JSON). Raise `ConfigurationError`, which lists every problem.
    """
    stage = str(context("stage") or "dev")
    block = _block(context("stages"), stage)
    problems: list[str] = []
    merged = _merge(block, _parse(context("override"), problems))
    config = read(Config, merged, problems, stage=stage)
    if config is not None:
        problems += inconsistencies(config)
        problems += _twins(config, context("stages"))
    if config is None or problems:
        raise ConfigurationError(stage, problems)
    return config


def load_stage(stage: str, override: Mapping[str, object] | None = None) -> Config:
    """Read a stage of this project's cdk.json, for any app or program."""
    context = read_context(CDK_JSON)
    asked = {"stages": context.get("stages"), "stage": stage, "override": override}
    return load(asked.get)


def _block(stages: object, stage: str) -> object:
    if re.fullmatch(STAGE, stage) is None:
        must = "be up to 63 letters, digits and hyphens, without a hyphen at either end"
        raise ConfigurationError(stage, [problem("stage", stage, f"{must}: it names the stacks")])
    if isinstance(stages, Mapping) and stage in stages:
        return stages[stage]
    known = ", ".join(stages) if isinstance(stages, Mapping) else "the stages of cdk.json (none)"
    raise ConfigurationError(stage, [problem("stage", stage, f"be one of {known}")])


def _twins(config: Config, stages: object) -> Iterator[str]:
    """Yield each other stage whose proxy has the same name to RDS, which ignores case."""
    if config.pooler != "rds-proxy" or not isinstance(stages, Mapping):
        return
    for other in stages:
        if other != config.stage and other.lower() == config.stage.lower():
            yield (
                f"stage is {config.stage!r}; must differ from the stage {other!r} in more than"
                f" case: both proxies would be {config.proxy_name!r}"
            )


def _parse(override: object, problems: list[str]) -> object:
    if not isinstance(override, str):
        return override or {}
    try:
        return json.loads(override)
    except ValueError as error:
        problems.append(problem("override", override, f"be JSON: {error}"))
        return {}


def _merge(block: object, override: object) -> object:
    if not isinstance(block, Mapping) or not isinstance(override, Mapping):
        return override
    return {**block, **{name: _merge(block.get(name), new) for name, new in override.items()}}
