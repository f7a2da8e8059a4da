// Runs queries by node-postgres over TCP: reads {connection, queries, elements} as JSON, writes one
// answer for each query. `elements` maps the ids of array types to those of their elements.
//
//   node node_postgres.mjs NODE_MODULES < order.json

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(`${process.argv[2]}/`);
const pg = require("pg");
const { parse } = require("postgres-array");
const order = JSON.parse(readFileSync(0, "utf8"));

// What the protocol turns into JSON; node-postgres has parsers for more.
const CONVERTED = new Set([16, 21, 23, 700, 701, 114, 3802]);

function parserOf(oid) {
  const element = order.elements[oid];
  if (element !== undefined) return (text) => parse(text, parserOf(element));
  return CONVERTED.has(oid) ? pg.types.getTypeParser(oid, "text") : (text) => text;
}

const RAW = { getTypeParser: () => (text) => text };
const CONVERTING = { getTypeParser: parserOf };

// JSON has no NaN and no infinities: the protocol writes them as strings.
const written = (_, value) =>
  typeof value === "number" && !Number.isFinite(value) ? String(value) : value;

async function answer(client, text) {
  const answers = {};
  for (const [name, types] of [["raw", RAW], ["converted", CONVERTING]]) {
    for (const [mode, rowMode] of [["arrays", "array"], ["objects", undefined]]) {
      const result = await client.query({ text, types, rowMode });
      answers.fields = result.fields;
      answers.command = result.command;
      answers.rowCount = result.rowCount;
      answers[`${name} ${mode}`] = result.rows;
    }
  }
  return answers;
}

const client = new pg.Client({
  ...order.connection,
  ssl: { ca: readFileSync(order.connection.ca, "utf8") },
});
await client.connect();
const answers = [];
for (const text of order.queries) answers.push(await answer(client, text));
await client.end();
process.stdout.write(JSON.stringify(answers, written));
