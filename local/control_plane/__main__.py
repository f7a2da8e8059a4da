"""Start MiniStack with the project's additions; settings come from environment variables."""

import os
import sys
from functools import partial
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane import additions, hooks
from lambda_pg_cdk.local.control_plane.changes import Changes
from lambda_pg_cdk.local.control_plane.cloud import Cloud
from lambda_pg_cdk.local.control_plane.gate import Gate
from lambda_pg_cdk.local.control_plane.secrets_endpoint import open_endpoint


def main() -> None:
    """Check the hooks, add to them, and serve until a signal ends it."""
    if os.environ.get("BIND_HOST") != "127.0.0.1":
        sys.exit("the control plane serves loopback only: set BIND_HOST=127.0.0.1")
    hooks.check()
    key = os.environ["AWS_SECRET_ACCESS_KEY"]
    additions.install(Cloud(os.environ["LAMBDA_PG_CONTROL_URL"], key), key)
    module: Any = import_module(hooks.APPLICATION)  # it reads its settings when imported
    secrets_port = int(os.environ["LAMBDA_PG_SECRETS_PORT"])
    ports = [int(port) for port in os.environ["LAMBDA_PG_PORTS"].split()]
    changes = Changes(module.app, begin=partial(open_endpoint, secrets_port, key))
    module.app = Gate(changes, ports, key)
    module.main()


if __name__ == "__main__":
    main()
