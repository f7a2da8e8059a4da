"""The pooler: PgBouncer, RDS Proxy or an existing one; all publish the same values."""

from typing import Any

from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.database import DatabaseStack
from lambda_pg_cdk.stacks.network import NetworkStack
from lambda_pg_cdk.stacks.pooler.external import ExternalStack
from lambda_pg_cdk.stacks.pooler.pgbouncer import PgBouncerStack
from lambda_pg_cdk.stacks.pooler.rds_proxy import RdsProxyStack
from lambda_pg_cdk.stage.config import Config

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
