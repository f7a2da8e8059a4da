"""When a certificate ends: the few bytes of X.509 that say so, as Python's ssl does not."""

import re
import ssl
from datetime import UTC, datetime

FIRST = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# ASN.1: the tags of the version, which is optional, and of the older way to write a time; the mark
# of a length that does not fit into seven bits.
VERSION = 0xA0
UTC_TIME = 0x17
LONG_LENGTH = 0x80


def end_of(chain: str) -> datetime:
    """Read the end (notAfter) of the first certificate of a chain, which OpenSSL has loaded."""
    found = FIRST.search(chain)
    if found is None:
        raise ValueError("there is no certificate in the chain")
    der = ssl.PEM_cert_to_DER_cert(found[0])
    # Certificate, then its signed part: version, serial number, algorithm, issuer, validity
    # (RFC 5280, 4.1).
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    if der[at] == VERSION:
        at = _element(der, at)[2]
    for _ in ("serial number", "algorithm", "issuer"):
        at = _element(der, at)[2]
    _, begin, _ = _element(der, at)
    tag, at, end = _element(der, _element(der, begin)[2])
    text = der[at:end].decode("ascii")
    if tag == UTC_TIME:  # two digits for the year: 50 is 1950 (RFC 5280, 4.1.2.5.1)
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the element at a place, and where its content begins and ends."""
    length, begin = der[at + 1], at + 2
    if length & LONG_LENGTH:
        size = length - LONG_LENGTH
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    return der[at], begin, begin + length
