"""Add the root certificates of RDS in a region to the layer, which can then verify its databases.

    .venv/bin/python -m lambda_pg_cdk.layer.roots il-central-1

Needs AWS's trust store, <https://truststore.pki.rds.amazonaws.com>. Writes `rds/<region>.pem`, and
`aws.pem`, which is all of them; the pooler's image and `make tunnel` take the second. Commit both.
"""

import argparse
import re
import ssl
import sys
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lambda_pg_cdk import IN_CHECKOUT

CERTIFICATES = Path(__file__).resolve().parent / "python" / "lambda_pg" / "certs"
SECONDS = 20
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

TRUST_STORES = {
    "us-gov": "https://truststore.pki.us-gov-west-1.rds.amazonaws.com",
    "cn": "https://rds-truststore.s3.cn-north-1.amazonaws.com.cn",
}
TRUST_STORE = "https://truststore.pki.rds.amazonaws.com"
"""URLs by the first part of a region's name, and for all other regions (AWS, "Using SSL/TLS to
encrypt a connection to a DB instance or cluster", and its edition for China)."""

Fetch = Callable[[str], str]


class RootsError(RuntimeError):
    """The roots could not be added; the message says why and what to do."""


def known_regions(folder: Path = CERTIFICATES) -> frozenset[str]:
    """Return the regions whose roots the layer has."""
    return frozenset(file.stem for file in (folder / "rds").glob("*.pem"))


def bundle_url(region: str) -> str:
    """Return AWS's URL of a region's roots."""
    stores = [url for prefix, url in TRUST_STORES.items() if region.startswith(f"{prefix}-")]
    return f"{(stores or [TRUST_STORE])[0]}/{region}/{region}-bundle.pem"


def take(region: str, fetch: Fetch, folder: Path = CERTIFICATES) -> list[str]:
    """Add a region's roots and return their names.

    `fetch` returns the text at a URL. Raises `RootsError`, and changes nothing then; an OSError of
    `fetch` is its cause.
    """
    if not REGION.fullmatch(region):
        raise RootsError(f"{region!r} is not a region: give one like il-central-1")
    url = bundle_url(region)
    try:
        text = fetch(url)
    except OSError as error:
        raise RootsError(
            f"{url} cannot be fetched: {error}. Run this on a machine that can reach it"
        ) from error
    roots = [_root(region, block, url) for block in BLOCK.findall(text)]
    if not roots:
        raise RootsError(f"{url} has no certificate in it")
    (folder / "rds" / f"{region}.pem").write_text("".join(block for _, block in roots))
    whole = (folder / "aws.pem").read_text()
    new = [block for _, block in roots if BLOCK.findall(block)[0] not in whole]
    (folder / "aws.pem").write_text(whole + "".join(new))
    return [name for name, _ in roots]


def _root(region: str, block: str, url: str) -> tuple[str, str]:
    """Check one certificate; return its name and its text for the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=block)
        (found,) = context.get_ca_certs()
    except (ssl.SSLError, ValueError) as error:
        raise RootsError(f"{url} has a certificate that is not a CA's: {error}") from error
    certificate: dict[str, Any] = dict(found)
    name = dict(field for (field,) in certificate["subject"]).get("commonName", "")
    if certificate["subject"] != certificate["issuer"] or f"RDS {region} Root" not in name:
        raise RootsError(f"{url} has the certificate {name!r}, which is not a root of {region}")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    return name, f"# {name} (until {ends:%Y-%m-%d})\n{block}\n"


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 - https, see above
        text: str = answer.read().decode()
        return text


def main() -> int:
    """Add a region's roots; return the exit code."""
    parser = argparse.ArgumentParser(description="Take a region's roots of RDS into the layer.")
    parser.add_argument("region", help="as in il-central-1")
    if not IN_CHECKOUT:
        print(
            f"{CERTIFICATES} is in an installed package, which the next installation replaces: set "
            "database.ca_file in cdk.json to a file that has the roots",
            file=sys.stderr,
        )
        return 1
    try:
        names = take(parser.parse_args().region, _fetch)
    except RootsError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(names))
    print("Compare them with AWS's, then commit the files. tests/unit/test_profiles.py pins them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
