"""The context of an app that is synthesised without the command line of the CDK."""

import json
from collections.abc import Mapping
from typing import Any

from lambda_pg_cdk.stage.consistency import alarm_problem
from lambda_pg_cdk.stage.loading import CDK_JSON, load_stage, read_context

NO_ADDRESS = "nobody@example.com"
"""Address for the alarms of a protected stage that is only synthesised."""


def context_of(stage: str, override: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return cdk.json's context with the stage and the override, as `-c` does."""
    changed = dict(override or {})
    # A deployment needs a real address; nothing is deployed from here.
    if alarm_problem(load_stage(stage, override)):
        changed["observability"] = {**changed.get("observability", {}), "email": NO_ADDRESS}
    context = read_context(CDK_JSON)
    return {**context, "stage": stage, "override": json.dumps(changed)}
