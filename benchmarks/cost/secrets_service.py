"""Secrets Manager's GetSecretValue in a separate process, so that it is not on the client's core.

python -m benchmarks.cost.secrets_service PORT < secrets.json
"""

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

JSON_TYPE: Final = "application/x-amz-json-1.1"
GET: Final = "secretsmanager.GetSecretValue"


def answer(secrets: dict[str, Any], target: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
    """Answer one request as the service does; only current versions exist."""
    request = json.loads(body)
    arn = request.get("SecretId")
    current = request.get("VersionStage", "AWSCURRENT") == "AWSCURRENT"
    if target != GET or arn not in secrets or not current:
        return HTTPStatus.BAD_REQUEST, {"__type": "ResourceNotFoundException"}
    text = json.dumps(secrets[arn])
    return HTTPStatus.OK, {"ARN": arn, "Name": arn, "VersionId": "1" * 32, "SecretString": text}


class Handler(BaseHTTPRequestHandler):
    """Serves the secrets of this process by HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    secrets: dict[str, Any]

    def do_POST(self) -> None:
        """Answer a call of the SDK or of the layer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, document = answer(self.secrets, self.headers["X-Amz-Target"], body)
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", JSON_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent: a log line for each request would be part of the measurement."""


def main() -> None:
    """Serve the secrets from stdin until killed."""
    Handler.secrets = json.load(sys.stdin)
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
