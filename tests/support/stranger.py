"""Attack the listeners of a local cloud as another account of the machine: `python -m …`.

The order on standard input is JSON: `uid` is the account to become, `listeners` are addresses
(`[host, port]`, or the path of a socket), `files` what belongs to the cloud, and `secret` and
`function` a name of each. The answer is `{"listeners": [{"kind": …, "let_in": […], …}, …],
"files": [those that could be read]}`. Only the standard library is used, as the account cannot read
anything else.
"""

import hashlib
import hmac
import http.client
import json
import os
import socket
import ssl
import struct
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SECONDS = 5.0
FOREIGN = {
    "Host": "evil.example",
    "Origin": "http://evil.example",
    "Sec-Fetch-Site": "cross-site",
}
_RUNTIME = "/2018-06-01/runtime"
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_USERS = ("postgres", "lambda_pg_owner", "lambda_pg_app", "pgbouncer", "stats", "nobody")
_DATABASES = ("app", "postgres", "pgbouncer")


def main() -> None:
    """Become the account, then do what is asked."""
    order = json.load(sys.stdin)
    "127.0.0.1".encode("idna")  # afterwards the interpreter cannot read its own library
    ssl.create_default_context()
    os.setgroups([])
    os.setgid(order["uid"])
    os.setuid(order["uid"])
    found = {
        "listeners": [attack(each, order) for each in order["listeners"]],
        "files": [path for path in order["files"] if _readable(path)],
    }
    print(json.dumps(found))


def _readable(path: str) -> bool:
    where = Path(path)
    with suppress(OSError):
        if where.is_dir():
            list(where.iterdir())
        else:
            where.open("rb").close()
        return True
    return False


def attack(listener: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Find out what a listener speaks, and ask it for everything that there is."""
    if isinstance(listener, str):
        return {"kind": "unix", "let_in": [listener] if _connects(listener) else []}
    host, port = listener
    try:
        if _speaks_http(host, port):
            return _attack_http(host, port, order)
        if _begin(host, port)[1] in {b"S", b"N"}:
            return {"kind": "postgres", "let_in": _log_in(host, port)}
    except ConnectionRefusedError:
        return {"kind": "gone", "let_in": []}
    return {"kind": "unknown", "let_in": []}


def _connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
        sock.connect(path)
        return True
    return False


# HTTP


def _speaks_http(host: str, port: int) -> bool:
    with socket.create_connection((host, port), SECONDS) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        with suppress(OSError):
            return sock.recv(5) == b"HTTP/"
    return False


def _attack_http(host: str, port: int, order: dict[str, Any]) -> dict[str, Any]:
    let_in, open_to_pages = [], []
    for name, method, path, headers, body in _requests(host, port, order):
        status, told, _ = _ask(host, port, method, path, headers, body)
        if status < 400:
            let_in.append(f"{name}: {status}")
        if any(header.startswith("access-control-") for header in told):
            open_to_pages.append(name)
    answered = []
    for header, value in FOREIGN.items():
        for method, path in (("GET", "/"), ("POST", "/"), ("GET", "/health")):
            status, _, text = _ask(host, port, method, path, {header: value}, b"{}")
            if status != 403 or header not in text or value not in text:
                answered.append(f"{method} {path} with {header}: {status} {text[:200]}")
    return {
        "kind": "http",
        "let_in": let_in,
        "open_to_pages": open_to_pages,
        "foreign": answered,
    }


def _requests(
    host: str, port: int, order: dict[str, Any]
) -> list[tuple[str, str, str, dict[str, str], bytes]]:
    """Name what each part of the cloud does for its owner."""
    secret = json.dumps({"SecretId": order["secret"]}).encode()
    target = {
        "X-Amz-Target": "secretsmanager.GetSecretValue",
        "Content-Type": "application/x-amz-json-1.1",
    }
    own = {"Origin": f"http://{host}:{port}", "Content-Type": "application/json"}
    functions = "/2015-03-31/functions"
    code = json.dumps({"FunctionName": "stranger", "Code": {}, "Role": "r"}).encode()
    account = "000000000000/us-east-1"
    return [
        ("GetSecretValue", "POST", "/", target, secret),
        ("GetSecretValue, signed", "POST", "/", _signed(host, port, target, secret), secret),
        ("GetSecretValue, slow", "POST", "/", {**target, "Authorization": "AWS4-HMAC-SHA256"}, b""),
        ("ListFunctions", "GET", f"{functions}/", {}, b""),
        ("CreateFunction", "POST", functions, {"Content-Type": "text/plain"}, code),
        ("Invoke", "POST", f"{functions}/{order['function']}/invocations", {}, b"{}"),
        ("code", "GET", f"/_ministack/lambda-code/{account}/{order['function']}", {}, b""),
        ("reset", "GET", "/_ministack/health", {}, b""),
        ("changes", "GET", "/_lambda_pg/changes?known=", {}, b""),
        ("buckets", "GET", "/", {}, b""),
        ("preflight", "OPTIONS", "/", {"Access-Control-Request-Method": "POST"}, b""),
        ("status", "GET", "/status", {}, b""),
        ("requests", "GET", "/requests", {}, b""),
        ("environments", "GET", "/functions/users/environments", {}, b""),
        ("deploy", "POST", "/deploy", {}, b'{"app": "/tmp/stranger"}'),
        ("bearer", "POST", "/deploy", {"Authorization": "Bearer local"}, b'{"app": "/tmp/s"}'),
        ("invoke", "POST", "/invoke/users", {}, b"{}"),
        ("reconcile", "POST", "/reconcile", {}, b""),
        ("wires", "GET", "/wires", {}, b""),
        ("stop", "POST", "/wires/secrets/nothing", {}, b""),
        ("next event", "GET", f"{_RUNTIME}/invocation/next", {}, b""),
        ("init error", "POST", f"{_RUNTIME}/init/error", {}, b"{}"),
        ("stream", "GET", "/stream", {}, b""),
        ("load", "POST", "/load", own, b'{"on": false}'),
        ("storm", "POST", "/storms", own, b'{"target": "lambda-pg", "requests": 50}'),
        ("users", "GET", "/users", {}, b""),
        ("users with a token", "GET", "/users", {"Authorization": "Bearer x.y.z"}, b""),
        ("health", "GET", "/health", {}, b""),
        ("discovery", "GET", "/.well-known/openid-configuration", {}, b""),
        ("keys", "GET", "/.well-known/jwks.json", {}, b""),
    ]


def _ask(
    host: str, port: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[str], str]:
    """Send one request; a status of 0 is none: the port holds the connection, as for its own."""
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        names = [name.lower() for name in answer.headers]
        if answer.headers.get_content_type() == "text/event-stream":
            return answer.status, names, ""
        return answer.status, names, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, [], repr(error)
    finally:
        connection.close()


def _signed(host: str, port: int, headers: dict[str, str], body: bytes) -> dict[str, str]:
    """Sign with the key that every local cloud once had."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/us-east-1/secretsmanager/aws4_request"
    digest = hashlib.sha256(body).hexdigest()
    lines = [f"host:{host}:{port}", f"x-amz-date:{stamp}", "", "host;x-amz-date", digest]
    canonical = hashlib.sha256("\n".join(["POST", "/", "", *lines]).encode()).hexdigest()
    key = b"AWS4local"
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{canonical}"
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential=local/{scope}, SignedHeaders=host;x-amz-date, "
        f"Signature={signature}"
    )
    return {**headers, "X-Amz-Date": stamp, "Authorization": authorization}


# PostgreSQL's protocol


def _begin(host: str, port: int) -> tuple[socket.socket, bytes]:
    """Ask for TLS; return the answer."""
    sock = socket.create_connection((host, port), SECONDS)
    with suppress(OSError):
        sock.sendall(_SSL_REQUEST)
        return sock, sock.recv(1)
    return sock, b""


def _log_in(host: str, port: int) -> list[str]:
    """Try every user without a password, with TLS and without; return those that are let in."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    let_in = []
    for user in _USERS:
        for database in _DATABASES:
            for tls in (True, False):
                sock, said = _begin(host, port)
                if tls and said == b"S":
                    sock = context.wrap_socket(sock)
                elif not tls:
                    sock.close()
                    sock = socket.create_connection((host, port), SECONDS)
                with sock:
                    if _is_let_in(sock, user, database):
                        let_in.append(f"{user} of {database}, {'with' if tls else 'without'} TLS")
    return let_in


def _is_let_in(sock: socket.socket, user: str, database: str) -> bool:
    """Tell whether AuthenticationOk comes without a password."""
    parameters = f"user\0{user}\0database\0{database}\0\0".encode()
    try:
        sock.sendall(struct.pack("!ii", 8 + len(parameters), 196608) + parameters)
        head = sock.recv(9)
    except OSError:
        return False
    return head[:1] == b"R" and head[5:] == struct.pack("!i", 0)


if __name__ == "__main__":
    main()
