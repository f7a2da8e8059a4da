"""The layers of a stage, published for functions of every stack and every app."""

from typing import Any, cast

from aws_cdk import CfnDeletionPolicy, CfnResource, RemovalPolicy, Stack
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.sources import layer_parameter


class LayerStack(Stack):
    """The newest layer for each Python version; old ones stay: other functions may use them."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        for target in assets.targets:
            first = target == assets.target
            version = lambda_.LayerVersion(
                self,
                "Layer" if first else f"Layer{target.python}",
                code=assets.layer(target),
                compatible_runtimes=[assets.runtime_of(f"python{target.python}")],
                compatible_architectures=[assets.architecture],
                description="lambda_pg: PostgreSQL connections that do not run out",
                removal_policy=RemovalPolicy.RETAIN
                if config.termination_protection
                else RemovalPolicy.DESTROY,
            )
            # A deployment that rolls back needs the previous version, in every stage.
            cast(
                CfnResource, version.node.default_child
            ).cfn_options.update_replace_policy = CfnDeletionPolicy.RETAIN
            value = layer_parameter(config, target)
            published(config, value).write(self, version.layer_version_arn)
