from lambda_pg import Database
from psycopg.types import TypeInfo
from psycopg.types.shapely import register_shapely


def configure(connection):
    register_shapely(TypeInfo.fetch(connection, "geometry"), connection)


db = Database.from_env(configure=configure)


def outline(name):  # a shape of Shapely's
    return db.execute("SELECT outline FROM places WHERE name = %s", (name,)).fetchone()[0]
