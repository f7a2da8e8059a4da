"""The pooler's certificate, issued at deployment and renewed every week by a function."""

from typing import cast

from aws_cdk import CfnElement, CustomResource, Duration, Stack
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as events_targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk import custom_resources as cr
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.functions import add_variables, log_group, may_read, new_function
from lambda_pg_cdk.stacks.nag_exceptions import (
    aws_policy,
    suppress,
    suppress_permission,
    suppress_serverless,
)
from lambda_pg_cdk.stacks.published import Published, published
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.sources import OPERATIONS

SERVICE_TIMEOUT = 1200
"""Seconds after which CloudFormation treats a silent provider as failed (default: an hour). CDK's
provider may run for 15 minutes; a later run finds the certificate and changes nothing."""


class Certificate(Construct):
    """A private CA and a certificate for `names`. Public: `secret`, `function`, `let_read`."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        names: list[str],
    ) -> None:
        super().__init__(scope, id)
        authority = secretsmanager.Secret(
            self, "Authority", description="The pooler's CA: key and certificate, and its successor"
        )
        self.secret = secretsmanager.Secret(
            self, "Leaf", description="The pooler's certificate: key, chain and CA"
        )
        public = published(config, "pooler/ca")
        self.function = new_function(
            self,
            OPERATIONS / "certificate",
            config=config,
            assets=assets,
            timeout=60,
            invoked="It runs again in a week, long before the certificate ends, and its failure"
            " raises an alarm.",
        )
        variables = {
            "AUTHORITY_SECRET_ARN": authority.secret_arn,
            "CERTIFICATE_SECRET_ARN": self.secret.secret_arn,
            "CERTIFICATE_NAMES": ",".join(names),
            "CA_PARAMETER": public.name,
        }
        add_variables(self.function, variables)
        for secret in (authority, self.secret):
            arn = secret.secret_arn
            self.function.add_to_role_policy(may_read(arn))
            self.function.add_to_role_policy(
                iam.PolicyStatement(actions=["secretsmanager:PutSecretValue"], resources=[arn])
            )
            suppress(
                secret,
                SMG4="The certificate function renews the content of this secret every week.",
            )
        _close(authority, self.function)
        issued = self._issue(config, names)
        public.write(self, issued.get_att_string("CaCertificate"))
        self._allow_publishing(public)
        self._renew_weekly()

    def let_read(self, role: iam.IRole) -> None:
        """Let only the pooler's role and the function read the pooler's key and chain."""
        role.add_to_principal_policy(may_read(self.secret.secret_arn))
        _close(self.secret, self.function, role)

    def _issue(self, config: Config, names: list[str]) -> CustomResource:
        provider = cr.Provider(
            self,
            "Provider",
            on_event_handler=self.function,
            log_group=log_group(self, "ProviderLogs", config),
        )
        self._suppress_findings(provider)
        return CustomResource(
            self,
            "Issued",
            service_token=provider.service_token,
            service_timeout=Duration.seconds(SERVICE_TIMEOUT),
            resource_type="Custom::PoolerCertificate",
            properties={"Names": names},
        )

    def _suppress_findings(self, provider: cr.Provider) -> None:
        suppress_permission(
            provider,
            aws_policy("AWSLambdaBasicExecutionRole"),
            "The role is the CDK's own provider's; the policy lets it write logs.",
        )
        suppress_serverless(
            provider,
            LambdaDLQ="CloudFormation invokes the CDK's own provider and waits for its answer.",
            LambdaDefaultMemorySize="The CDK's own provider only passes an event on.",
            LambdaTracing="The CDK's own provider only passes an event on.",
        )
        function = Stack.of(self).get_logical_id(cast(CfnElement, self.function.node.default_child))
        suppress_permission(
            provider,
            f"Resource::<{function}.Arn>:*",
            "The CDK's own provider may call every version of this function.",
        )

    def _allow_publishing(self, public: Published) -> None:
        """Let the function publish a renewed CA; the next deployment gives it to the functions."""
        arn = Stack.of(self).format_arn(
            service="ssm", resource="parameter", resource_name=public.name.lstrip("/")
        )
        self.function.add_to_role_policy(
            iam.PolicyStatement(actions=["ssm:GetParameter", "ssm:PutParameter"], resources=[arn])
        )

    def _renew_weekly(self) -> None:
        rule = events.Rule(
            self,
            "Weekly",
            description="Renew the pooler's certificate when a third of its time is left",
            schedule=events.Schedule.rate(Duration.days(7)),
            targets=[events_targets.LambdaFunction(self.function, retry_attempts=2)],
        )
        suppress_serverless(
            rule, EventBusDLQ="If an event is lost, the next one comes after a week."
        )


def _close(secret: secretsmanager.Secret, *readers: iam.IGrantable) -> None:
    """Let only the roles of `readers` read a secret, even if other policies allow more.

    Only reading is denied: administrators and CloudFormation can change and delete the secret and
    its policy. The denial includes the account's root and callers without a principal's ARN.
    """
    roles = [cast(iam.IRole, reader.grant_principal).role_arn for reader in readers]
    secret.add_to_resource_policy(
        iam.PolicyStatement(
            effect=iam.Effect.DENY,
            principals=[iam.AnyPrincipal()],
            actions=["secretsmanager:GetSecretValue"],
            resources=["*"],
            conditions={"ArnNotEquals": {"aws:PrincipalArn": roles}},
        )
    )
