// Runs the driver's checks in a Worker: node run_driver_in_workerd.mjs PACKAGE
import { withWorker } from "./workerd.mjs";

const program = `
  import * as driver from ${JSON.stringify(process.argv[2])};
  import { checks } from "./driver.mjs";
  import { report } from "./report.mjs";
  export default {
    fetch: async (_request, env) => new Response(await report(checks(driver, env))),
  };
`;
const source = { stdin: { contents: program, resolveDir: import.meta.dirname } };
const names = ["DATABASE_URL", "SQL_ENDPOINT", "TOKEN", "TOKEN_ENDPOINT", "REGISTERED", "USER_ID"];
const variables = Object.fromEntries(
  names.filter((name) => process.env[name]).map((name) => [name, process.env[name]]),
);
await withWorker(source, variables, async (url) => console.log(await (await fetch(url)).text()));
