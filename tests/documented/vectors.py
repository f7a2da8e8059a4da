from lambda_pg import Database
from pgvector.psycopg import register_vector

db = Database.from_env(configure=register_vector)


def embedding(item):  # a Vector of pgvector's
    return db.execute("SELECT embedding FROM items WHERE id = %s", (item,)).fetchone()[0]
