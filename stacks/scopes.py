"""Scopes in the tokens of a user pool: a user has those that are names of the user's groups."""

from collections.abc import Sequence
from typing import cast

from aws_cdk import Stack
from aws_cdk import aws_cognito as cognito
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.functions import new_function
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.sources import OPERATIONS

TRIGGER_SECONDS = 5
"""Cognito waits no longer for a trigger.
https://docs.aws.amazon.com/cognito/latest/developerguide/cognito-user-pools-working-with-lambda-triggers.html"""

BY_SIGN_IN = "Cognito invokes it and waits for its answer: there is no event that could be lost."


class GroupScopes(Construct):
    """The groups, and the trigger that puts them into access tokens. Public: `offer`.

    Tokens of Cognito's InitiateAuth have no other scopes than Cognito's own. Event version 2 of the
    trigger needs the plan Essentials.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        pool: cognito.UserPool,
        config: Config,
        assets: Assets,
    ) -> None:
        super().__init__(scope, id)
        self._pool = pool
        self._scopes: set[str] = set()
        self._trigger = new_function(
            self,
            OPERATIONS / "scopes",
            config=config,
            assets=assets,
            timeout=TRIGGER_SECONDS,
            invoked=BY_SIGN_IN,
        )
        pool.add_trigger(
            cognito.UserPoolOperation.PRE_TOKEN_GENERATION_CONFIG,
            self._trigger,
            cognito.LambdaVersion.V2_0,
        )
        published(config, "identity/scopes-function").write(
            Stack.of(self), self._trigger.function_name
        )
        cast(cognito.CfnUserPool, pool.node.default_child).user_pool_tier = "ESSENTIALS"

    def offer(self, scopes: Sequence[str]) -> None:
        """Make a group for each scope that has none."""
        for scope in sorted(set(scopes) - self._scopes):
            cognito.CfnUserPoolGroup(
                self,
                scope,
                user_pool_id=self._pool.user_pool_id,
                group_name=scope,
                description=f"Users whose access tokens have the scope {scope}",
            )
        self._scopes.update(scopes)
        self._trigger.add_environment("SCOPES", " ".join(sorted(self._scopes)))
