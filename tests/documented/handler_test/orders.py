from lambda_pg import Database

db = Database.from_env()


@db.bind_lambda_context
def handler(event, context):
    query = "SELECT total FROM orders WHERE id = %s"
    row = db.execute(query, (event["id"],), idempotent=True).fetchone()
    return {"statusCode": 200, "body": str(row[0])} if row else {"statusCode": 404}
