"""Build the stacks of one stage: settings come from cdk.json, `-c stage=` chooses the block."""

from typing import Any

from aws_cdk import App, Environment, Tags

from stacks.api import ApiStack
from stacks.assets import Assets
from stacks.budget import budget_of
from stacks.config import Config
from stacks.database import DatabaseStack
from stacks.network import NetworkStack
from stacks.observability import ObservabilityStack
from stacks.pooler.pgbouncer import PgBouncerStack


def build(app: App) -> App:
    """Add the stage's stacks to the app."""
    config = Config.from_context(app.node.try_get_context)
    budget_of(config).check()
    assets = Assets(config)
    prefix = f"LambdaPg-{config.stage}"
    shared: dict[str, Any] = {
        "config": config,
        "env": Environment(account=config.account, region=config.region),
    }
    stateful: dict[str, Any] = {**shared, "termination_protection": config.termination_protection}
    network = NetworkStack(app, f"{prefix}-Network", **stateful)
    database = DatabaseStack(app, f"{prefix}-Database", network=network, **stateful)
    pooler = PgBouncerStack(
        app, f"{prefix}-Pooler", assets=assets, network=network, database=database, **shared
    )
    api = ApiStack(
        app,
        f"{prefix}-Api",
        assets=assets,
        network=network,
        database=database,
        pooler=pooler,
        **shared,
    )
    ObservabilityStack(
        app, f"{prefix}-Observability", api=api, database=database, pooler=pooler, **shared
    )
    pooler.add_stack_dependency(database, reason="reads its address")
    api.add_stack_dependency(pooler, reason="reads its CA")
    Tags.of(app).add("lambda-pg:stage", config.stage)
    return app


if __name__ == "__main__":
    build(App()).synth()
