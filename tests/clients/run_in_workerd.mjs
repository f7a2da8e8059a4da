// Runs a Worker and prints its answer: node run_in_workerd.mjs SOURCE
import { withWorker } from "./workerd.mjs";

const { DATABASE_URL, SQL_ENDPOINT } = process.env;
const variables = { DATABASE_URL, ...(SQL_ENDPOINT && { SQL_ENDPOINT }) };
await withWorker({ entryPoints: [process.argv[2]] }, variables, async (url) =>
  console.log(await (await fetch(url)).text()),
);
