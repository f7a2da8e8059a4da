"""Ask the daemon, over loopback, for what MiniStack does not have."""

import json
import urllib.request
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

_LONGEST_SECONDS = 930.0  # a function runs for 15 minutes at most


class Cloud:
    """The daemon's control endpoint."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        # Without a proxy from the shell's environment: the address is on loopback.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def provide_database(self, user: str, password: str, name: str) -> dict[str, Any]:
        """Create a master user and a database in the local PostgreSQL; return its address."""
        return self._post("/database", {"user": user, "password": password, "name": name})

    def invoke(self, function: str, version: str, event: Any) -> dict[str, Any]:
        """Run an event in an execution environment of the cloud."""
        path = f"/invoke/{quote(function, safe='')}?version={quote(version, safe='')}"
        return self._post(path, event)

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the address is the daemon's
            self._url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        try:
            with self._opener.open(request, timeout=_LONGEST_SECONDS) as response:
                answer: dict[str, Any] = json.load(response)
        except HTTPError as error:
            text = error.read().decode(errors="replace")
            raise RuntimeError(
                f"the local cloud answered {error.code} to {path}: {text}"
            ) from error
        return answer
