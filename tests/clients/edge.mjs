// The edge runtime that Next.js uses, with one program, as a bundle of its source.
import { EdgeVM } from "@edge-runtime/vm";
import { build } from "esbuild";

// Return the context in which a program has run whose `process.env` has these variables.
export async function inEdge(source, variables) {
  const { outputFiles } = await build({
    ...source,
    bundle: true,
    write: false,
    platform: "browser",
    conditions: ["edge-light", "worker"],
    nodePaths: [`${import.meta.dirname}/node_modules`],
    logLevel: "error",
  });
  const process = { env: variables };
  const runtime = new EdgeVM({ extend: (context) => Object.assign(context, { process }) });
  runtime.evaluate(outputFiles[0].text);
  return runtime.context;
}
