"""The options of a local cloud."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.deployment.deployed import Start


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one cloud.

    `entry`: the module of `app` that builds the stacks. `bound`: the cloud ends with the process
    that started it. `start`: how a request starts an execution environment if none is free.
    `idle_seconds`: how long an unused environment is kept.
    `wires`: proxies that can fail stand between functions, pooler, database and Secrets Manager.
    They cost one more hop on each connection.
    `console`: whether the live console is served.
    """

    app: Path = PROJECT
    entry: str = "app"
    override: Mapping[str, Any] = field(default_factory=dict)
    bound: bool = False
    deploy: bool = True
    start: Start = "restored"
    idle_seconds: float = 600.0
    wires: bool = False
    console: bool = False

    def dump(self) -> str:
        """Write the options for another process."""
        return json.dumps({**asdict(self), "app": str(self.app)})

    @classmethod
    def parse(cls, text: str) -> "Options":
        """Read what `dump` has written."""
        values = json.loads(text)
        return cls(**{**values, "app": Path(values["app"])})
