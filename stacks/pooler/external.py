"""A pooler that exists already: of Supabase, Neon or Vercel, or yours."""

from typing import Any

from aws_cdk import Stack
from constructs import Construct

from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.config import Config


class ExternalStack(Stack):
    """Provisions nothing; publishes the secret that has the pooled and the direct URL."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        values = {"pooler/secret-arn": str(config.external.secret_arn)}
        if config.external.profile:
            values["pooler/profile"] = config.external.profile
        if config.external.kms_key_arn:
            values["pooler/key-arn"] = config.external.kms_key_arn
        for name, value in values.items():
            published(config, name).write(self, value)
