"""Which regions have databases whose certificates the layer can verify."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from layer.roots import known_regions

if TYPE_CHECKING:
    from stacks.config import Config


def missing_roots(config: "Config") -> Iterator[str]:
    """Yield a problem where RDS signs by roots that nobody here has: no login would succeed."""
    database, region = config.database, config.region
    if database.kind == "none" or database.ca_file is not None or region in known_regions():
        return
    yield (
        f"region = {region!r}: the layer has no roots of RDS there, so that every login at the"
        f" database would fail. Add them, `.venv/bin/python -m layer.roots {region}`, or name a"
        " file of your own in database.ca_file"
    )
