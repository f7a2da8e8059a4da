"""Run deployed databases in the local PostgreSQL; manage master passwords as RDS does."""

import json
import uuid
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane.cloud import Cloud
from lambda_pg_cdk.local.control_plane.handlers import Handlers, Made, Properties, complete, is_true


def install(table: dict[str, Handlers], provisioners: Any, cloud: Cloud) -> None:
    """Complete the handlers of instances and of Aurora's clusters."""
    databases = _Databases(provisioners, cloud)
    complete(table["AWS::RDS::DBInstance"], databases.instance)
    complete(table["AWS::RDS::DBCluster"], databases.cluster)
    _delete_secret_too(table["AWS::RDS::DBInstance"], databases.rds._instances)
    _delete_secret_too(table["AWS::RDS::DBCluster"], databases.rds._clusters)


class _Databases:
    """Completes the creation and the update of databases."""

    def __init__(self, provisioners: Any, cloud: Cloud) -> None:
        self.rds = import_module("ministack.services.rds")
        self._provisioners = provisioners
        self._cloud = cloud

    def instance(self, made: Made, props: Properties) -> Made:
        """Give an instance its address: the local PostgreSQL's, or that of its cluster.

        A member of a cluster has the master user of the cluster.
        """
        instance = self.rds._instances[made[0]]
        cluster = self.rds._clusters.get(instance.get("DBClusterIdentifier") or "")
        if cluster is None:
            found = self._provide(instance, props, "db", props.get("DBName", ""))
        else:
            found = {"host": cluster["Endpoint"], "port": cluster["Port"]}
        instance["Endpoint"].update(Address=found["host"], Port=int(found["port"]))
        attributes = self._provisioners._rds_db_instance_attrs(instance)
        return made[0], attributes | _secret_attributes(instance)

    def cluster(self, made: Made, props: Properties) -> Made:
        """Give a cluster its addresses: its readers are the same server here."""
        cluster = self.rds._clusters[made[0]]
        found = self._provide(cluster, props, "cluster", props.get("DatabaseName", ""))
        host, port = found["host"], int(found["port"])
        cluster.update(Endpoint=host, ReaderEndpoint=host, Port=port)
        attributes = self._provisioners._rds_db_cluster_attrs(cluster)
        return made[0], attributes | _secret_attributes(cluster)

    def _provide(
        self, record: dict[str, Any], props: Properties, kind: str, name: str
    ) -> dict[str, Any]:
        if is_true(props.get("ManageMasterUserPassword")):
            self._manage_password(record, kind)
        user, password = record["MasterUsername"], record["_MasterUserPassword"]
        return self._cloud.provide_database(user, password, name)

    def _manage_password(self, record: dict[str, Any], kind: str) -> None:
        """Keep the master password in a secret that RDS manages; an update does not change it."""
        secrets = import_module("ministack.services.secretsmanager")
        if secret := record.get("MasterUserSecret"):
            current = secrets.resolve_secret_string(secret["SecretArn"])
            record["_MasterUserPassword"] = json.loads(current)["password"]
            return
        password = record["_MasterUserPassword"] = self.rds._generate_master_user_password()
        content = {"username": record["MasterUsername"], "password": password}
        arn = secrets.create_secret_in_process(
            f"rds!{kind}-{uuid.uuid4()}",
            json.dumps(content),
            description="The master user's password, managed by RDS",
        )
        record["MasterUserSecret"] = {"SecretArn": arn, "SecretStatus": "active"}


def _secret_attributes(record: dict[str, Any]) -> dict[str, Any]:
    secret = record.get("MasterUserSecret")
    return {"MasterUserSecret.SecretArn": secret["SecretArn"]} if secret else {}


def _delete_secret_too(handlers: Handlers, store: Any) -> None:
    """Delete a managed secret with its database."""
    secrets = import_module("ministack.services.secretsmanager")
    delete = handlers["delete"]

    def delete_both(physical_id: str, props: Properties) -> None:
        secret = (store.get(physical_id) or {}).get("MasterUserSecret")
        delete(physical_id, props)
        if secret:
            secrets.delete_secret_in_process(secret["SecretArn"])

    handlers["delete"] = delete_both
