"""Answers to changes that were sent with an Idempotency-Key, each written with its change.

Functions use this by `change_once` of lambda_pg.http_api (docs/decisions/0053).
"""

from alembic import op

revision = "lambda_pg_0003"
down_revision = "lambda_pg_0002"

KEYS = """
CREATE TABLE idempotency_keys (
    owner uuid NOT NULL,
    id bytea NOT NULL CHECK (octet_length(id) = 32),
    request bytea NOT NULL CHECK (octet_length(request) = 32),
    status smallint NOT NULL CHECK (status BETWEEN 200 AND 299),
    headers jsonb NOT NULL,
    body bytea NOT NULL CHECK (octet_length(body) <= 65536),
    expires_at timestamptz NOT NULL DEFAULT now() + interval '24 hours',
    PRIMARY KEY (owner, id)
)
"""

COMMENT = """
COMMENT ON TABLE idempotency_keys IS
    'The answer to each change that a caller sent with an Idempotency-Key; id is a hash of API,'
    ' method, path and key, request one of the whole request'
"""

OWN_ROWS = """
CREATE POLICY own_rows ON idempotency_keys TO lambda_pg_app
    USING (owner = (SELECT current_subject()))
    WITH CHECK (owner = (SELECT current_subject()))
"""

EXPIRED_ROWS = """
CREATE POLICY expired_rows ON idempotency_keys TO CURRENT_USER USING (expires_at <= now())
"""
"""Lets the owner delete what has expired. FORCE hides every row from the owner otherwise."""

CLAIM = """
CREATE FUNCTION claim_idempotency_key(
    caller uuid, key bytea, lock bigint, keep boolean,
    OUT claimed boolean, OUT request bytea, OUT status smallint, OUT headers jsonb, OUT body bytea
) LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    stored idempotency_keys;
BEGIN
    IF keep THEN
        claimed := pg_catalog.pg_try_advisory_xact_lock(lock);
    ELSE
        BEGIN
            claimed := pg_catalog.pg_try_advisory_xact_lock_shared(lock);
            RAISE EXCEPTION USING ERRCODE = 'LP000';
        EXCEPTION WHEN SQLSTATE 'LP000' THEN
        END;
    END IF;
    SELECT * INTO stored FROM idempotency_keys AS k WHERE k.owner = caller AND k.id = key;
    IF stored.expires_at > CURRENT_TIMESTAMP THEN
        claimed := false;
        request := stored.request;
        status := stored.status;
        headers := stored.headers;
        body := stored.body;
    ELSIF claimed AND keep THEN
        IF stored.id IS NOT NULL THEN
            PERFORM FROM idempotency_keys AS k WHERE k.owner = caller AND k.id = key
                FOR UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                claimed := false;
                RETURN;
            END IF;
        END IF;
        IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
            INSERT INTO idempotency_keys VALUES (caller, key, key, 200, '{}', '')
                ON CONFLICT DO NOTHING;
        END IF;
        DELETE FROM idempotency_keys AS k WHERE k.owner = caller AND k.id = key;
        PERFORM pg_catalog.pg_current_xact_id();
    END IF;
END
$$
"""
"""Claim a key for this transaction, or return its stored answer. It never waits: neither a claim
nor an answer means that another transaction has the key, or is deleting its expired row. Without
`keep` it only looks: the end of the inner block releases the lock at once, so that many looks keep
nobody from claiming the key.

VOLATILE, so that under READ COMMITTED the row is looked for after the lock was taken: the snapshot
of the caller's statement does not have what the last holder has just committed. With the other
levels one snapshot serves the whole transaction: there the INSERT fails for such a row with a
serialization failure, and the transaction is retried."""


STORE = """
CREATE FUNCTION store_idempotent_answer(
    caller uuid, key bytea, request bytea, status smallint, headers jsonb, body bytea
) RETURNS void LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    expired bytea[];
BEGIN
    INSERT INTO idempotency_keys VALUES (caller, key, request, status, headers, body);
    expired := ARRAY(
        SELECT e.id FROM idempotency_keys AS e
        WHERE e.owner = caller AND e.expires_at <= CURRENT_TIMESTAMP
        ORDER BY e.expires_at LIMIT 10 FOR UPDATE SKIP LOCKED
    );
    IF expired <> '{}' THEN
        DELETE FROM idempotency_keys AS k WHERE k.owner = caller AND k.id = ANY (expired);
    END IF;
END
$$
"""
"""Store the answer to a key that this transaction has claimed, and delete at most ten expired rows
of the caller, without a wait for others that delete them. A function, because a session keeps its
plans: as two statements this took the server three times as long (measured). An array, so that
the rows are looked for once: where a plan joins with IN by a loop, it would delete ten others each
time (seen). Without enable_seqscan, because plans that were made for a small table remain when it
has grown: each write then read all of it four times until the next ANALYZE (seen)."""

FUNCTIONS = (
    "FUNCTION claim_idempotency_key(uuid, bytea, bigint, boolean)",
    "FUNCTION store_idempotent_answer(uuid, bytea, bytea, smallint, jsonb, bytea)",
)


def upgrade() -> None:
    """Apply the revision."""
    op.execute(KEYS)
    op.execute(COMMENT)
    op.execute("CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (owner, expires_at)")
    op.execute("ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY")
    op.execute(OWN_ROWS)
    op.execute(EXPIRED_ROWS)
    # UPDATE of one column is what FOR UPDATE needs: no answer is ever changed.
    verbs = "SELECT, INSERT, DELETE, UPDATE (expires_at)"
    op.execute(f"GRANT {verbs} ON idempotency_keys TO lambda_pg_app")
    op.execute(CLAIM)
    op.execute(STORE)
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON {function} TO lambda_pg_app")


def downgrade() -> None:
    """Forget all keys, as functions of an older version do not know them."""
    for function in FUNCTIONS:
        op.execute(f"DROP {function}")
    op.execute("DROP TABLE idempotency_keys")
