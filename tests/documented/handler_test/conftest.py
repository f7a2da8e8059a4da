pytest_plugins = ["lambda_pg.testing"]
