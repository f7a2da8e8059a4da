"""The CDK app, its tools and its local cloud, as one importable package.

An app of yours has `Stage`, or `DeployedStage` if another app deploys the stage.

Each room lies at the top of the repository; here are links to them, so that an import reads the
same in the repository and in an installed package, which has the folders themselves here.
docs/decisions/0041
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lambda_pg_cdk.stacks.app import DeployedStage, Stage
    from lambda_pg_cdk.stacks.problems import AppError
    from lambda_pg_cdk.stage.budget import Cap

__all__ = ["AppError", "Cap", "DeployedStage", "Stage"]

PACKAGE: Final = Path(__file__).resolve().parent
"""Folder of the rooms: code and the files that it deploys."""

IN_CHECKOUT: Final = (PACKAGE.parent / "cdk.json").is_file()
"""Whether the package lies in a checkout of its repository, not in a virtual environment."""

PROJECT: Final = PACKAGE.parent if IN_CHECKOUT else Path.cwd()
"""Folder with cdk.json, node_modules, and `build` for what is generated: the checkout that the
package lies in, or else the current folder."""

_LAYER: Final = PACKAGE / "layer" / "python" / "lambda_pg" / "__init__.py"
__version__: Final = _LAYER.read_text().partition('__version__ = "')[2].partition('"')[0]
"""The layer's version too, which is written there, and nowhere else."""

_HOMES: Final = {
    "AppError": "stacks.problems",
    "Cap": "stage.budget",
    "DeployedStage": "stacks.app",
    "Stage": "stacks.app",
}


def __getattr__(name: str) -> Any:
    """Import what an app uses when it is first asked for: the CDK takes seconds to start."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
