"""Regions whose databases nobody here could verify, and how their roots are taken in."""

import shutil
from pathlib import Path

import pytest

from lambda_pg_cdk.layer.roots import (
    BLOCK,
    CERTIFICATES,
    RootsError,
    bundle_url,
    known_regions,
    take,
)
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.schema import ConfigurationError

REGION = "il-central-1"
WITHOUT = [
    "il-central-1",
    "ca-west-1",
    "mx-central-1",
    "ap-southeast-5",
    "ap-southeast-6",
    "ap-southeast-7",
    "ap-east-2",
    "us-gov-west-1",
    "us-gov-east-1",
    "cn-north-1",
    "cn-northwest-1",
    "xx-nowhere-1",
]


def of_region(region: str, **settings: object) -> Config:
    """Read the stage dev as if it were in another region."""
    zones = [f"{region}a", f"{region}b"]
    return load_stage("dev", {"region": region, "availability_zones": zones, **settings})


@pytest.mark.parametrize("region", WITHOUT)
def test_a_region_without_roots_is_refused(region: str) -> None:
    """Before anything is deployed, and with both remedies."""
    with pytest.raises(ConfigurationError) as refused:
        of_region(region)
    (problem,) = refused.value.problems
    assert f"region is '{region}'" in problem
    assert f"python -m lambda_pg_cdk.layer.roots {region}" in problem
    assert "database.ca_file" in problem


@pytest.mark.parametrize("region", sorted(known_regions()))
def test_a_region_with_roots_is_taken(region: str) -> None:
    """Each of the layer's files is of one."""
    assert of_region(region).region == region


def test_a_named_file_replaces_the_roots() -> None:
    """A named file is not checked."""
    assert of_region(REGION, database={"ca_file": "/var/task/rds.pem"}).region == REGION


def test_a_stage_without_rds_needs_no_roots_of_it() -> None:
    """An external pooler brings its own database."""
    arn = f"arn:aws:secretsmanager:{REGION}:111122223333:secret:pooler-AbCdEf"
    external = {"pooler": "external", "external": {"secret_arn": arn}}
    assert of_region(REGION, database={"kind": "none"}, **external).region == REGION


def test_the_server_s_roots_do_not_depend_on_the_pooler() -> None:
    """RDS Proxy has Amazon's certificate, but the migration goes to the database itself."""
    with pytest.raises(ConfigurationError, match="RDS root certificates"):
        of_region(REGION, pooler="rds-proxy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a copy of the layer's roots."""
    return Path(shutil.copytree(CERTIFICATES, tmp_path / "certs"))


def roots(region: str) -> str:
    """Make a bundle as AWS offers it."""
    kinds = ("RSA2048", "RSA4096", "ECC384")
    return "".join(Authority.create(f"Amazon RDS {region} Root CA {kind} G1").pem for kind in kinds)


def test_a_region_s_roots_are_taken_in(folder: Path) -> None:
    """Into its own file and into the one with all of them, once."""
    asked: list[str] = []
    bundle = roots(REGION)

    def fetch(url: str) -> str:
        asked.append(url)
        return bundle

    before = (folder / "aws.pem").read_text()
    names = take(REGION, fetch, folder)
    take(REGION, fetch, folder)
    assert asked == [f"https://truststore.pki.rds.amazonaws.com/{REGION}/{REGION}-bundle.pem"] * 2
    assert names == [
        f"Amazon RDS {REGION} Root CA {k} G1" for k in ("RSA2048", "RSA4096", "ECC384")
    ]
    assert REGION in known_regions(folder)
    own = (folder / "rds" / f"{REGION}.pem").read_text()
    assert BLOCK.findall(own) == BLOCK.findall(bundle)
    assert (folder / "aws.pem").read_text() == before + own
    assert own.startswith(f"# {names[0]} (until ")


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-gov-east-1", "truststore.pki.us-gov-west-1.rds.amazonaws.com"),
        ("cn-northwest-1", "rds-truststore.s3.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_other_partitions_have_a_store_of_their_own(region: str, host: str) -> None:
    """AWS's pages name them."""
    assert bundle_url(region) == f"https://{host}/{region}/{region}-bundle.pem"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no certificate in it"),
        (roots("eu-west-1"), "not a root of il-central-1"),
        (Authority.create("Somebody's Root").pem, "not a root of il-central-1"),
        (
            Authority.create(f"Amazon RDS {REGION} Root CA").issue(["db.example"]).chain,
            "has (a|the) certificate",
        ),
    ],
    ids=["nothing", "another region's", "somebody's", "a server's"],
)
def test_what_is_not_a_root_of_the_region_is_refused(folder: Path, text: str, told: str) -> None:
    """And nothing is written."""
    before = (folder / "aws.pem").read_text()
    with pytest.raises(RootsError, match=told):
        take(REGION, lambda _: text, folder)
    assert (folder / "aws.pem").read_text() == before
    assert REGION not in known_regions(folder)


def test_an_unreachable_store_is_named(folder: Path) -> None:
    """With the reason, and what to do."""

    def fetch(url: str) -> str:
        raise OSError("Name or service not known")

    with pytest.raises(
        RootsError, match=r"cannot be fetched: Name or service.*Run this on a machine"
    ):
        take(REGION, fetch, folder)
    with pytest.raises(RootsError, match="not a region"):
        take("../../etc", fetch, folder)
