"""Why a server's certificate was not accepted: libpq only says that it was not."""

import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lambda_pg._clock import monotonic

LOOK: Final = 1.0
"""Seconds that the second check of a certificate may take."""

WAYS_OUT: Final = (
    "if its CA is your own, set PGSSLROOTCERT to the CA's file, or LAMBDA_PG_CA_PEM to its text; "
    "or accept a server that is not verified: sslmode=require in the URL or in PGSSLMODE, and "
    "LAMBDA_PG_ALLOW_UNVERIFIED_TLS=1"
)
"""What to do about a certificate that is in date and not trusted."""

_SSL_REQUEST: Final = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_NOT_YET, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED


def why_refused(addresses: Sequence[str], port: int, roots: Path, timeout: float) -> str | None:
    """Connect once more, within `timeout` seconds, and name what `roots` do not accept.

    None where that cannot be found out.
    """
    until = monotonic() + min(LOOK, timeout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # libpq names the host where its name is the reason
    try:
        context.load_verify_locations(roots)
        for address in addresses:
            left = max(0.05, until - monotonic())
            with socket.create_connection((address, port), timeout=left) as plain:
                plain.sendall(_SSL_REQUEST)
                if plain.recv(1) == b"S":
                    context.wrap_socket(plain).close()
    except ssl.SSLCertVerificationError as error:
        return _explained(error, context, roots)
    except OSError:
        pass  # the caller gets libpq's own error
    return None


def _explained(error: ssl.SSLCertVerificationError, context: ssl.SSLContext, roots: Path) -> str:
    if error.verify_code not in {_NOT_YET, _EXPIRED}:
        return f"{error.verify_message}; {WAYS_OUT}"
    if not any(_is_valid_now(root) for root in context.get_ca_certs()):
        which = f"it is the CA's certificate in {roots}: install the new one"
    else:
        which = "it is the server's certificate, or one in its chain: renew it there"
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return f"{error.verify_message}; {which}. The clock here says {now} UTC"


def _is_valid_now(root: Mapping[str, object]) -> bool:
    begin, end = (ssl.cert_time_to_seconds(str(root[name])) for name in ("notBefore", "notAfter"))
    return begin <= time.time() <= end
