"""The stage's stacks, with more functions in its API that only benchmarks use."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from aws_cdk import App

from lambda_pg_cdk import Cap, Stage
from lambda_pg_cdk.stacks.api import ApiStack

HOME = Path(__file__).resolve().parent / "functions"
LOOKUP = ("benchmarks/lookup",)
"""Code that the functions of the storm share."""

THROUGH_POOLER = ("lambda_pg", "connect_through_pooler", "psycopg_pool", "sqlalchemy")


class Additions:
    """Functions that only benchmarks deploy, in the API of the stage."""

    def __init__(self, app: App) -> None:
        """Add the stage's stacks to the app."""
        self.stage = Stage(app)
        stacks = app.node.find_child(f"{self.stage.config.stack_prefix}-Api")
        self._stack = cast(ApiStack, stacks)

    def attached(self, name: str, paths: list[str], shared: Sequence[str] = ()) -> None:
        """Add a function that connects through the pooler, as a user's function does."""
        function = self.stage.new_function(
            name, HOME / name, concurrency=Cap.POOLER_LIMIT, shared=shared
        )
        for path in paths:
            self.stage.route(f"ANY {path}", function)

    def direct(self, name: str, paths: list[str], shared: Sequence[str] = ()) -> None:
        """Add a function with the layer that connects to the database, outside the budget."""
        function = self._stack.add_control(HOME / name, shared)
        for path in paths:
            self.stage.route(f"ANY {path}", function)


if __name__ == "__main__":
    additions = Additions(App())
    additions.attached("ledger", ["/ledger/transfers", "/ledger/accounts/{id}", "/ledger/notes"])
    for pooled in THROUGH_POOLER:
        additions.attached(pooled, [f"/storm/{pooled}/{{id}}"], shared=LOOKUP)
    additions.direct("cached_direct", ["/storm/cached_direct/{id}"], shared=LOOKUP)
    additions.stage.synth()
