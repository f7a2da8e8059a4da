"""Build the stacks of one stage; `-c stage=` chooses its block of cdk.json."""

import itertools
from typing import Any

from aws_cdk import App, Environment, Tags

from lambda_pg_cdk.stacks.api import ApiStack
from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.clients import Clients
from lambda_pg_cdk.stacks.database import DatabaseStack
from lambda_pg_cdk.stacks.layer import LayerStack
from lambda_pg_cdk.stacks.network import NetworkStack
from lambda_pg_cdk.stacks.observability import ObservabilityStack
from lambda_pg_cdk.stacks.pooler import new_pooler
from lambda_pg_cdk.stage.loading import load


def build(app: App) -> Clients:
    """Add the stage's stacks to the app; functions of your own attach to what is returned."""
    config = load(app.node.try_get_context)
    clients, assets, prefix = Clients(config), Assets(config), config.stack_prefix
    shared: dict[str, Any] = {
        "config": config,
        "env": Environment(account=config.account, region=config.region),
    }
    stateful = {**shared, "termination_protection": config.termination_protection}
    layer = LayerStack(app, f"{prefix}-Layer", assets=assets, **shared)
    network = NetworkStack(app, f"{prefix}-Network", **stateful) if config.in_network else None
    place: dict[str, Any] = {"assets": assets, "network": network}
    database = (
        DatabaseStack(app, f"{prefix}-Database", **place, **stateful)
        if config.database.kind != "none"
        else None
    )
    pooler = new_pooler(app, f"{prefix}-Pooler", database=database, **place, **shared)
    clients.wait_for(pooler)
    api = ApiStack(
        app, f"{prefix}-Api", assets=assets, clients=clients, database=database, **shared
    )
    watch = ObservabilityStack(app, f"{prefix}-Observability", api=api, **shared)
    in_order = filter(None, (layer, network, database, pooler, api, watch))
    for first, second in itertools.pairwise(in_order):
        second.add_stack_dependency(first, reason="reads what it publishes")
    # CloudFormation knows no tags of a target group, though CDK would write them.
    untagged = ["AWS::RDS::DBProxyTargetGroup"]
    Tags.of(app).add("lambda-pg:stage", config.stage, exclude_resource_types=untagged)
    return clients
