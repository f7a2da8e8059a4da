"""Remove a stage from an AWS account: `make destroy STAGE=dev`.

It says first what the stage's protections mean, and asks for the stage's name.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.schema import ConfigurationError

CDK = PROJECT / "node_modules" / ".bin" / "cdk"
LOCAL = "local"


def consequences(config: Config) -> Iterator[str]:
    """Yield what is removed, what stays, and what refuses to be removed."""
    owns_database = config.database.kind not in {"existing", "none"}
    yield f"`cdk destroy --all` removes the stacks {config.stack_prefix}-* in {config.region}."
    if not owns_database:
        yield "The database is not the stage's own: it stays."
    elif config.termination_protection:
        yield "The database leaves a final snapshot, which stays and is billed."
    else:
        yield (
            "The database is removed with all its data, without a final snapshot, because"
            " termination_protection is false. Make a snapshot first if you need the data."
        )
    if config.termination_protection:
        names = [f"{config.stack_prefix}-Network", f"{config.stack_prefix}-Database"]
        yield (
            "termination_protection is true: CloudFormation refuses to delete"
            f" {' and '.join(names)} until you switch it off, for each of them: aws cloudformation"
            f" update-termination-protection --region {config.region}"
            " --no-enable-termination-protection --stack-name NAME"
        )
    if owns_database and config.database.deletion_protection:
        yield (
            "database.deletion_protection is true: RDS refuses to delete the database. Set it to"
            f" false in cdk.json and deploy it: make deploy STAGE={config.stage}"
        )
    if config.termination_protection or (owns_database and config.database.deletion_protection):
        yield (
            "What is still protected makes `cdk destroy` stop half-way: the API and the pooler are"
            " removed before."
        )
    yield "Log groups that AWS has made stay, and are billed: docs/costs.md."


def destroy(config: Config, ask: Callable[[str], str], run: Callable[[Sequence[str]], int]) -> int:
    """Say what happens, ask for the stage's name, and remove the stage; return the exit code."""
    for line in consequences(config):
        print(f"- {line}")
    if ask(f"Type {config.stage} to remove it, anything else to keep it: ") != config.stage:
        print("nothing was removed")
        return 1
    context = ["--context", f"stage={config.stage}"]
    code = run([str(CDK), "destroy", "--all", "--force", *context])
    if code == 0:
        print(f"removed: stage {config.stage}")
    else:
        print(f"cdk destroy failed (exit code {code}): see above; part of the stage may be left")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lambda_pg_cdk.tools.destroy")
    parser.add_argument("--stage", required=True, help="a stage of cdk.json on AWS, such as dev")
    stage = parser.parse_args(arguments).stage
    if not stage:
        print("name the stage that is to be removed: make destroy STAGE=dev", file=sys.stderr)
        return 1
    if stage == LOCAL:
        print("the local cloud is no stage on AWS: `make down` removes it", file=sys.stderr)
        return 1
    try:
        config = load_stage(stage)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    return destroy(config, _ask, lambda command: subprocess.call(command, cwd=PROJECT))


def _ask(question: str) -> str:
    try:
        return input(question)
    except (EOFError, KeyboardInterrupt):  # nobody to ask, or Ctrl-C
        print()
        return ""


if __name__ == "__main__":
    sys.exit(main())
