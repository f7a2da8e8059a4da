"""What SnapStart needs: a snapshot holds no connection and no secret.

Everything else that must differ between restored environments is made without state that a
snapshot could copy: jitter comes from the operating system, connections are opened by the first
checkout, and OpenSSL gets new random bytes before that.
"""

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    """An object that can return to its first state."""

    def forget(self) -> None:
        """Close what is open and drop the credentials."""


def register_snapshot_hooks(database: Forgetful) -> None:
    """Make `database` forget before a snapshot is taken and again after one was restored.

    The second time is for what a handler module did between the hook and the snapshot.
    """
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start":
        return
    try:
        import snapshot_restore_py  # noqa: PLC0415 - part of Lambda's runtimes since Python 3.12
    except ImportError:
        return
    # ctypes, which it imports, is for snapshots only.
    from lambda_pg._randomness import Randomness  # noqa: PLC0415 - only under SnapStart

    reference = weakref.ref(database)
    randomness = Randomness()

    def forget() -> None:
        known = reference()
        if known is not None:
            known.forget()

    snapshot_restore_py.register_before_snapshot(forget)
    snapshot_restore_py.register_after_restore(forget)
    snapshot_restore_py.register_after_restore(randomness.renew)
