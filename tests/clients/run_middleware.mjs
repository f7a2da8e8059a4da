// Runs examples/edge/middleware.ts in the edge runtime: node run_middleware.mjs PATH…
import { inEdge } from "./edge.mjs";
import { report } from "./report.mjs";

const contents = `
  import { middleware } from "./middleware.ts";
  globalThis.middleware = middleware;
`;
const resolveDir = `${import.meta.dirname}/../../examples/edge`;
const { middleware, Request } = await inEdge({ stdin: { contents, resolveDir } }, process.env);

const answer = async (path) => {
  const response = await middleware(new Request(`https://site.example${path}`));
  return response && { status: response.status, location: response.headers.get("location") };
};
const paths = process.argv.slice(2);
console.log(
  await report(
    Object.fromEntries(paths.map((path) => [path, async () => (await answer(path)) ?? null])),
  ),
);
