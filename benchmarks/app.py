"""The stage's stacks, with more functions in its API that only benchmarks use."""

from pathlib import Path
from typing import Any, cast

from aws_cdk import App

from lambda_pg_cdk.stacks.api import BY_API, ApiStack
from lambda_pg_cdk.stacks.app import build
from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.clients import Clients
from lambda_pg_cdk.stacks.database import APPLICATION_SECRET, DatabaseStack
from lambda_pg_cdk.stacks.functions import add_layer, new_function
from lambda_pg_cdk.stage.budget import Cap
from lambda_pg_cdk.stage.loading import load

HOME = Path(__file__).resolve().parent / "functions"
LOOKUP = ("benchmarks/lookup",)
"""Code that the functions of the storm share."""

THROUGH_POOLER = ("lambda_pg", "connect_through_pooler", "psycopg_pool", "sqlalchemy")


class Additions:
    """Functions that only benchmarks deploy, in the API of the stage."""

    def __init__(self, app: App, clients: Clients) -> None:
        """Find the API in the stacks of `build`."""
        self._config = load(app.node.try_get_context)
        self._assets = Assets(self._config)
        self._clients = clients
        prefix = self._config.stack_prefix
        self._api = cast(ApiStack, app.node.find_child(f"{prefix}-Api"))
        self._database = cast(DatabaseStack, app.node.find_child(f"{prefix}-Database"))

    def attached(self, folder: str, paths: list[str], **options: Any) -> None:
        """Add a function that connects through the pooler, as a user's function does."""
        function = self._new(folder, **options)
        self._clients.attach(function, concurrency=Cap.POOLER_LIMIT)
        self._route(folder, function, paths)

    def direct(self, folder: str, paths: list[str], **options: Any) -> None:
        """Add a function with the layer that connects to the database, outside the budget."""
        function = self._new(folder, **options)
        add_layer(function, self._config)
        self._database.attach(function, APPLICATION_SECRET)
        self._route(folder, function, paths)

    def _new(self, folder: str, **options: Any) -> Any:
        return new_function(
            self._api,
            HOME / folder,
            config=self._config,
            assets=self._assets,
            timeout=self._config.functions.timeout,
            invoked=BY_API,
            **options,
        )

    def _route(self, name: str, function: Any, paths: list[str]) -> None:
        self._api.route(name, function, paths, self._api.authorizer)


if __name__ == "__main__":
    project = App()
    additions = Additions(project, build(project))
    additions.attached("ledger", ["/ledger/transfers", "/ledger/accounts/{id}", "/ledger/notes"])
    for name in THROUGH_POOLER:
        additions.attached(name, [f"/storm/{name}/{{id}}"], extra=LOOKUP)
    additions.direct("cached_direct", ["/storm/cached_direct/{id}"], extra=LOOKUP)
    project.synth()
