"""The demo: deploy to a local cloud, call each route, send it 500 requests at once, stop it."""

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.conclusion import conclude
from benchmarks.storm.goals import VERDICTS, shortfalls, unmeasured
from benchmarks.storm.run import plan, run
from benchmarks.tables import for_terminal, storm_table
from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import AlreadyRunningError, CloudError, DeploymentError, LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call
from lambda_pg_cdk.local.narrator import Narrator

KEPT_LOGS = PROJECT / "build" / "demo-logs"


class WrongAnswerError(CloudError):
    """A route answered with the wrong status."""


def main() -> int:
    """Run the demo; return 0 if every goal was met, 3 if not measurable here, else 1."""
    began = time.monotonic()
    narrator = Narrator()
    print("Starting a local cloud and deploying the app", flush=True)
    with LocalCloud(report=narrator) as cloud, logs_kept(cloud, KEPT_LOGS):
        cloud.check_health()
        print("\nCalling each route", flush=True)
        call_each_route(cloud)
        print("\nStorm: many environments get their first request at the same moment", flush=True)
        result = run(cloud, plan(environments=500, cold=20), narrator.note, command="make demo")
        print(f"\n{for_terminal(storm_table(result))}\n")
        print("Stopping everything", flush=True)
    return conclude_demo(result, time.monotonic() - began)


def conclude_demo(result: dict[str, Any], seconds: float) -> int:
    """Print missed goals and the verdict; return the exit code."""
    code = conclude(shortfalls(result), unmeasured(result))
    print(f"{VERDICTS[result['verdict']]}, in {seconds:.0f} s.")
    return code


@contextmanager
def logs_kept(cloud: LocalCloud, target: Path) -> Iterator[None]:
    """Copy the cloud's logs to `target` before an error stops the cloud."""
    try:
        yield
    except Exception:
        cloud.keep_logs(target)
        print(f"\nAll logs are in {target}", file=sys.stderr)
        raise


def call_each_route(cloud: LocalCloud) -> None:
    """Call every sample route as two users and print the answers.

    Raises `WrongAnswerError` at the first unexpected status.
    """
    ada, eve = (cloud.token(str(uuid.uuid4())) for _ in range(2))

    def say(
        expected: int, method: str, path: str, token: str | None, body: object = None
    ) -> Answer:
        answer = call(cloud.url, method, path, token, body)
        who = {ada: "Ada", eve: "Eve", None: "no token"}[token]
        print(f"  {who:8} {method:5} {path}  →  {answer.status} {answer.body}", flush=True)
        if answer.status != expected:
            raise WrongAnswerError(
                f"{method} {path} answered {answer.status} instead of {expected}: {answer.body}"
            )
        return answer

    say(200, "GET", "/health", None)
    user = f"/users/{say(201, 'POST', '/users', ada, {'name': 'Ada'}).json()['id']}"
    say(200, "GET", user, ada)
    say(200, "PATCH", user, ada, {"name": "Countess of Lovelace"})
    say(200, "GET", "/users", ada)
    say(404, "GET", user, eve)
    say(401, "GET", user, None)
    say(422, "POST", "/users", ada, {"name": ""})
    say(200, "GET", f"/baseline{user}", ada)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AlreadyRunningError, CloudError, DeploymentError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; everything was stopped")
