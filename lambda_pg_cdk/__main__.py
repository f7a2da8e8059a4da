"""`python -m lambda_pg_cdk new my-api`: begin a project."""

import sys

from lambda_pg_cdk.tools.new import main

if __name__ == "__main__":
    sys.exit(main())
