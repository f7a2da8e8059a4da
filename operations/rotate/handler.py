"""Rotate the password of the application's user, in the four steps of Secrets Manager.

ROTATION is `alternating` (the default: two users take turns, and no login is refused) or `single`
(one user gets a new password; its logins are refused from setSecret until finishSecret, and longer
if a step in between fails).

A step that fails leaves AWSCURRENT as it was and is retried; every step may be repeated.

One function rotates the secrets of all logins: SQL_ROLES names those of /sql's trust levels, whose
users are in the level's group. An event cannot choose the group.

There are two more steps. A deployment runs admitCurrent before it makes an RDS Proxy: this creates
the login of AWSCURRENT, which the migration does only after the proxy. A schedule runs
reportSchedule every hour, which tells CloudWatch whether the secret is rotated.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import boto3
import psycopg
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from lambda_pg import ConfigurationError, Database, Settings

from lambda_pg_cdk.migrations.roles import (
    GROUP,
    Login,
    LoginError,
    NeighbourError,
    admit,
    admit_early,
    group_of,
    hold,
)

ROTATION: Final = os.environ.get("ROTATION") or "alternating"

MANY_ROUNDS: Final = os.environ.get("MANY_ROUNDS") == "1"
"""Whether the application's password is hashed in more rounds than the layer needs."""

SQL_ROLES: Final[dict[str, str]] = json.loads(os.environ.get("SQL_ROLES") or "{}")
"""ARNs of the secrets of /sql's logins, by trust level; other secrets are the application's."""

SUFFIX: Final = "_clone"
"""End of the second user's name in an alternating rotation, after the first user's name."""

LONGEST_NAME: Final = 63
"""Bytes of a role's name; PostgreSQL cuts longer names, and both users would be the same."""

PASSWORD_LENGTH: Final = 40

TEST_TIMEOUT: Final = 10.0
"""Seconds that the test of the next login may take."""

ADMIT: Final = "admitCurrent"
"""Step of a deployment, with the secret's ARN only (stacks/pooler/rds_proxy.py)."""

REPORT: Final = "reportSchedule"
"""Step of an hourly schedule, with the secret's ARN only (stacks/database.py)."""

METRICS: Final = "LambdaPg"
ROTATION_OFF: Final = "RotationOff"
"""Namespace and name of the metric; an alarm watches it (stacks/observability.py)."""

PATIENCE: Final = 30.0
"""Seconds that a deployment waits for finishSecret, which keeps the lock while it tests a login."""

CLIENT: Final = Config(
    connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"}
)

logger = logging.getLogger("rotate")
logger.setLevel(logging.INFO)
settings = Settings.from_env()
db = Database(settings)

MASTER: Final = f"the master user, by the secret {settings.secret_arn}"


class RotationError(RuntimeError):
    """A step failed; the message has step, secret, cause and remedy, and never a password."""


class Versions:
    """The versions of a secret during one rotation."""

    def __init__(self, arn: str, token: str = "") -> None:
        """Keep the secret's ARN, and the id of the version that the rotation creates."""
        self.arn = arn
        self._token = token
        self._client = boto3.client("secretsmanager", config=CLIENT)

    def is_done(self) -> bool:
        """Tell whether the rotation has ended; raise if the secret has no such rotation."""
        stages = self._stages()
        if self._token not in stages:
            raise RotationError(f"the secret has no version {self._token}: rotate it again")
        if "AWSCURRENT" in stages[self._token]:
            return True
        if "AWSPENDING" not in stages[self._token]:
            raise RotationError(
                f"its version {self._token} is not AWSPENDING any more: rotate it again"
            )
        return False

    def current(self) -> dict[str, Any]:
        """Read the login that is in use."""
        content = self._read(VersionStage="AWSCURRENT")
        if content is None:
            raise RotationError("AWSCURRENT is empty: put a username and a password there")
        return content

    def pending(self) -> dict[str, Any] | None:
        """Read the next login; None before createSecret, when its version is empty."""
        return self._read(VersionStage="AWSPENDING", VersionId=self._token)

    def store(self, content: dict[str, Any]) -> None:
        """Write the next login."""
        self._client.put_secret_value(
            SecretId=self.arn,
            ClientRequestToken=self._token,
            SecretString=json.dumps(content),
            VersionStages=["AWSPENDING"],
        )

    def promote(self) -> None:
        """Make the next login the current one; the service labels the other AWSPREVIOUS.

        AWSPENDING stays: the service takes its removal for a failed rotation.
        """
        current = next(each for each, labels in self._stages().items() if "AWSCURRENT" in labels)
        self._client.update_secret_version_stage(
            SecretId=self.arn,
            VersionStage="AWSCURRENT",
            MoveToVersionId=self._token,
            RemoveFromVersionId=current,
        )

    def drop(self) -> None:
        """Remove the label AWSPENDING, so that the next rotation creates a new version."""
        self._client.update_secret_version_stage(
            SecretId=self.arn, VersionStage="AWSPENDING", RemoveFromVersionId=self._token
        )

    def is_scheduled(self) -> bool:
        """Tell whether Secrets Manager rotates the secret by schedule."""
        return bool(self._client.describe_secret(SecretId=self.arn).get("RotationEnabled"))

    def make_password(self) -> str:
        """Have the service make a password, of letters and digits: they need no quoting."""
        answer = self._client.get_random_password(
            PasswordLength=PASSWORD_LENGTH, ExcludePunctuation=True
        )
        return str(answer["RandomPassword"])

    def _stages(self) -> dict[str, list[str]]:
        described = self._client.describe_secret(SecretId=self.arn)
        stages: dict[str, list[str]] = described["VersionIdsToStages"]
        return stages

    def _read(self, **version: str) -> dict[str, Any] | None:
        try:
            answer = self._client.get_secret_value(SecretId=self.arn, **version)
        except self._client.exceptions.ResourceNotFoundException:
            return None
        text = answer.get("SecretString")
        return None if text is None else parse(text, version["VersionStage"])


def parse(text: str, stage: str) -> dict[str, Any]:
    """Read a version's content; raise RotationError, without its text, if it cannot be rotated."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RotationError(f"{stage} is not a JSON object")
    for name in ("username", "password"):
        if not isinstance(content.get(name), str) or not content[name]:
            raise RotationError(f"{stage} has no text in its field {name!r}")
    for name in ("url", "direct_url"):
        if name in content:
            raise RotationError(
                f"{stage} has a field {name!r}, which would keep the old password: remove it"
            )
    return content


def next_user(name: str, rotation: str) -> str:
    """Return the user that the secret names after the rotation."""
    if rotation == "alternating":
        return other_user(name)
    if rotation == "single":
        return name
    raise RotationError(f"ROTATION is {rotation!r}: set it to 'alternating' or 'single'")


def other_user(name: str) -> str:
    """Return the other user of an alternating rotation."""
    other = name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else name + SUFFIX
    if not 0 < len(other.encode()) <= LONGEST_NAME:
        raise RotationError(
            f"the user {name!r} cannot take turns with {other!r}, since a name has 1 to "
            f"{LONGEST_NAME} bytes: name another user in the secret, or set ROTATION to 'single'"
        )
    return other


def create_secret(versions: Versions) -> None:
    """Create the next login, unless an earlier run of the step has done so.

    A failed trial of a new schedule leaves a copy of AWSCURRENT, and the content of a version
    cannot be changed.
    """
    current, pending = versions.current(), versions.pending()
    user = next_user(current["username"], ROTATION)
    if pending == current:
        versions.drop()
        raise RotationError(
            "a trial of the schedule had left a version AWSPENDING with AWSCURRENT's login. The "
            "label AWSPENDING has been removed from it: rotate again"
        )
    if pending is None:
        versions.store({**current, "username": user, "password": versions.make_password()})


def set_secret(versions: Versions) -> None:
    """Set the next login's password in the database."""
    login, current = next_login(versions), versions.current()["username"]
    if login.name != (expected := next_user(current, ROTATION)):
        raise RotationError(
            f"AWSPENDING has the user {login.name!r}; must be {expected!r}, since AWSCURRENT has "
            f"{current!r} and ROTATION is {ROTATION!r}. Remove the label AWSPENDING from its "
            "version (aws secretsmanager update-secret-version-stage), and rotate again"
        )
    with acting_as(MASTER), db.connection() as connection:
        admit(connection, login, like=current)


def test_secret(versions: Versions) -> None:
    """Log in as the next login, with verified TLS, and check its rights."""
    login = next_login(versions)
    tester = Database(replace(settings, secret_arn=None, user=login.name, password=login.password))
    try:
        with acting_as(f"{login.name!r}, by AWSPENDING"), tester.deadline(TEST_TIMEOUT):
            row = tester.execute("SELECT pg_has_role(%s, 'USAGE')", [login.group]).fetchone()
    except RotationError as error:
        if versions.pending() != versions.current():
            raise
        raise RotationError(
            f"{error}. The tested login is AWSCURRENT's, so Secrets Manager only tries out a new "
            "schedule. This test fails until the first deployment's migration has created the "
            "user. Until then, ignore this error"
        ) from None
    finally:
        tester.close()
    if row != (True,):
        raise RotationError(
            f"{login.name!r} lacks the rights of {login.group}: deploy, or GRANT them"
        )


def finish_secret(versions: Versions) -> None:
    """Make the next login the current one, if it still works.

    A deployment sets the password of AWSCURRENT; with `single` it may have done so since setSecret.
    The lock keeps deployments from it until AWSCURRENT has moved.
    """
    with acting_as(MASTER), db.transaction() as connection:
        hold(connection)
        test_secret(versions)
        versions.promote()


def admit_current(versions: Versions) -> None:
    """Create the current login before the first migration; it can connect and nothing else."""
    with acting_as(MASTER), db.connection() as connection:
        admit_early(connection, lambda: login_of(versions, versions.current()), PATIENCE)


def report_schedule(versions: Versions) -> None:
    """Write whether the rotation is off, in CloudWatch's embedded metric format."""
    off = not versions.is_scheduled()
    if off:
        logger.warning("the secret %s is not rotated: turn its rotation on again", versions.arn)
    directive = {
        "Namespace": METRICS,
        "Dimensions": [["Secret"]],
        "Metrics": [{"Name": ROTATION_OFF, "Unit": "Count"}],
    }
    head = {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}
    # Not through the logger: the line is the metric.
    print(json.dumps({"_aws": head, "Secret": versions.arn, ROTATION_OFF: int(off)}), flush=True)


def next_login(versions: Versions) -> Login:
    """Return the login that createSecret has created."""
    content = versions.pending()
    if content is None:
        raise RotationError("AWSPENDING is empty: createSecret comes first")
    return login_of(versions, content)


def login_of(versions: Versions, content: dict[str, Any]) -> Login:
    """Return the login of a version, in the group of its secret."""
    group = group_of_secret(versions.arn)
    return Login(content["username"], content["password"], many_rounds=MANY_ROUNDS, group=group)


def group_of_secret(arn: str) -> str:
    """Return the group of a secret's users."""
    levels = [level for level, secret in SQL_ROLES.items() if secret == arn]
    return group_of(levels[0]) if levels else GROUP


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Name the user in the error of a failed call."""
    try:
        yield
    except psycopg.Error as error:
        raise RotationError(f"as {user}: {error}") from error


STEPS: Final[dict[str, Callable[[Versions], None]]] = {
    "createSecret": create_secret,
    "setSecret": set_secret,
    "testSecret": test_secret,
    "finishSecret": finish_secret,
}


OTHER_STEPS: Final[dict[str, Callable[[Versions], None]]] = {
    ADMIT: admit_current,
    REPORT: report_schedule,
}
"""Steps outside of a rotation."""


def take_step(event: dict[str, Any]) -> None:
    """Run the step that an event names, unless the rotation has ended already."""
    needed = ["Step", "SecretId"] + ["ClientRequestToken"] * (event.get("Step") not in OTHER_STEPS)
    for name in needed:
        if not isinstance(event.get(name), str):
            raise RotationError(f"the event has no {name}: this function is for Secrets Manager")
    step, arn = event["Step"], event["SecretId"]
    if step not in STEPS and step not in OTHER_STEPS:
        raise RotationError(f"the step must be one of {', '.join((*STEPS, *OTHER_STEPS))}")
    if arn == settings.secret_arn:
        raise RotationError("it is the master user's, which this function logs in with itself")
    if step in OTHER_STEPS:
        OTHER_STEPS[step](Versions(arn))
        logger.info("%s: done for the secret %s", step, arn)
        return
    versions = Versions(arn, event["ClientRequestToken"])
    if versions.is_done():
        logger.info("%s: the secret %s is rotated already", step, arn)
        return
    STEPS[step](versions)
    logger.info("%s: done for the secret %s", step, arn)


FAILURES: Final = (
    RotationError,
    LoginError,
    NeighbourError,
    ConfigurationError,
    ClientError,
    BotoCoreError,
)


@db.bind_lambda_context
def handler(event: dict[str, Any], context: object) -> None:
    """Run one step of a rotation; raise RotationError if it fails."""
    try:
        take_step(event)
    except FAILURES as error:
        step = event.get("Step")
        kept = "" if step in OTHER_STEPS else ", which keeps its AWSCURRENT until a try succeeds"
        raise RotationError(
            f"{step} failed for the secret {event.get('SecretId')}{kept}: {error}"
        ) from error
