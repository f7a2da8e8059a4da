// What @neondatabase/serverless does over POST /sql. Only Web APIs: an edge runtime runs it too.

const LEVELS = ["ReadUncommitted", "ReadCommitted", "RepeatableRead", "Serializable"];

export function checks(driver, settings) {
  const { neon, neonConfig, Pool } = driver;
  const { DATABASE_URL, SQL_ENDPOINT, TOKEN_ENDPOINT } = settings;
  neonConfig.disableWarningInBrowsers = true;
  if (SQL_ENDPOINT)
    neonConfig.fetchEndpoint = (_host, _port, { jwtAuth } = {}) =>
      jwtAuth ? TOKEN_ENDPOINT : SQL_ENDPOINT;
  const sql = neon(DATABASE_URL);
  return {
    ...queries(neon, sql, DATABASE_URL),
    ...transactions(neon, sql, DATABASE_URL),
    ...errors(neon, sql, DATABASE_URL),
    ...pools(neon, neonConfig, Pool, DATABASE_URL),
    ...(settings.TOKEN && tokens(neon, DATABASE_URL, settings)),
  };
}

function queries(neon, sql, url) {
  const ada = sql`WHERE name = ${"Ada"}`;
  return {
    template: () => sql`SELECT ${1}::int + ${2}::int AS sum`,
    "composed template": () =>
      sql`SELECT id FROM authors ${ada} OR id = ${2} ORDER BY ${sql.unsafe("id")}`,
    query: () => sql.query("SELECT $1::text AS word, $2::int[] AS numbers", ["x", [1, 2]]),
    "array mode": () => sql.query("SELECT 1 AS a, 2 AS a", [], { arrayMode: true }),
    "full results": async () => {
      const { fields, rows, command, rowCount, rowAsArray } = await sql.query(
        "SELECT id, name FROM authors ORDER BY id",
        [],
        { fullResults: true },
      );
      return { fields, rows, command, rowCount, rowAsArray };
    },
    "full results in array mode": async () => {
      const sqlWithAll = neon(url, { arrayMode: true, fullResults: true });
      const { rows, command, rowCount, rowAsArray } = await sqlWithAll`SELECT 1 AS one`;
      return { rows, command, rowCount, rowAsArray };
    },
    types:
      () => sql`SELECT 9007199254740993::int8 AS int8, 1.50::numeric AS numeric, 0.5::float8 AS float8,
      true AS bool, '{"a": [1]}'::jsonb AS jsonb, ARRAY['a', NULL] AS texts, NULL AS nothing,
      '2026-12-01 00:00:00+00'::timestamptz AS at, '\\x00ff'::bytea = ${new Uint8Array([0, 255])} AS bytes`,
    "parameters of each type":
      () => sql`SELECT ${"ä"} AS text, ${1.5}::float8 AS float, ${true}::bool AS bool,
      ${null}::int AS nothing, ${{ a: [1, null] }}::jsonb AS json, ${["a", 'b"', null]}::text[] AS texts,
      ${12345678901234567890n}::numeric AS big, ${new Date(0)}::timestamptz AS at`,
    insert: () =>
      sql`INSERT INTO books (title, author_id, pages) VALUES (${"Sketch"}, 1, 10) RETURNING title, pages`,
    "row count of an update": async () => {
      const done = await sql.query("UPDATE books SET pages = 11 WHERE title = 'Sketch'", [], {
        fullResults: true,
      });
      return {
        command: done.command,
        rowCount: done.rowCount,
        fields: done.fields,
        rows: done.rows,
      };
    },
    "large answer": async () => {
      const rows = await sql`SELECT repeat(${"ä"}, 100) AS text FROM generate_series(1, 5000)`;
      return rows.filter(({ text }) => text === "ä".repeat(100)).length;
    },
    "too large an answer": () => sql`SELECT repeat('x', 1000000) FROM generate_series(1, 10)`,
    "empty query": async () => (await sql.query("-- nothing", [], { fullResults: true })).command,
  };
}

function transactions(neon, sql, url) {
  const isolation = (isolationLevel) => async () => {
    const [[{ transaction_isolation: level }]] = await sql.transaction(
      [sql`SHOW transaction_isolation`],
      { isolationLevel },
    );
    return level;
  };
  return {
    ...Object.fromEntries(LEVELS.map((level) => [`isolation ${level}`, isolation(level)])),
    "batch by a function": () =>
      sql.transaction((tx) => [tx`SELECT 1 AS one`, tx`SELECT ${"two"} AS two`]),
    "batch is one transaction": async () => {
      const [[first], [second]] = await sql.transaction([
        sql`SELECT now() AS at`,
        sql`SELECT now() AS at`,
      ]);
      return first.at.getTime() === second.at.getTime();
    },
    "batch with full results": async () => {
      const results = await sql.transaction([sql`SELECT 1 AS one`], {
        fullResults: true,
        arrayMode: true,
      });
      return results.map(({ command, rowCount, rows }) => ({ command, rowCount, rows }));
    },
    "empty batch": () => sql.transaction([]),
    "read only": async () => {
      const [[{ transaction_read_only: state }]] = await sql.transaction(
        [sql`SHOW transaction_read_only`],
        { readOnly: true },
      );
      return state;
    },
    "write in read only": () => sql.transaction([sql`DELETE FROM books`], { readOnly: true }),
    deferrable: async () => {
      const options = { isolationLevel: "Serializable", readOnly: true, deferrable: true };
      const [[{ transaction_deferrable: state }]] = await sql.transaction(
        [sql`SHOW transaction_deferrable`],
        options,
      );
      return state;
    },
    "options of the client": async () => {
      const strict = neon(url, { isolationLevel: "Serializable", readOnly: true });
      const [[level], [state]] = await strict.transaction([
        strict`SHOW transaction_isolation`,
        strict`SHOW transaction_read_only`,
      ]);
      return { ...level, ...state };
    },
    "failed batch": () =>
      sql.transaction([
        sql`INSERT INTO authors (name) VALUES ('Nobody')`,
        sql`INSERT INTO authors (name) VALUES ('Ada')`,
      ]),
    "failed batch left nothing": () =>
      sql`SELECT count(*)::int AS rows FROM authors WHERE name = 'Nobody'`,
    "unknown isolation level": () => sql.transaction([sql`SELECT 1`], { isolationLevel: "Chaos" }),
  };
}

function errors(neon, sql, url) {
  const wrong = new URL(url);
  wrong.password = "wrong";
  return {
    "unique violation": () => sql`INSERT INTO authors (name) VALUES (${"Ada"})`,
    "check violation": () => sql`UPDATE books SET pages = ${-1} WHERE id = 1`,
    "syntax error": () => sql.query("SELECT 1 FRM books"),
    "unknown column": () => sql`SELECT nothing FROM books`,
    "invalid input": () => sql`SELECT ${"x"}::int`,
    "several statements": () => sql.query("SELECT 1; SELECT 2"),
    "raised in a function": () => sql.query("SELECT refuse($1)", ["no"]),
    "wrong password": () => neon(wrong.href)`SELECT 1`,
    "not in a transaction block": () => sql.query("VACUUM"),
  };
}

function pools(neon, neonConfig, Pool, url) {
  const pooled = (use) => async () => {
    neonConfig.poolQueryViaFetch = true;
    const pool = new Pool({ connectionString: url });
    const { rows, rowCount, command } = await use(pool);
    return { rows, rowCount, command };
  };
  return {
    "pool by fetch": pooled((pool) => pool.query("SELECT $1::int AS n", [7])),
    "pool by fetch, a failed statement": pooled((pool) => pool.query("SELECT 1/0")),
    // Only from 1.2.0 on the password may come from a function, at each query.
    "password function": () => {
      const { password } = new URL(url);
      const without = new URL(url);
      without.password = "";
      const sql = neon(without.href, { password: async () => decodeURIComponent(password) });
      return sql`SELECT 1 AS one`;
    },
  };
}

// A caller with a token may run registered statements only; rows are those of the token's subject.
function tokens(neon, url, { TOKEN, REGISTERED, USER_ID }) {
  const without = new URL(url);
  without.password = "";
  const ask = (authToken) => neon(without.href, { authToken }).query(REGISTERED, [USER_ID]);
  return {
    "auth token": () => ask(TOKEN),
    "auth token of a function": () => ask(async () => TOKEN),
    "auth token, a free statement": () => neon(without.href, { authToken: TOKEN })`SELECT 1 AS one`,
    "a wrong auth token": () => ask(`${TOKEN}x`),
  };
}
