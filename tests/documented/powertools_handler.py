from aws_lambda_powertools import Logger
from aws_lambda_powertools.logging.utils import copy_config_to_registered_loggers
from lambda_pg import Database

logger = Logger(service="orders")
copy_config_to_registered_loggers(logger, include={"lambda_pg"})
db = Database.from_env()


@logger.inject_lambda_context
@db.bind_lambda_context
def handler(event, context):
    orders = db.execute("SELECT id FROM orders LIMIT 100", idempotent=True).fetchall()
    logger.info("listed", extra={"database": db.stats()})
    return {"statusCode": 200, "body": str(len(orders))}
