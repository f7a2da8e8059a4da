"""How a function's new version gets traffic: behind an alias, at once or gradually."""

from typing import cast

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_codedeploy as codedeploy
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk.stacks.nag_exceptions import aws_policy, suppress_permission
from lambda_pg_cdk.stage.config import Config

ALIAS = "live"

ERRORS = 3
"""Failed invocations in a minute after which traffic goes back to the previous version."""

_DEPLOYMENTS = {
    "Canary10Percent5Minutes": codedeploy.LambdaDeploymentConfig.CANARY_10_PERCENT_5_MINUTES,
    "Canary10Percent15Minutes": codedeploy.LambdaDeploymentConfig.CANARY_10_PERCENT_15_MINUTES,
    "Linear10PercentEvery1Minute": (
        codedeploy.LambdaDeploymentConfig.LINEAR_10_PERCENT_EVERY_1_MINUTE
    ),
    "Linear10PercentEvery3Minutes": (
        codedeploy.LambdaDeploymentConfig.LINEAR_10_PERCENT_EVERY_3_MINUTES
    ),
}


def release(function: lambda_.Function, config: Config, inputs: str) -> lambda_.Alias:
    """Publish the function's version and move the alias to it, as the stage's settings say.

    `inputs` is what the version depends on besides the function's template; a changed text makes
    CloudFormation publish a new version.
    """
    describe(function, inputs)
    alias = lambda_.Alias(function, "Live", alias_name=ALIAS, version=function.current_version)
    if config.functions.deployment != "AllAtOnce":
        group = codedeploy.LambdaDeploymentGroup(
            function,
            "Deployment",
            alias=alias,
            deployment_config=_DEPLOYMENTS[config.functions.deployment],
            alarms=[_alarm(function, alias)],
        )
        suppress_permission(
            group,
            aws_policy("AWSCodeDeployRoleForLambdaLimited"),
            "AWS's own policy for moving an alias; CodeDeploy's role is for nothing else.",
        )
    return alias


def describe(function: lambda_.Function, inputs: str) -> None:
    """Make the function's version depend on inputs, a text of at most 256 characters.

    Each input must be in the function's configuration too. CloudFormation replaces the version if
    the description changes, but Lambda publishes none if neither code nor configuration has
    changed (AWS, PublishVersion), and the deployment fails.
    """
    version = cast(lambda_.CfnVersion, function.current_version.node.default_child)
    version.description = inputs


def _alarm(function: lambda_.Function, alias: lambda_.Alias) -> cloudwatch.Alarm:
    return cloudwatch.Alarm(
        function,
        "DeploymentErrors",
        metric=alias.metric_errors(period=Duration.minutes(1), statistic="Sum"),
        threshold=ERRORS,
        evaluation_periods=1,
        comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
        treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        alarm_description="A deployment goes back: the new version fails."
        " docs/operations.md#a-deployment-went-back",
    )
