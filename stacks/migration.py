"""When a deployment migrates: after what the migration needs, before the functions change."""

from collections.abc import Sequence
from typing import cast

from aws_cdk import CfnElement, CustomResource, Duration, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct, IConstruct

from stacks.acknowledged import accept_permission, accept_serverless
from stacks.assets import Assets
from stacks.config import Config
from stacks.functions import new_function

LONGEST = 900
"""Seconds that Lambda lets a function run at the most."""

EVENT_AGE = 900
"""Seconds that Lambda keeps CloudFormation's event while the provider is throttled."""

SERVICE_TIMEOUT = EVENT_AGE + LONGEST + 60
"""Seconds after which CloudFormation takes a silent provider for failed; an hour by default. Longer
than the event can be under way: no migration begins after CloudFormation has given up.
https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudformation-customresource.html"""


class Migration(Construct):
    """A custom resource that runs a version of the function `migrate` when there is another one.

    Not CDK's Trigger, whose SDK repeats an invocation that takes all of its time, nor CDK's
    provider framework, which repeats one after any error: docs/decisions/0027. `before` waits for
    it.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        migrate: lambda_.Function,
        before: Sequence[IConstruct],
    ) -> None:
        super().__init__(scope, id)
        provider = self._provider(config, assets, migrate)
        resource = CustomResource(
            self,
            "Run",
            service_token=provider.function_arn,
            service_timeout=Duration.seconds(SERVICE_TIMEOUT),
            resource_type="Custom::Migration",
            properties={
                "Function": migrate.current_version.function_arn,
                "Seconds": config.functions.migration_timeout,
                "Logs": migrate.log_group.log_group_name,
            },
        )
        resource.node.add_dependency(migrate, provider)
        for each in before:
            each.node.add_dependency(resource)

    def _provider(
        self, config: Config, assets: Assets, migrate: lambda_.Function
    ) -> lambda_.Function:
        """Make the function that CloudFormation invokes: outside of the VPC, never idle in it."""
        provider = new_function(
            self,
            "migration_provider",
            config=config,
            assets=assets,
            timeout=LONGEST,
            invoked="CloudFormation invokes it, and fails when it does not answer in time.",
            retry_attempts=0,
            max_event_age=Duration.seconds(EVENT_AGE),
        )
        # Versions of any number: a policy that named one would be new in every deployment.
        versions = f"{migrate.function_arn}:*"
        for action, resource in (
            ("lambda:InvokeFunction", versions),
            ("cloudformation:DescribeStacks", Stack.of(self).stack_id),
        ):
            provider.add_to_role_policy(iam.PolicyStatement(actions=[action], resources=[resource]))
        accept_serverless(
            provider,
            LambdaAsyncFailureDestination="CloudFormation waits for its answer, and fails without.",
        )
        name = Stack.of(self).get_logical_id(cast(CfnElement, migrate.node.default_child))
        accept_permission(
            provider,
            f"Resource::<{name}.Arn>:*",
            "It runs the version of the migration that the deployment has published.",
        )
        return provider
