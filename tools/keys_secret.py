"""The secret with the table of keys: read it, and change it without losing others' changes.

PutSecretValue overwrites the current version, whatever it is. So a new version is written under a
label of ours, and AWSCURRENT is moved to it from the version that was read. Secrets Manager refuses
that if another version has become current; then the table is read and changed again.
https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_UpdateSecretVersionStage.html
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

LARGEST = 65_536
"""Bytes of a secret (Secrets Manager's quota)."""

LABEL = "LAMBDA_PG_NEXT"
"""Label of the version that will become current. There is one such label only: Secrets Manager
never deletes a version with a label, and a secret can have about 100 versions."""

ATTEMPTS = 5

Keys = dict[str, Any]


class KeysSecretError(RuntimeError):
    """The table cannot be read or written; the message has no part of it."""


class Version(NamedTuple):
    """What the secret had when it was read."""

    id: str
    text: str
    keys: Keys


class KeysSecret:
    """The secret of one stage, by a client of Secrets Manager."""

    def __init__(self, client: Any, arn: str) -> None:
        """Read nothing yet."""
        self._client, self.arn = client, arn

    def read(self) -> Version:
        """Return the current version. Raises KeysSecretError if it has no table."""
        found = self._client.get_secret_value(SecretId=self.arn, VersionStage="AWSCURRENT")
        text: str = found.get("SecretString", "")
        try:
            keys = json.loads(text)["keys"]
        except (ValueError, TypeError, KeyError, RecursionError):  # they may hold the text
            keys = None
        if not isinstance(keys, dict):
            raise KeysSecretError(
                f'the secret {self.arn} is not {{"keys": {{…}}}}: correct it by hand, or restore '
                "its previous version (docs/operations.md)"
            )
        return Version(found["VersionId"], text, keys)

    def change(self, edit: Callable[[Keys], None]) -> None:
        """Let `edit` change the keys; retry if they have been changed by others since.

        Raises KeysSecretError, and the errors of `edit`.
        """
        for _ in range(ATTEMPTS):
            version = self.read()
            edit(version.keys)
            if self._replace(version):
                return
        raise KeysSecretError(
            f"the secret {self.arn} was changed by others during each of {ATTEMPTS} attempts: the"
            " keys were not changed; try again"
        )

    def _replace(self, version: Version) -> bool:
        """Write the keys; return False if another version has become current since."""
        text = json.dumps({"keys": version.keys}, separators=(",", ":"))
        if (size := len(text.encode())) > LARGEST:
            raise KeysSecretError(
                f"the table of {len(version.keys)} keys would have {size} bytes; Secrets Manager"
                f" keeps at most {LARGEST}: revoke keys that have expired, or shorten notes and"
                " lists of statements"
            )
        written = self._client.put_secret_value(
            SecretId=self.arn, SecretString=text, VersionStages=[LABEL]
        )
        try:
            self._client.update_secret_version_stage(
                SecretId=self.arn,
                VersionStage="AWSCURRENT",
                MoveToVersionId=written["VersionId"],
                RemoveFromVersionId=version.id,
            )
        except ClientError as error:
            if error.response["Error"]["Code"] not in _MOVED:
                raise
            return False
        return True


_MOVED = {"InvalidParameterException", "InvalidRequestException"}
"""What Secrets Manager answers if another version is current."""
