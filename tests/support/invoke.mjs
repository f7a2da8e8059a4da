// An execution environment of Node.js: invokes a handler with each line of standard input.

import { createInterface } from "node:readline";

const { handler } = await import(process.argv[2]);
for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = await handler(JSON.parse(line));
  } catch (error) {
    answer = { error: `${error}`, code: error.code };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);
