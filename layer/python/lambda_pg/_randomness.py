"""Random numbers that differ between the environments that are restored from one snapshot.

OpenSSL has its generator in the memory of the process. It takes new random bytes from the operating
system when the process id changes or an hour has passed (`providers/implementations/rands/drbg.c`,
OpenSSL 3). A snapshot keeps the id: until the hour is over, all environments that it becomes would
make the same TLS keys. AWS's Python has an OpenSSL that knows of snapshots; psycopg's wheel brings
another one.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_MAPS: Final = Path("/proc/self/maps")


class Randomness:
    """The generators of this process."""

    def __init__(self) -> None:
        """Find each OpenSSL that is loaded now."""
        self._reseed: list[Callable[[], int]] = []
        lines = _MAPS.read_text().splitlines() if _MAPS.exists() else []
        paths = {line.split(maxsplit=5)[-1] for line in lines if "/libcrypto" in line}
        for path in filter(os.path.isfile, sorted(paths)):
            library = ctypes.CDLL(path)
            if hasattr(library, "RAND_poll"):
                self._reseed.append(library.RAND_poll)

    def renew(self) -> None:
        """Give each generator random bytes of the operating system; it takes microseconds."""
        for reseed in self._reseed:
            reseed()
