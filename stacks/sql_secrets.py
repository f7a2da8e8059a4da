"""The secrets of `/sql`'s roles beside the database, and their rotation."""

from typing import cast

from aws_cdk import CfnResource, Duration, RemovalPolicy, Stack
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as events_targets
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from lambda_pg_cdk.stacks.nag_exceptions import suppress_serverless
from lambda_pg_cdk.stacks.sql_logins import user_of
from lambda_pg_cdk.stage.config import Config


def login_secret(scope: Construct, name: str, user: str, description: str) -> secretsmanager.Secret:
    """Make the secret of a login, whose password never needs quoting."""
    return secretsmanager.Secret(
        scope,
        name,
        description=description,
        generate_secret_string=secretsmanager.SecretStringGenerator(
            secret_string_template=Stack.of(scope).to_json_string({"username": user}),
            generate_string_key="password",
            password_length=40,
            exclude_characters=NO_QUOTING,
        ),
        removal_policy=RemovalPolicy.DESTROY,
    )


NO_QUOTING = " %+~`#$&*()|[]{}:;<>?!'/@\"\\,=^-"
"""Characters that passwords do not contain, so that they never need quoting."""


def add_secrets(
    scope: Construct, config: Config, rotate: lambda_.Function
) -> dict[str, secretsmanager.Secret]:
    """Make the secret of each role, rotated by the function that rotates the application's."""
    secrets = {
        role: login_secret(
            scope, f"Sql{role.title()}", user_of(role), f"Name and password of /sql's {role}"
        )
        for role in config.sql.roles
    }
    for secret in secrets.values():
        _rotate(secret, config, rotate)
    rotate.add_environment(
        "SQL_ROLES",
        Stack.of(scope).to_json_string(
            {role: secret.secret_arn for role, secret in secrets.items()}
        ),
    )
    return secrets


def _rotate(secret: secretsmanager.Secret, config: Config, rotate: lambda_.Function) -> None:
    schedule = secret.add_rotation_schedule(
        "Rotation",
        rotation_lambda=rotate,
        automatically_after=Duration.days(config.database.rotation_days),
        # The first migration creates the users, after this.
        rotate_immediately_on_update=False,
    )
    # CDK adds one permission for all secrets, which is the application's here.
    permission = lambda_.CfnPermission(
        secret,
        "MayRotate",
        action="lambda:InvokeFunction",
        function_name=rotate.function_arn,
        principal="secretsmanager.amazonaws.com",
        source_account=Stack.of(secret).account,
        source_arn=secret.secret_arn,
    )
    cast(CfnResource, schedule.node.default_child).add_resource_dependency(permission)


def report_rotations(
    scope: Construct,
    rotate: lambda_.Function,
    secrets: dict[str, secretsmanager.Secret],
    *,
    step: str,
    every: Duration,
) -> None:
    """Have the function report regularly whether each secret is rotated."""
    rule = events.Rule(
        scope,
        "SqlRotationReport",
        description="Report whether the secrets of /sql's roles are rotated",
        schedule=events.Schedule.rate(every),
        targets=[
            events_targets.LambdaFunction(
                rotate,
                event=events.RuleTargetInput.from_object(
                    {"Step": step, "SecretId": secret.secret_arn}
                ),
                retry_attempts=2,
            )
            for secret in secrets.values()
        ],
    )
    suppress_serverless(rule, EventBusDLQ="An event that is lost comes again in an hour.")
