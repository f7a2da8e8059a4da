// Runs the driver's checks in the edge runtime: node run_driver_in_edge.mjs PACKAGE
import { inEdge } from "./edge.mjs";

const contents = `
  import * as driver from ${JSON.stringify(process.argv[2])};
  import { checks } from "./driver.mjs";
  import { report } from "./report.mjs";
  globalThis.reported = report(checks(driver, process.env));
`;
const source = { stdin: { contents, resolveDir: import.meta.dirname } };
console.log(await (await inEdge(source, process.env)).reported);
