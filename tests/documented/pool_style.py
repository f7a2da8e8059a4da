from lambda_pg import Database

db = Database.from_env()  # was: pool = ConnectionPool(conninfo, min_size=1, max_size=1)


def names():
    with db.connection() as conn:  # was: with pool.connection() as conn
        return [row[0] for row in conn.execute("SELECT name FROM users ORDER BY name")]


def move(sender, receiver, amount):
    with db.transaction() as conn:  # was: with pool.connection() as conn
        query = "UPDATE accounts SET balance = balance + %s WHERE name = %s"
        conn.execute(query, (-amount, sender))
        conn.execute(query, (amount, receiver))


def load(rows):
    conn = db.getconn()
    try:
        with conn.transaction(), conn.cursor() as cursor:
            cursor.executemany("INSERT INTO users (name) VALUES (%s)", rows)
    finally:
        db.putconn(conn)
