"""Read the settings of a stage from cdk.json, and check them."""

import json
import re
from collections.abc import Callable, Iterator, Mapping

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.consistency import inconsistencies
from lambda_pg_cdk.stage.schema import ConfigurationError, read

CDK_JSON = PROJECT / "cdk.json"
STAGE = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


def load(context: Callable[[str], object]) -> Config:
    """Build the settings of the chosen stage, with the override merged into its block.

    `context` looks a key of cdk.json's context up: `stages`, `stage` (default: dev) and
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
    """Read a stage of this project's cdk.json, from whichever app or program asks."""
    context = json.loads(CDK_JSON.read_text())["context"]
    asked = {"stages": context["stages"], "stage": stage, "override": override}
    return load(asked.get)


def _block(stages: object, stage: str) -> object:
    if re.fullmatch(STAGE, stage) is None:
        shape = "allowed are letters, digits and hyphens, up to 63 and no hyphen at an end"
        raise ConfigurationError(stage, [f"stage = {stage!r}: {shape}, as stacks are named by it"])
    if isinstance(stages, Mapping) and stage in stages:
        return stages[stage]
    known = ", ".join(stages) if isinstance(stages, Mapping) else "no stages"
    raise ConfigurationError(stage, [f"stage = {stage!r}: allowed are {known}"])


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
        problems.append(f"override = {override!r}: allowed is JSON, {error}")
        return {}


def _merge(block: object, override: object) -> object:
    if not isinstance(block, Mapping) or not isinstance(override, Mapping):
        return override
    return {**block, **{name: _merge(block.get(name), new) for name, new in override.items()}}
