"""Make the stacks of an app, and refuse the functions that a local cloud cannot run.

    python -m lambda_pg_cdk.local.deployment.synthesise app

The argument is a module in the current folder.
"""

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

ATTACHED = "LAMBDA_PG_STRICT"
"""A variable that every function has which connects to the stage's pooler."""


class UnknownRuntimeError(RuntimeError):
    """Functions of the app have a runtime that a local cloud does not run."""


def main(module: str) -> int:
    """Run the module, which writes the stacks to CDK_OUTDIR; return the exit code."""
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    try:
        refuse_other_runtimes(Path(os.environ["CDK_OUTDIR"]))
    except UnknownRuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def refuse_other_runtimes(assembly: Path) -> None:
    """Raise `UnknownRuntimeError` if a function that connects has another runtime than Python.

    Functions of the CDK itself may have one: they do not connect.
    """
    found = [f"{name} ({runtime})" for name, runtime in _other_runtimes(assembly)]
    if found:
        raise UnknownRuntimeError(
            f"the local cloud runs Python only, and these functions have another runtime:"
            f" {', '.join(sorted(found))}. Add them only if stage.config.stage is not 'local'"
        )


def _other_runtimes(assembly: Path) -> Iterator[tuple[str, str]]:
    """Yield the logical id and the runtime of each function that connects without Python."""
    artifacts = json.loads((assembly / "manifest.json").read_text())["artifacts"].values()
    for artifact in artifacts:
        if artifact["type"] != "aws:cloudformation:stack":
            continue
        template = json.loads((assembly / artifact["properties"]["templateFile"]).read_text())
        for name, resource in template.get("Resources", {}).items():
            properties = resource.get("Properties", {})
            variables = properties.get("Environment", {}).get("Variables", {})
            runtime = properties.get("Runtime", "a container image")
            if ATTACHED in variables and not runtime.startswith("python"):
                yield name, runtime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
