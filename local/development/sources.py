"""Which deployed function comes from which folder of the project, as the assembly says."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lambda_pg_cdk.layer.build import LAYER
from lambda_pg_cdk.stage.sources import SOURCE

Target = str
"""What a file belongs to: a function, by its tag, or one of the next two."""

THE_LAYER: Target = "layer"
DEPLOYMENT: Target = "deployment"


@dataclass(frozen=True, slots=True)
class Sources:
    """The folders of a project that code is deployed from."""

    functions: Mapping[str, Path]
    """The folder of each function, by the function's tag."""
    layer: tuple[Path, ...]
    """Files and folders of the layer, which only this repository has."""

    @classmethod
    def read(cls, assembly: Path, project: Path) -> "Sources":
        """Read them from an assembly that has been synthesised in a project."""
        functions = {name: (project / folder).resolve() for name, folder in _recorded(assembly)}
        parts = [path for path, _ in LAYER.sources]
        parts += [path for path in (LAYER.requirements, LAYER.patch) if path is not None]
        return cls(functions, tuple(path.resolve() for path in parts))

    def target(self, path: Path) -> Target:
        """Name what a file belongs to."""
        for name, folder in self.functions.items():
            if path.is_relative_to(folder):
                return name
        is_layers = any(path.is_relative_to(part) for part in self.layer)
        return THE_LAYER if is_layers else DEPLOYMENT


def _recorded(assembly: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(assembly.glob("*.metadata.json")):
        try:
            constructs = json.loads(file.read_text())
        except (OSError, ValueError):  # another command synthesises right now
            continue
        for entries in constructs.values():
            for entry in entries:
                if entry["type"] == SOURCE:
                    yield entry["data"]["function"], entry["data"]["folder"]
