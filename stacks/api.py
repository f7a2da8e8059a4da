"""The functions, the migration and the HTTP API in front of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aws_cdk import CfnOutput, Fn, Stack
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.cors import cors_of
from lambda_pg_cdk.stacks.database import (
    APPLICATION,
    APPLICATION_SECRET,
    DatabaseStack,
    hash_for_proxy,
    token_user_arn,
)
from lambda_pg_cdk.stacks.functions import (
    add_layer,
    add_variables,
    join_network,
    new_function,
    read_secret,
)
from lambda_pg_cdk.stacks.http_routes import HttpRoutes
from lambda_pg_cdk.stacks.http_stage import new_stage
from lambda_pg_cdk.stacks.identity import Identity
from lambda_pg_cdk.stacks.migration import Migration
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stacks.releases import describe
from lambda_pg_cdk.stacks.servers import MASTER
from lambda_pg_cdk.stacks.sql_logins import name_roles
from lambda_pg_cdk.stage.budget import login_limit
from lambda_pg_cdk.stage.capacity import max_connections
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.environment import environment
from lambda_pg_cdk.stage.sources import FUNCTIONS, OPERATIONS

BASELINE = "ANY /baseline/users/{id}"

LAYER_ROOTS = "/opt/python/lambda_pg/certs/aws.pem"
"""The layer's root certificates of RDS, in a function."""

BY_API = "The API invokes it and hands its answer on: there is no event that could be lost."
BY_DEPLOYMENT = "The deployment invokes it, waits for it, and rolls back when it fails."


class ApiStack(Stack):
    """The migration and the HTTP API; the app adds functions. Output: `ApiUrl`.

    Public: `api`, `authorizer`, `identity`, `migrate`, `migration`, `routes`, `stage`,
    `add_function`, `add_control`.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        database: DatabaseStack | None,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        self._config, self._assets, self._database = config, assets, database
        self.migrate = self._migrate(database)
        self.api = api.HttpApi(
            self,
            "Http",
            create_default_stage=False,
            description=self.stack_name,
            cors_preflight=cors_of(config),
        )
        self.identity = Identity(self, "Identity", config=config, assets=assets, http_api=self.api)
        self.authorizer = self.identity.authorizer
        self.routes = HttpRoutes(config, self.api, self.identity)
        limits = config.api
        self.stage = new_stage(
            self, config, self.api, rate=limits.rate_limit, burst=limits.burst_limit
        )
        if config.baseline and database is not None:
            baseline = self.add_control(FUNCTIONS / "baseline")
            if config.database.ca_file is None:
                add_variables(baseline, environment(ca_file=LAYER_ROOTS))
            self.routes.add(BASELINE, baseline, baseline.node.id, public=False)
        CfnOutput(self, "ApiUrl", value=self.stage.url, description="Address of the HTTP API")

    def _new(
        self, source: Path, timeout: int, invoked: str = BY_API, **options: Any
    ) -> lambda_.Function:
        return new_function(
            self,
            source,
            config=self._config,
            assets=self._assets,
            timeout=timeout,
            invoked=invoked,
            **options,
        )

    def add_function(
        self, source: Path, timeout: int | None = None, **options: Any
    ) -> lambda_.Function:
        """Add a function of the app, which starts from snapshots where the stage says so.

        `timeout` is in seconds, by default the setting functions.timeout.
        """
        runtime = options.get("runtime")
        snap_start = None
        if self._config.functions.snap_start and self._assets.starts_from_snapshots(runtime):
            snap_start = lambda_.SnapStartConf.ON_PUBLISHED_VERSIONS
        seconds = timeout or self._config.functions.timeout
        return self._new(source, seconds, snap_start=snap_start, **options)

    def add_control(self, source: Path, extra: Sequence[str] = ()) -> lambda_.Function:
        """Add a control of the storm: it connects to the database itself, outside of the budget."""
        if self._database is None:
            raise ValueError(f"{source} needs a database, and database.kind is 'none'")
        function = self._new(source, self._config.functions.timeout, extra=extra)
        add_layer(function, self._config)
        self._database.attach(function, APPLICATION_SECRET)
        return function

    def _migrate(self, database: DatabaseStack | None) -> lambda_.Function:
        """Add the migration, which functions wait for; a failure rolls the deployment back."""
        timeout = self._config.functions.migration_timeout
        source = OPERATIONS / "migrate"
        code = self._assets.migration(sample=self._config.sample_api)
        function = self._new(source, timeout, BY_DEPLOYMENT, code=code)
        add_layer(function, self._config)
        if database is None:
            self._take_direct_url(function)
        else:
            database.attach(function)
            self._name_login(function)
        add_variables(function, self._limits())
        if self._config.sql.enabled:
            name_roles(function, self._config)
        if database is not None and database.server.resource_id:
            # A database restored under the same name differs in its id only. A new version of the
            # function is published only if its own configuration has changed.
            server = published(self._config, "database/resource-id").read(self)
            function.add_environment("DATABASE_RESOURCE_ID", server)
        describe(function, self._migration_inputs(database))
        task = Migration(
            self, "Migration", config=self._config, assets=self._assets, migrate=function
        )
        self.migration = task.resource
        return function

    def _migration_inputs(self, database: DatabaseStack | None) -> str:
        """Describe the inputs, besides its code, that make the migration run again."""
        if database is None:
            return "the external pooler's database"
        words = [published(self._config, "database/host").read(self)]
        if database.server.resource_id:
            words.append(published(self._config, "database/resource-id").read(self))
        if not self._config.by_token:
            # Only a migration sets the password of another secret.
            secret = Fn.split(":", published(self._config, APPLICATION_SECRET).read(self))
            words.append(Fn.select(6, secret))
        layer = Fn.split(":", published(self._config, "layer/arn").read(self))
        return Fn.join(" ", [Fn.select(7, layer), *words])

    def _limits(self) -> dict[str, str]:
        settings = self._config.database
        limits = {
            "STATEMENT_TIMEOUT": settings.statement_timeout,
            "LOCK_TIMEOUT": settings.lock_timeout,
            "IDLE_IN_TRANSACTION_TIMEOUT": settings.idle_in_transaction_timeout,
            "TRANSACTION_TIMEOUT": settings.transaction_timeout,
        }
        if settings.kind == "existing":
            limits["SHARED_DATABASE"] = 1
        if settings.kind != "none":
            # The server must accept what the budget assumes.
            limits["MAX_CONNECTIONS"], _ = max_connections(self._config)
            limits["LOGIN_LIMIT"] = login_limit(self._config)
        return {name: str(value) for name, value in limits.items()}

    def _name_login(self, function: lambda_.Function) -> None:
        """Give the migration the application's login: by password or by token."""
        if self._config.by_token:
            function.add_environment("APP_USER", APPLICATION)
            self._let_owner_in(function)
            return
        arn = published(self._config, APPLICATION_SECRET).read(self)
        read_secret(function, arn)
        function.add_environment("APP_SECRET_ARN", arn)
        hash_for_proxy(function, self._config)

    def _let_owner_in(self, function: lambda_.Function) -> None:
        """Let the migration log in by token as the owner: RDS may reject the owner's password.

        The owner creates the application's user and so becomes its member (PostgreSQL 16 and
        newer), and RDS rejects passwords of members of rds_iam. For an existing server the owner's
        name is not known here: there the migration makes no change that would lock the owner out.
        """
        if self._config.database.kind == "existing":
            return
        server = published(self._config, "database/resource-id").read(self)
        user = token_user_arn(self, server, MASTER)
        function.add_to_role_policy(
            iam.PolicyStatement(actions=["rds-db:connect"], resources=[user])
        )
        function.add_environment("OWNER_BY_TOKEN", "1")

    def _take_direct_url(self, function: lambda_.Function) -> None:
        """Let the migration connect by the `direct_url` of the external pooler's secret."""
        external = self._config.external
        read_secret(function, str(external.secret_arn), external.kms_key_arn)
        add_variables(
            function, environment(secret_arn=external.secret_arn, ca_file=external.ca_file)
        )
        if self._config.in_network:
            group = join_network(function, self._config)
            group.add_egress_rule(
                ec2.Peer.any_ipv4(), ec2.Port.tcp(external.direct_port), "to the database"
            )
