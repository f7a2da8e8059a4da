"""The dependencies of lambda-pg-cdk: those of pyproject.toml, and the same version of the layer."""

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Dependencies(MetadataHookInterface):
    """Hatchling runs this when it writes metadata."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the field that pyproject.toml calls dynamic."""
        layer = f"lambda-pg=={metadata['version']}"
        metadata["dependencies"] = [layer, *self.config["dependencies"]]
