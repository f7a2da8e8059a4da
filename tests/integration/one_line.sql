-- What a database had when base and sample were one line: revision 0001, then 0002.
CREATE TABLE alembic_version (
    version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE FUNCTION current_subject() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (
        SELECT CASE WHEN claimed.sub ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                    THEN claimed.sub::uuid END
        FROM (
            SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub' AS sub
        ) AS claimed
    );
COMMENT ON FUNCTION current_subject() IS
    'The sub of the verified token of this transaction; NULL, which owns nothing, without one';
CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner uuid NOT NULL DEFAULT current_subject(),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX users_by_owner ON users (owner, id);
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE users FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON users TO lambda_pg_app
    USING (owner = (SELECT current_subject()))
    WITH CHECK (owner = (SELECT current_subject()));
REVOKE ALL ON FUNCTION current_subject() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION current_subject() TO lambda_pg_app;
GRANT SELECT, INSERT, UPDATE ON users TO lambda_pg_app;
INSERT INTO alembic_version VALUES ('0001');
-- 0002
CREATE OR REPLACE FUNCTION current_subject() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE
        WHEN nullif(current_setting('request.jwt.transaction', true), '')::timestamptz
            = CURRENT_TIMESTAMP
        THEN substring(
            nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
            FROM '(?i)^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        )::uuid
    END;
UPDATE alembic_version SET version_num = '0002';
