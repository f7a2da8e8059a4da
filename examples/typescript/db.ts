/** One connection for each execution environment, as docs/other-languages.md describes it. */

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { GetSecretValueCommand, SecretsManagerClient } from "@aws-sdk/client-secrets-manager";
import pg from "pg";

/** The database could not be used in time. Nothing was committed. */
export class UnavailableError extends Error {}

/** The answer to COMMIT was lost. Whether the transaction was committed is not certain. */
export class OutcomeUnknownError extends Error {}

export type Claims = Readonly<Record<string, unknown>>;
type Login = { username: string; password: string };
type Held = { client: pg.Client; expiresAt: number; idleSince: number };

const env = process.env;
const checkoutTimeout = 1000 * Number(env.LAMBDA_PG_CHECKOUT_TIMEOUT ?? 3);
const maxLifetime = 1000 * Number(env.LAMBDA_PG_MAX_LIFETIME ?? 600);
const ca = env.LAMBDA_PG_CA_PEM ?? (env.PGSSLROOTCERT && readFileSync(env.PGSSLROOTCERT, "utf8"));

const CHECK_AFTER = 30_000; // a connection that ended in a freeze may not have said so
const MAX_IDLE = 340_000; // load balancers and NAT gateways forget a TCP flow after 350 s
const SECRET_LIFETIME = 900_000; // after a fetch that failed, the old copy serves as long
const SET_CLAIMS =
  "SELECT set_config('request.jwt.claims', $1, true)," +
  " set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true)";

const secrets = new SecretsManagerClient({
  maxAttempts: 1,
  requestHandler: { connectionTimeout: 1000, requestTimeout: 2000 },
});
let login: Login | undefined;
let stage: "AWSCURRENT" | "AWSPREVIOUS" = "AWSCURRENT";
let fetchedAt = 0;
let held: Held | undefined;
let last: Promise<unknown> = Promise.resolve();

/**
 * Run `work` in a transaction with these claims, and return what it returns.
 *
 * `work` may run several times, so it must have no effects but those of its client. Two calls run
 * one after the other: a call inside of `work` would wait for itself.
 */
export function transaction<T>(
  claims: Claims,
  work: (client: pg.ClientBase) => Promise<T>,
): Promise<T> {
  const next = last.then(() => retried(claims, work));
  last = next.catch(() => undefined);
  return next;
}

async function retried<T>(claims: Claims, work: (client: pg.ClientBase) => Promise<T>): Promise<T> {
  const until = Date.now() + checkoutTimeout;
  for (let pause = 50; ; pause = Math.min(500, 2 * pause)) {
    let used: Held | undefined;
    let committing = false;
    try {
      const { client, idleSince } = (used = await checkout(until));
      await client.query(Date.now() - idleSince > CHECK_AFTER ? quick("BEGIN") : "BEGIN");
      await client.query(SET_CLAIMS, [JSON.stringify(claims)]);
      const result = await work(client);
      committing = true;
      const { command } = await client.query("COMMIT");
      if (command !== "COMMIT") throw new Error("a statement failed: nothing was committed");
      used.idleSince = Date.now();
      return result;
    } catch (error) {
      const isAlive = used !== undefined && (await rolledBack(used));
      if (committing && !isAlive) {
        throw new OutcomeUnknownError("the answer to COMMIT was lost", { cause: error });
      }
      if (isAlive && !isConflict(error)) throw error;
      const rest = Math.random() * pause;
      if (Date.now() + rest >= until) {
        throw new UnavailableError(`no success in ${checkoutTimeout} ms`, { cause: error });
      }
      await sleep(rest);
    }
  }
}

/** Roll back; tell whether the connection is alive. If it is not, the server rolls back. */
async function rolledBack(used: Held): Promise<boolean> {
  try {
    await used.client.query(quick("ROLLBACK"));
    used.idleSince = Date.now();
    return true;
  } catch {
    drop(used);
    return false;
  }
}

function quick(text: string) {
  return { text, query_timeout: 1000 };
}

/** Tell whether the server rolled the transaction back because of another one. */
function isConflict(error: unknown): boolean {
  return error instanceof pg.DatabaseError && ["40001", "40P01"].includes(error.code ?? "");
}

async function checkout(until: number): Promise<Held> {
  const now = Date.now();
  if (held && (now >= held.expiresAt || now - held.idleSince > MAX_IDLE)) drop(held);
  return (held ??= await connect(until));
}

function drop(used: Held): void {
  if (held === used) held = undefined;
  used.client.end().catch(() => undefined);
}

async function connect(until: number): Promise<Held> {
  const isCached = login !== undefined && Date.now() - fetchedAt < SECRET_LIFETIME;
  const tried = isCached ? "a cached copy" : stage;
  if (!isCached) login = await fetchLogin();
  const client = new pg.Client({
    host: env.PGHOST,
    port: Number(env.PGPORT),
    database: env.PGDATABASE,
    user: login?.username,
    password: login?.password,
    application_name: env.PGAPPNAME,
    ssl: { ca }, // the chain and the name are verified
    connectionTimeoutMillis: Math.max(100, until - Date.now()),
    query_timeout: 15_000, // above the database's statement_timeout, below the function's timeout
  });
  const now = Date.now();
  const opened = {
    client,
    expiresAt: now + maxLifetime * (0.8 + 0.2 * Math.random()), // a fleet's do not end together
    idleSince: now,
  };
  client.on("error", () => drop(opened));
  client.on("end", () => drop(opened));
  try {
    await client.connect();
  } catch (error) {
    drop(opened);
    if (isRefused(error)) {
      login = undefined; // the next attempt fetches the secret
      stage = tried === "AWSCURRENT" ? "AWSPREVIOUS" : "AWSCURRENT";
    }
    throw error;
  }
  return opened;
}

function isRefused(error: unknown): boolean {
  if (!(error instanceof pg.DatabaseError)) return false;
  return ["28P01", "28000"].includes(error.code ?? "") || /^SASL auth/.test(error.message);
}

async function fetchLogin(): Promise<Login> {
  await sleep(Math.max(0, fetchedAt + 500 - Date.now())); // a fleet asks while a rotation lasts
  fetchedAt = Date.now();
  const asked = { SecretId: env.LAMBDA_PG_SECRET_ARN, VersionStage: stage };
  stage = "AWSCURRENT";
  const { SecretString } = await secrets.send(new GetSecretValueCommand(asked));
  try {
    return JSON.parse(SecretString ?? "") as Login;
  } catch {
    throw new Error(`the secret ${asked.SecretId} is not JSON`); // JSON's own error quotes it
  }
}
