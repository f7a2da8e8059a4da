"""The pooler: PgBouncer, RDS Proxy or one that exists; each publishes the same values."""

from typing import Any

from constructs import Construct

from stacks.assets import Assets
from stacks.config import Config
from stacks.database import DatabaseStack
from stacks.network import NetworkStack
from stacks.pooler.external import ExternalStack
from stacks.pooler.pgbouncer import PgBouncerStack
from stacks.pooler.rds_proxy import RdsProxyStack

__all__ = ["ExternalStack", "PgBouncerStack", "Pooler", "RdsProxyStack", "new_pooler"]

Pooler = PgBouncerStack | RdsProxyStack | ExternalStack


def new_pooler(
    scope: Construct,
    name: str,
    *,
    config: Config,
    assets: Assets,
    network: NetworkStack | None,
    database: DatabaseStack | None,
    **options: Any,
) -> Pooler:
    """Make the stack of the pooler that the stage chooses."""
    if network is None or database is None:
        return ExternalStack(scope, name, config=config, **options)
    if config.pooler == "rds-proxy":
        return RdsProxyStack(
            scope, name, config=config, assets=assets, network=network, database=database, **options
        )
    return PgBouncerStack(
        scope, name, config=config, assets=assets, network=network, database=database, **options
    )
