"""Which tokens the API accepts: those of the stage's issuer, or of a user pool made here."""

from aws_cdk import CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_cognito as cognito
from constructs import Construct

from lambda_pg_cdk.stacks.nag_exceptions import suppress
from lambda_pg_cdk.stage.config import Config


class Identity(Construct):
    """The authorizer of the API. Public: `authorizer`, `authorizer_id`, `new_authorizer`."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        http_api: api.HttpApi,
    ) -> None:
        super().__init__(scope, id)
        issuer, audience = config.identity.issuer, list(config.identity.audience)
        if issuer == "cognito":
            issuer, audience = self._user_pool(config)
        self._issuer, self._audience = issuer, audience
        token = self.new_authorizer(http_api, http_api)
        self.authorizer_id = token.authorizer_id
        self.authorizer = route_authorizer(self, self.authorizer_id)

    def new_authorizer(self, scope: Construct, http_api: api.HttpApi) -> api.HttpAuthorizer:
        """Add an authorizer for the same tokens to an API."""
        return api.HttpAuthorizer(
            scope,
            "Token",
            http_api=http_api,
            type=api.HttpAuthorizerType.JWT,
            jwt_issuer=self._issuer,
            jwt_audience=self._audience,
            identity_source=["$request.header.Authorization"],
        )

    def _user_pool(self, config: Config) -> tuple[str, list[str]]:
        pool = cognito.UserPool(
            self,
            "Users",
            self_sign_up_enabled=False,
            sign_in_aliases=cognito.SignInAliases(email=True),
            mfa=cognito.Mfa.OPTIONAL,
            mfa_second_factor=cognito.MfaSecondFactor(otp=True, sms=False),
            password_policy=cognito.PasswordPolicy(
                min_length=12,
                require_digits=True,
                require_lowercase=True,
                require_uppercase=True,
                require_symbols=True,
            ),
            account_recovery=cognito.AccountRecovery.EMAIL_ONLY,
            deletion_protection=config.termination_protection,
            removal_policy=_removal(config),
        )
        suppress(
            pool,
            COG2="A second factor is offered; asking for it is for those who own the users.",
            COG8="The plus plan is paid for each user; whoever needs it turns it on.",
        )
        client = pool.add_client(
            "Client",
            auth_flows=cognito.AuthFlow(user_srp=True),
            access_token_validity=Duration.hours(1),
            prevent_user_existence_errors=True,
            disable_o_auth=True,
        )
        CfnOutput(Stack.of(self), "UserPoolId", value=pool.user_pool_id)
        CfnOutput(Stack.of(self), "UserPoolClientId", value=client.user_pool_client_id)
        return pool.user_pool_provider_url, [client.user_pool_client_id]


def route_authorizer(scope: Construct, authorizer_id: str) -> api.IHttpRouteAuthorizer:
    """Return the authorizer of that id as routes in the scope's stack take it."""
    return api.HttpAuthorizer.from_http_authorizer_attributes(
        scope, "Authorizer", authorizer_id=authorizer_id, authorizer_type="JWT"
    )


def _removal(config: Config) -> RemovalPolicy:
    return RemovalPolicy.RETAIN if config.termination_protection else RemovalPolicy.DESTROY
