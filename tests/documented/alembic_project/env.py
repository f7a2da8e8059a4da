from alembic import context
from lambda_pg import Database
from lambda_pg.sqlalchemy import create_engine

engine = create_engine(Database.from_env(direct=True))  # DIRECT_URL, past the pooler

with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
