"""Which tokens the API accepts: those of the stage's issuer, or of a user pool made here."""

from collections.abc import Sequence

from aws_cdk import CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_cognito as cognito
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.nag_exceptions import suppress
from lambda_pg_cdk.stacks.scopes import GroupScopes
from lambda_pg_cdk.stage.config import Config


class Identity(Construct):
    """The authorizer of the API.

    Public: `authorizer`, `authorizer_id`, `has_trigger`, `new_authorizer`, `offer`.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        http_api: api.HttpApi,
    ) -> None:
        super().__init__(scope, id)
        self._config, self._assets = config, assets
        self._pool: cognito.UserPool | None = None
        self._scopes: GroupScopes | None = None
        issuer, audience = config.identity.issuer, list(config.identity.audience)
        if issuer == "cognito":
            self._pool = self._user_pool(config)
            issuer, audience = self._pool.user_pool_provider_url, [self._new_client(self._pool)]
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

    @property
    def has_trigger(self) -> bool:
        """Tell whether sign-ins wait for a function that puts scopes into tokens."""
        return self._scopes is not None

    def offer(self, scopes: Sequence[str]) -> None:
        """Make scopes that the user pool can put into tokens; another issuer brings its own."""
        if not scopes or self._pool is None:
            return
        if self._scopes is None:
            self._scopes = GroupScopes(
                self, "Scopes", pool=self._pool, config=self._config, assets=self._assets
            )
        self._scopes.offer(scopes)

    def _user_pool(self, config: Config) -> cognito.UserPool:
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
        CfnOutput(Stack.of(self), "UserPoolId", value=pool.user_pool_id)
        return pool

    def _new_client(self, pool: cognito.UserPool) -> str:
        """Add the client for people, and return its id."""
        client = pool.add_client(
            "Client",
            auth_flows=cognito.AuthFlow(user_srp=True),
            access_token_validity=Duration.hours(1),
            prevent_user_existence_errors=True,
            disable_o_auth=True,
        )
        CfnOutput(Stack.of(self), "UserPoolClientId", value=client.user_pool_client_id)
        return client.user_pool_client_id


def route_authorizer(scope: Construct, authorizer_id: str) -> api.IHttpRouteAuthorizer:
    """Return the authorizer of that id as routes in the scope's stack take it."""
    return api.HttpAuthorizer.from_http_authorizer_attributes(
        scope, "Authorizer", authorizer_id=authorizer_id, authorizer_type="JWT"
    )


def _removal(config: Config) -> RemovalPolicy:
    return RemovalPolicy.RETAIN if config.termination_protection else RemovalPolicy.DESTROY
