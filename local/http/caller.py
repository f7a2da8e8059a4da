"""Call an HTTP API, one request at a time."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and body of a response."""

    status: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


def call(
    url: str,
    method: str,
    path: str,
    token: str | None = None,
    body: object = None,
    timeout: float = 35.0,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request; `body` becomes JSON unless it is bytes. No status raises an error."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - http only
        f"{url}{path}", data, dict(headers or {}), method=method
    )
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    if data is not None:
        request.add_header("Content-Type", "application/json")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310 - http only
    except urllib.error.HTTPError as error:
        response = error
    with response:
        received = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, received, response.read().decode())
