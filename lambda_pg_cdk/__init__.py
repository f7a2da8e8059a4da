"""The CDK app, its tools and its local cloud, as one importable package.

Each room lies at the top of the repository; here are links to them, so that an import reads the
same in the repository and in an installed package, which has the folders themselves here.
docs/decisions/0041
"""

from pathlib import Path
from typing import Final

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
