"""Attach functions to a stage's pooler, and count their connections."""

from collections.abc import Callable, Sequence
from typing import Any

from aws_cdk import Fn, Stack, Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk.stacks.functions import (
    AttachError,
    add_layer,
    add_variables,
    join_network,
    read_secret,
)
from lambda_pg_cdk.stacks.network import let_in
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.budget import Budget, Cap, Client, allowance_of, budget_of
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.environment import environment
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.messages import problem
from lambda_pg_cdk.stage.sources import target_of

__all__ = ["AttachError", "Cap", "Clients"]


class Clients:
    """The clients of one stage's pooler.

    In the stage's own app most values come from the settings and the network's stack. The others,
    and all of them in another app, are read at deployment from what the stage publishes. So any
    stack of any app of the account can attach functions. Another app uses
    `Clients.of_another_app("prod")`.
    """

    def __init__(self, config: Config) -> None:
        """Start without functions. Raise `BudgetError` if the stage alone does not fit."""
        self._config = config
        self._clients: list[Client] = []
        self._add_up: Callable[[Config, Sequence[Client]], Budget] = budget_of
        self._publishers: tuple[Stack, ...] = ()
        self.budget.check()

    @classmethod
    def of_another_app(cls, stage: str) -> "Clients":
        """Attach functions of an app that does not deploy the stage.

        They have to fit into `functions.other_clients`, which the stage keeps for all other apps
        together. Make one of these for each app, and divide the number between the apps.
        """
        clients = cls(load_stage(stage))
        clients._add_up = allowance_of
        return clients

    def wait_for(self, *publishers: Stack) -> None:
        """Deploy these stacks of the same app before each stack that attaches a function."""
        self._publishers = publishers

    @property
    def budget(self) -> Budget:
        """Add up the connections of the stage and of the functions attached so far."""
        return self._add_up(self._config, self._clients)

    def attach(
        self,
        function: lambda_.Function,
        *,
        concurrency: int | Cap | None = None,
        slots: int = 1,
        processes: int = 1,
    ) -> ec2.SecurityGroup | None:
        """Give a function of any stack all that it needs to connect, and count it.

        That is: the layer (a container image contains the package), the environment variables,
        subnets, a new security group, and the secret or `rds-db:connect`. Return the group, for
        rules to other targets; None if the pooler is on the internet.

        The cap is the function's reserved concurrency. If it has none, `concurrency=20` reserves
        20; `concurrency=Cap.POOLER_LIMIT` reserves nothing, and requests over the pooler's client
        limit are answered 503. `slots` (LAMBDA_PG_SLOTS) and `processes` (of each environment)
        multiply connections; this method sets the variable, so set it nowhere else. An imported
        role must accept policies. Raise `AttachError`, and `BudgetError` if the sum does not fit.
        """
        resource = function.node.default_child
        if not isinstance(resource, lambda_.CfnFunction):
            raise AttachError(
                f"{function.node.path} is {type(function).__name__}: attach the function itself;"
                " that includes its versions and aliases"
            )
        self._check(function, resource)
        for name, number in (("slots", slots), ("processes", processes)):
            _check_count(function, name, number, least=1)
        cap = _cap(function, resource, concurrency)
        client = Client(function.node.path, cap, slots, processes)
        self._add_up(self._config, [*self._clients, client]).check()
        self._clients.append(client)
        if not isinstance(cap, Cap):
            resource.reserved_concurrent_executions = cap
        self._follow(function)
        if resource.package_type != "Image":
            add_layer(function, self._config)
        self._allow(function)
        add_variables(function, self._environment(function, slots))
        return self._connect(function) if self._config.in_network else None

    def version_inputs(self, function: lambda_.Function) -> str:
        """Describe the values that a version of the function gets from other stacks.

        CDK publishes a new version when the template of its function changes. Published values do
        not change the template; as the version's description, they do.
        """
        layer = Fn.split(":", self._read(function, "layer/arn"))
        words = [Fn.select(6, layer), Fn.select(7, layer)]
        if not self._config.by_token:
            words.append(Fn.select(6, Fn.split(":", self._read(function, "pooler/secret-arn"))))
        if self._config.pooler != "external":
            host = Fn.split(".", self._read(function, "pooler/host"))
            words += [Fn.select(0, host), self._read(function, "pooler/port")]
        if self._config.pooler == "pgbouncer":
            first = Fn.select(0, Fn.split("\n", self._read(function, "pooler/ca")))
            words.append(Fn.select(3, Fn.split(" ", first)))
        if self._config.in_network:
            subnets = published(self._config, "network/subnets").read_list(Stack.of(function))
            words.append(Fn.join(",", subnets))
        return Fn.join(" ", words)

    def _check(self, function: lambda_.Function, resource: lambda_.CfnFunction) -> None:
        path, checkout = function.node.path, self._config.functions.checkout_timeout
        if path in {client.name for client in self._clients}:
            raise AttachError(f"{path} is already attached: attach it once")
        timeout = resource.timeout or 3
        if not Token.is_unresolved(timeout) and timeout <= checkout:
            must = f"be more than functions.checkout_timeout ({checkout} seconds)"
            raise AttachError(problem(f"the timeout of {path}", timeout, must))
        if resource.package_type == "Image":
            return
        target = target_of(self._config)
        built = (f"python{target.python}", target.architecture)
        found = (function.runtime.name, function.architecture.name)
        if found != built:
            raise AttachError(
                f"{path} runs {found[0]} on {found[1]}, but the layer of stage"
                f" {self._config.stage!r} is built for {built[0]} on {built[1]}: change the"
                " function, or change `python` and `architecture` of the stage in cdk.json"
            )

    def _follow(self, function: lambda_.Function) -> None:
        stack = Stack.of(function)
        for publisher in self._publishers:
            if publisher is not stack:
                stack.add_stack_dependency(publisher, reason="reads what it publishes")

    def _read(self, function: lambda_.Function, value: str) -> str:
        return published(self._config, value).read(Stack.of(function))

    def _allow(self, function: lambda_.Function) -> None:
        """Let the function log in: read one secret, or get tokens for one user."""
        if self._config.by_token:
            user = self._read(function, "pooler/connect-arn")
            function.add_to_role_policy(
                iam.PolicyStatement(actions=["rds-db:connect"], resources=[user])
            )
            return
        external = self._config.external if self._config.pooler == "external" else None
        arn = self._read(function, "pooler/secret-arn")
        read_secret(function, arn, external.kms_key_arn if external else None)

    def _environment(self, function: lambda_.Function, slots: int) -> dict[str, str]:
        """Write the variables; a published value is read only where the function needs it."""
        config, external = self._config, self._config.external
        common: dict[str, Any] = {
            "application": function.node.id,
            "checkout_timeout": config.functions.checkout_timeout,
            # Always written: the budget has counted them.
            "slots": slots,
            "strict": True,
        }
        if config.pooler == "external":
            return environment(
                **common,
                secret_arn=self._read(function, "pooler/secret-arn"),
                profile=external.profile,
                ca_file=external.ca_file,
            )
        if config.by_token:
            common["token_user"] = self._read(function, "pooler/user")
        else:
            common["secret_arn"] = self._read(function, "pooler/secret-arn")
        if config.pooler == "pgbouncer":
            common["ca_pem"] = self._read(function, "pooler/ca")
        return environment(
            **common,
            host=self._read(function, "pooler/host"),
            port=self._read(function, "pooler/port"),
            database=config.database.name,
            profile=config.pooler,
        )

    def _connect(self, function: lambda_.Function) -> ec2.SecurityGroup:
        group = join_network(function, self._config)
        if self._config.pooler == "external":
            # The host is in the secret's URL, which synth does not read.
            port = self._config.external.port or 0  # never 0 in a VPC: `stage/consistency.py`
            group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(port), "to the pooler")
            return group
        port = self._config.pooler_port
        let_in(group, self._read(function, "pooler/security-group"), port, "the pooler")
        return group


def _cap(
    function: lambda_.Function, resource: lambda_.CfnFunction, concurrency: int | Cap | None
) -> int | Cap:
    """Return the function's cap: the concurrency that it reserves or will reserve."""
    reserved = resource.reserved_concurrent_executions
    if concurrency is None and reserved is None:
        raise AttachError(
            f"{function.node.path} has no cap, so it could open any number of connections. Set its"
            " reserved_concurrent_executions, or attach it with concurrency=20 (reserves 20) or"
            " concurrency=Cap.POOLER_LIMIT (no reservation, up to the pooler's client limit)"
        )
    if reserved is not None:
        _check_count(function, "reserved_concurrent_executions", reserved, least=0)
    if concurrency is None or (isinstance(concurrency, Cap) and reserved is not None):
        return round(reserved or 0)
    if isinstance(concurrency, Cap):
        return concurrency
    _check_count(function, "concurrency", concurrency, least=0)
    if reserved is not None and concurrency != reserved:
        raise AttachError(
            f"{function.node.path} reserves {reserved:g}, but was attached with"
            f" concurrency={concurrency}: give one of them"
        )
    return concurrency


def _check_count(function: lambda_.Function, name: str, number: float, least: int) -> None:
    """Refuse a number that the budget cannot use: a token too, whose value synth does not know."""
    if Token.is_unresolved(number) or number != int(number) or number < least:
        value = "a token" if Token.is_unresolved(number) else f"{number:g}"
        raise AttachError(
            f"{name} of {function.node.path} is {value}; must be a whole number of at least"
            f" {least}: the budget needs it at synth"
        )
