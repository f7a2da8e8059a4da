"""Print a stage's connection budget, with every function that the app attaches.

Only the app knows these functions, so this builds it, which takes the CDK some seconds. The stage
alone, without functions: `budget_of(load_stage('dev'))` of lambda_pg_cdk.stage.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lambda_pg_cdk.stage.budget import BudgetError
from lambda_pg_cdk.stage.loading import NoProjectError
from lambda_pg_cdk.stage.schema import ConfigurationError
from lambda_pg_cdk.tools.synth import attached


def main() -> int:
    """Print the sums, or the first one that does not fit; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default="dev")
    stage = parser.parse_args().stage
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(attached(stage, Path(folder)).budget.explain())
    except (BudgetError, ConfigurationError, NoProjectError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
