from lambda_pg import Database
from psycopg.rows import dict_row

db = Database.from_env(row_factory=dict_row)  # a row is {"id": 1, "total": 995}
