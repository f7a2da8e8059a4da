import psycopg
import pytest


@pytest.fixture(scope="session", autouse=True)
def tables(lambda_pg_server):
    with psycopg.connect(lambda_pg_server.url) as connection:
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, total int)")
        connection.execute("INSERT INTO orders VALUES (1, 995)")


def test_an_order_has_a_total(lambda_pg_environment, lambda_context):
    from orders import handler

    assert handler({"id": 1}, lambda_context) == {"statusCode": 200, "body": "995"}
    assert handler({"id": 2}, lambda_context) == {"statusCode": 404}
