"""RDS Proxy with the application's secret: the login is there as soon as the proxy's stack is."""

from pathlib import Path

import psycopg

from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.paths import another_state_dir
from tests.support.cdk import application_login, bootstrap, deploy


def test_the_login_of_a_proxy_comes_with_its_stack(tmp_path: Path) -> None:
    """The provider and the rotation's function make it, and those of `/sql`'s roles."""
    with LocalCloud(another_state_dir(), Options(bound=True, deploy=False)) as cloud:
        override = {
            "pooler": "rds-proxy",
            "rds_proxy": {"auth": "secret"},
            "database": {
                "rotation": "single",
                "ca_file": str(cloud.folder / "postgres" / "ca.pem"),
            },
            "baseline": False,
        }
        bootstrap(cloud, tmp_path)
        deploy(cloud, tmp_path, override, "LambdaPg-local-Pooler")
        listed = cloud.client("cloudformation").list_stacks()["StackSummaries"]
        assert not [each for each in listed if each["StackName"].endswith("-Api")]
        dsn = cloud.status()["postgres"]["dsn"]
        for role in ("reader", "writer", "caller"):
            of_sql = application_login(cloud, f"sql/{role}/secret-arn")
            user, password = of_sql["username"], of_sql["password"]
            with psycopg.connect(dsn, user=user, password=password) as connection:
                assert connection.info.user == f"sql_{role}"
        login = application_login(cloud)
        with psycopg.connect(dsn, user=login["username"], password=login["password"]) as connection:
            row = connection.execute("SELECT to_regclass('users')").fetchone()
        assert row == (None,), "the migration has made the table: this test shows nothing then"
