"""The CDK app, its tools and its local cloud, as one importable package.

Each room lies at the top of the repository; here are links to them, so that an import reads the
same in the repository and in an installed package, which has the folders themselves here.
docs/decisions/0041
"""

from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent
"""Folder of the rooms: code and the files that it deploys."""

PROJECT: Final = PACKAGE.parent
"""Folder with cdk.json, node_modules, and `build` for what is generated."""
