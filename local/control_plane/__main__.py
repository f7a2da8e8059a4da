"""Start MiniStack with the project's additions; settings come from environment variables."""

import os
import sys

from local.control_plane import additions, hooks
from local.control_plane.cloud import Cloud


def main() -> None:
    """Check the hooks, add to them, and serve until a signal ends it."""
    if os.environ.get("BIND_HOST") != "127.0.0.1":
        sys.exit("the control plane serves loopback only: set BIND_HOST=127.0.0.1")
    hooks.check()
    additions.install(Cloud(os.environ["LAMBDA_PG_CONTROL_URL"]))
    from ministack.app import main as serve  # noqa: PLC0415  # it reads its settings when imported

    serve()


if __name__ == "__main__":
    main()
