// Bundles a TypeScript program for Node.js: node bundle.mjs SOURCE OUTPUT
import { build } from "esbuild";

const [source, outfile] = process.argv.slice(2);
await build({
  entryPoints: [source],
  outfile,
  bundle: true,
  platform: "node",
  format: "esm",
  logLevel: "error",
  banner: {
    js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);',
  },
});
