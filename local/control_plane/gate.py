"""Admit only programs that have the cloud's key: MiniStack itself checks nothing."""

import json
from collections.abc import Collection, MutableMapping
from typing import Any

from lambda_pg_cdk.local.control_plane import signatures
from lambda_pg_cdk.local.control_plane.changes import Application, Receive, Scope, Send
from lambda_pg_cdk.local.control_plane.signatures import Request
from lambda_pg_cdk.local.http import guard

_CUSTOM_RESOURCES = "/_ministack/cfn-response/"
"""The path that a custom resource reports to. Its URL has a random token; AWS signs none."""


def unsigned(reason: str) -> str:
    """Return the message for a missing or wrong signature: the reason, and what to do."""
    return (
        f"Refused: {reason}. Sign requests with this local cloud's key: "
        "`python -m lambda_pg_cdk.local credentials` prints it as environment variables."
    )


def refusal_body(message: str) -> bytes:
    """Write the body of a refusal, in the form that AWS's SDKs read."""
    return json.dumps({"__type": "AccessDeniedException", "message": message}).encode()


class Gate:
    """Checks requests to the application, and cleans its answers."""

    def __init__(self, application: Application, ports: Collection[int], key: str) -> None:
        """Take the ports that callers may use, and the key of this cloud."""
        self._application = application
        self._ports = ports
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; nothing here serves WebSockets."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = _headers(scope)
        if reason := guard.refusal(headers, self._ports):
            await _send_refusal(send, reason)
            return
        query, path = scope["query_string"].decode("latin-1"), scope["raw_path"].decode("latin-1")
        if scope["method"] == "PUT" and path.startswith(_CUSTOM_RESOURCES):
            await self._application(scope, receive, _without_cors(send))
            return
        if not signatures.claims_signature(query, headers):  # before its body is read
            await _send_refusal(send, unsigned("the request is not signed"))
            return
        body = await _read(receive)
        request = Request(scope["method"], path, query, headers, body)
        if reason := signatures.refusal(request, self._key):
            await _send_refusal(send, unsigned(reason))
            return
        await self._application(scope, _again(body, receive), _without_cors(send))


def _headers(scope: Scope) -> dict[str, str]:
    """Join headers that are repeated, as a signature does."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


async def _read(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = (
            await receive()
        )  # a client that has gone leaves an incomplete body, which has no valid signature
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return the body that has been read already, then what follows."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return receive_again


def _without_cors(send: Send) -> Send:
    """Remove MiniStack's CORS headers, by which every web page could read an answer."""

    async def send_without(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message["headers"]
                if not name.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": kept}
        await send(message)

    return send_without


async def _send_refusal(send: Send, message: str) -> None:
    body = refusal_body(message)
    headers = [
        (b"content-type", b"application/x-amz-json-1.1"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
