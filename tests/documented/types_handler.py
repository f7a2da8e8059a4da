from decimal import Decimal
from enum import Enum
from functools import partial
from json import loads

from lambda_pg import Database
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.hstore import register_hstore
from psycopg.types.json import set_json_loads


class Status(Enum):
    OPEN = "open"
    PAID = "paid"


def configure(connection):  # once for each new connection, before anybody gets it
    labels = {each: each.value for each in Status}
    register_enum(EnumInfo.fetch(connection, "status"), connection, Status, mapping=labels)
    register_composite(CompositeInfo.fetch(connection, "price"), connection)
    register_hstore(TypeInfo.fetch(connection, "hstore"), connection)
    set_json_loads(partial(loads, parse_float=Decimal), connection)


db = Database.from_env(configure=configure)


@db.bind_lambda_context
def handler(event, context):
    query = "SELECT status, total, labels, document FROM invoices WHERE status = %s"
    status, total, labels, document = db.execute(query, (Status.PAID,)).fetchone()
    return {"status": status, "total": total.amount, "labels": labels, "document": document}
