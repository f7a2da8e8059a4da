"""`python -m lambda_pg_cdk.local`: the local cloud's command line."""

import sys

from lambda_pg_cdk.local.cli import main

if __name__ == "__main__":
    sys.exit(main())
