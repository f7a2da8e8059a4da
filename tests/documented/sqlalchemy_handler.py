from lambda_pg import Database
from lambda_pg.sqlalchemy import create_engine
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

db = Database.from_env()
engine = create_engine(db)  # connects nothing; options as of sqlalchemy.create_engine

TAKE = text("UPDATE stock SET units = units - 1 WHERE sku = :sku RETURNING units")


@db.bind_lambda_context
def handler(event, context):
    try:
        with engine.begin() as connection:
            left = connection.scalar(TAKE, {"sku": event["sku"]})
    except OperationalError as error:
        seconds = round(getattr(error.orig, "retry_after", 1))
        return {"statusCode": 503, "headers": {"Retry-After": str(max(1, seconds))}}
    return {"statusCode": 200, "body": str(left)}
