"""The last good users and certificate that the supervisor has read from Secrets Manager."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from .configuration import User

# Two short tries: a new look begins only when the one before has ended.
CLIENT_CONFIG = Config(
    connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 2, "mode": "standard"}
)
# Where a rotation alternates between two users, clients log in as either for a while.
STAGES = ("AWSCURRENT", "AWSPREVIOUS")


class SecretUnusableError(ValueError):
    """A secret exists, but its content is not (yet) usable; the message never quotes it."""


@dataclass(frozen=True)
class Certificate:
    """A private key with the chain of certificates that belongs to it, as PEM text."""

    private_key: str = field(repr=False)
    chain: str

    @property
    def pem(self) -> str:
        """Key and chain as one text."""
        return f"{self.private_key.strip()}\n{self.chain.strip()}\n"


@dataclass(frozen=True)
class Content:
    """Users and certificate, complete; for `/sql` those users whose secrets were read so far."""

    users: tuple[User, ...]
    certificate: Certificate
    sql_users: tuple[User, ...] = ()

    def by_database(self, databases: Iterable[str]) -> dict[str, tuple[User, ...]]:
        """Return the users of the database's name, and of its second one where it has one."""
        return dict(zip(databases, (self.users, self.sql_users), strict=False))


Read = Callable[[str, str], "dict[str, Any]"]
Report = Callable[[str], None]
Check = Callable[[Certificate], None]


class SecretStore:
    """The last good content of the secrets; `refresh` reads a newer one."""

    def __init__(
        self,
        user_arns: tuple[str, ...],
        certificate_arn: str,
        sql_arns: tuple[str, ...] = (),
        *,
        read: Read,
        check: Check,
        report: Report,
    ) -> None:
        """Keep the names; nothing is read yet.

        `read(arn, stage)` answers as GetSecretValue does. `check` looks at a certificate. Raises
        SecretUnusableError if PgBouncer could not use it, and OSError if that is not known.
        """
        self._user_arns = user_arns
        self._certificate_arn = certificate_arn
        self._sql_arns = sql_arns
        self._read = read
        self._check = check
        self._report = report
        self._seen: dict[str, tuple[str, str]] = {}
        self._unreadable: set[str] = set()
        self._logins: dict[str, tuple[User, ...]] = {}
        self._certificate: Certificate | None = None

    @property
    def content(self) -> Content | None:
        """The last good content; None until there are a user and a certificate.

        A name that the application has too is the application's.
        """
        users = self._users(self._user_arns)
        if self._certificate is None or not users:
            return None
        names = {user.name for user in users}
        others = tuple(user for user in self._users(self._sql_arns) if user.name not in names)
        return Content(users, self._certificate, others)

    @property
    def unreadable(self) -> int:
        """How many secrets could not be read or used in the last look."""
        return len(self._unreadable)

    @property
    def missing(self) -> list[str]:
        """List the secrets of users that have not been read yet."""
        return [arn for arn in (*self._user_arns, *self._sql_arns) if arn not in self._logins]

    def _users(self, arns: tuple[str, ...]) -> tuple[User, ...]:
        """List users, each once; the current password of a name wins over an older one."""
        known = [self._logins[arn] for arn in arns if arn in self._logins]
        current_first = [user for logins in known for user in logins[:1]]
        older = [user for logins in known for user in logins[1:]]
        found: dict[str, User] = {}
        for user in current_first + older:
            found.setdefault(user.name, user)
        return tuple(found.values())

    def refresh(self, *, certificate: bool = True) -> bool:
        """Read every secret; keep the old content of those that cannot be read or used.

        The certificate's may be left out. Tell whether it was read and is usable.
        """
        for arn in (*self._user_arns, *self._sql_arns):
            self._attempt(arn, self._take_user)
        self._report_shared()
        return certificate and self._attempt(self._certificate_arn, self._take_certificate)

    def _report_shared(self) -> None:
        users, others = (
            {user.name for user in self._users(arns)} for arns in (self._user_arns, self._sql_arns)
        )
        if users & others:
            self._report(
                f"{', '.join(sorted(users & others))} is a user of the application and of /sql: "
                "/sql cannot log in with that name"
            )

    def _attempt(self, arn: str, take: Callable[[str, dict[str, Any]], None]) -> bool:
        try:
            answer = self._read(arn, STAGES[0])
            seen = (answer.get("VersionId", ""), answer.get("SecretString", ""))
            if seen != self._seen.get(arn):
                take(arn, answer)
                self._seen[arn] = seen
        except (BotoCoreError, ClientError, SecretUnusableError, OSError) as error:
            kept = "keeping the last good one" if arn in self._seen else "none yet"
            self._report(f"secret {arn} ({kept}): {type(error).__name__}: {error}")
            self._unreadable.add(arn)
            return False
        self._unreadable.discard(arn)
        return True

    def _take_user(self, arn: str, answer: dict[str, Any]) -> None:
        logins = [_user(answer)]
        try:
            logins.append(_user(self._read(arn, STAGES[1])))
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceNotFoundException":
                raise
        except SecretUnusableError as error:
            self._report(f"secret {arn}, {STAGES[1]} (not needed): {error}")
        self._logins[arn] = tuple(logins)

    def _take_certificate(self, _arn: str, answer: dict[str, Any]) -> None:
        content = _content(answer, "private_key", "certificate_chain")
        certificate = Certificate(content["private_key"], content["certificate_chain"])
        self._check(certificate)
        self._certificate = certificate


def _user(answer: dict[str, Any]) -> User:
    content = _content(answer, "username", "password")
    user = User(content["username"], content["password"])
    for value in (user.name, user.password):
        if any(character in value for character in "\0\r\n"):
            raise SecretUnusableError("its username or password has a line break or a NUL in it")
    return user


def _content(answer: dict[str, Any], *names: str) -> dict[str, str]:
    """Return named texts of a secret."""
    try:
        content = json.loads(answer.get("SecretString") or "null")
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise SecretUnusableError("it is not a JSON object")
    for name in names:
        if not isinstance(content.get(name), str) or not content[name]:
            raise SecretUnusableError(f"it has no {name} (yet)")
    return {name: content[name] for name in names}


class SecretsManager:
    """Reads secrets by ARN, each in the region that its ARN names."""

    def __init__(self) -> None:
        """Make no client yet: importing and starting need no network."""
        self._clients: dict[str | None, Any] = {}

    def __call__(self, arn: str, stage: str) -> dict[str, Any]:
        """Read one version of a secret."""
        region = region_of(arn)
        if region not in self._clients:
            self._clients[region] = boto3.client(
                "secretsmanager", region_name=region, config=CLIENT_CONFIG
            )
        answer: dict[str, Any] = self._clients[region].get_secret_value(
            SecretId=arn, VersionStage=stage
        )
        return answer


def region_of(arn: str) -> str | None:
    """Read the region that an ARN names; None for a plain name."""
    parts = arn.split(":")
    return parts[3] if len(parts) > 3 else None
