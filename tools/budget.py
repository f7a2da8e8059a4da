"""Print a stage's connection budget, with every function that the app attaches.

Only the app knows these functions, so this runs app.py, which takes the CDK some seconds. The stage
alone, without functions: `budget_of(load_stage('dev'))` of lambda_pg_cdk.stage.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.stage.loading import NoProjectError
from lambda_pg_cdk.stage.schema import ConfigurationError
from lambda_pg_cdk.tools.context import context_of


def explained(stage: str, app: Path) -> str:
    """Run an app for a stage, as the command line of the CDK does; return the sums.

    Raise `AppError` if the app has errors, and `LookupError` if it has no stage.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CDK_CONTEXT_JSON"] = json.dumps(context_of(stage))
        os.environ["CDK_OUTDIR"] = folder
        found = runpy.run_path(str(app), run_name="__main__")
    # Imported after that: the CDK reads the environment when it starts.
    from lambda_pg_cdk import Stage  # noqa: PLC0415 - see above

    for value in found.values():
        if isinstance(value, Stage):
            return value.budget.explain()
    raise LookupError(f"{app} has no variable that is a lambda_pg_cdk.Stage")


def main() -> int:
    """Print the sums; return the exit code. Errors of the app end the program with their list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default="dev")
    try:
        print(explained(parser.parse_args().stage, PROJECT / "app.py"))
    except (ConfigurationError, LookupError, NoProjectError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
