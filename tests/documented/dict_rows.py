from lambda_pg import Database
from psycopg.rows import dict_row

db = Database.from_env(row_factory=dict_row)


@db.bind_lambda_context
def handler(event, context):
    query = "SELECT id, total FROM orders WHERE id = %s"
    return db.execute(query, (event["id"],), idempotent=True).fetchone()  # {"id": 1, "total": 995}
