"""Work that a deployment does in the database: the migration, and a login that RDS Proxy needs."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from aws_cdk import CfnElement, CustomResource, Duration, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct, IConstruct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.functions import new_function
from lambda_pg_cdk.stacks.nag_exceptions import suppress_permission, suppress_serverless
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.sources import OPERATIONS

LONGEST = 900
"""Lambda's longest timeout of a function, in seconds."""

EVENT_AGE = 900
"""Seconds that Lambda keeps CloudFormation's event while the provider is throttled."""

SERVICE_TIMEOUT = EVENT_AGE + LONGEST + 60
"""Seconds after which CloudFormation treats a silent provider as failed (default: an hour). Longer
than the event can last: no migration begins after CloudFormation has given up.
https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudformation-customresource.html"""


class DeploymentTask(Construct):
    """A custom resource that invokes a function in a deployment when `properties` change.

    Not CDK's Trigger, whose SDK retries an invocation that reaches its timeout, nor CDK's provider
    framework, which retries after any error: docs/decisions/0027. The constructs in `before` wait
    for it. `invokes` is the function's ARN for a policy. `properties` has those that
    operations/migration_provider reads, and other values whose change makes the function run again.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        resource_type: str,
        invokes: str,
        properties: Mapping[str, Any],
        before: Sequence[IConstruct] = (),
    ) -> None:
        super().__init__(scope, id)
        self.provider = self._provider(config, assets, invokes)
        self.resource = CustomResource(
            self,
            "Run",
            service_token=self.provider.function_arn,
            service_timeout=Duration.seconds(SERVICE_TIMEOUT),
            resource_type=resource_type,
            properties=properties,
        )
        self.resource.node.add_dependency(self.provider)
        for each in before:
            each.node.add_dependency(self.resource)

    def _provider(self, config: Config, assets: Assets, invokes: str) -> lambda_.Function:
        """Make the function that CloudFormation invokes; outside of the VPC it stays active."""
        provider = new_function(
            self,
            OPERATIONS / "migration_provider",
            config=config,
            assets=assets,
            timeout=LONGEST,
            invoked="CloudFormation invokes it, and fails when it does not answer in time.",
            retry_attempts=0,
            max_event_age=Duration.seconds(EVENT_AGE),
        )
        for action, resource in (
            ("lambda:InvokeFunction", invokes),
            ("cloudformation:DescribeStacks", Stack.of(self).stack_id),
        ):
            provider.add_to_role_policy(iam.PolicyStatement(actions=[action], resources=[resource]))
        suppress_serverless(
            provider,
            LambdaAsyncFailureDestination="CloudFormation waits for its answer, and fails without.",
        )
        return provider


class Migration(DeploymentTask):
    """Runs a version of the function `migrate` when the version changes."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        migrate: lambda_.Function,
    ) -> None:
        super().__init__(
            scope,
            id,
            config=config,
            assets=assets,
            resource_type="Custom::Migration",
            # All versions: a policy with one version would change in every deployment.
            invokes=f"{migrate.function_arn}:*",
            properties={
                "Function": migrate.current_version.function_arn,
                "Seconds": config.functions.migration_timeout,
                "Logs": migrate.log_group.log_group_name,
            },
        )
        self.resource.node.add_dependency(migrate)
        name = Stack.of(self).get_logical_id(cast(CfnElement, migrate.node.default_child))
        suppress_permission(
            self.provider,
            f"Resource::<{name}.Arn>:*",
            "It runs the version of the migration that the deployment has published.",
        )
