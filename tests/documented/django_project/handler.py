import django
from django.db import OperationalError, connections
from lambda_pg.django import database

django.setup()


@database().bind_lambda_context
def handler(event, context):
    from django.contrib.contenttypes.models import ContentType

    try:
        return {"statusCode": 200, "body": str(ContentType.objects.count())}
    except OperationalError as error:
        seconds = round(getattr(error.__cause__, "retry_after", 1))
        return {"statusCode": 503, "headers": {"Retry-After": str(max(1, seconds))}}
    finally:
        connections.close_all()  # back into the layer's pool
