// Cloudflare's workerd with one Worker, as a bundle of its source.
import { spawn } from "node:child_process";
import { copyFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { build } from "esbuild";
import workerd from "workerd";

const CONTROL = 3; // the descriptor where workerd writes the ports that it listens on

// Start a Worker whose `env` has these variables; call `use` with its URL, and stop it.
export async function withWorker(source, variables, use) {
  const folder = await mkdtemp(join(tmpdir(), "worker-"));
  const compiled = [];
  const options = {
    bundle: true,
    format: "esm",
    plugins: [webAssembly(folder, compiled)],
    external: ["node:*"],
    platform: "browser",
    conditions: ["workerd", "worker"],
    nodePaths: [`${import.meta.dirname}/node_modules`],
    logLevel: "error",
  };
  await build({ ...source, ...options, outfile: join(folder, "worker.js") });
  await writeFile(join(folder, "config.capnp"), configuration(Object.keys(variables), compiled));
  const serve = ["serve", join(folder, "config.capnp"), `--control-fd=${CONTROL}`];
  const program = spawn(workerd.default ?? workerd, serve, {
    env: { ...process.env, ...variables },
    stdio: ["ignore", "inherit", "inherit", "pipe"],
  });
  try {
    return await use(`http://127.0.0.1:${await port(program)}`);
  } finally {
    program.kill("SIGKILL");
    await rm(folder, { recursive: true });
  }
}

// Workers import WebAssembly as separate modules, which stay outside of the bundle.
function webAssembly(folder, compiled) {
  const resolve = async ({ path, resolveDir }) => {
    const name = basename(path, "?module");
    await copyFile(join(resolveDir, path.replace("?module", "")), join(folder, name));
    compiled.push(name);
    return { path: `./${name}`, external: true };
  };
  return {
    name: "wasm",
    setup: (building) => building.onResolve({ filter: /\.wasm\?module$/ }, resolve),
  };
}

function configuration(names, compiled) {
  const modules = compiled.map((name) => `, (name = "${name}", wasm = embed "${name}")`);
  const bindings = names.map((name) => `(name = "${name}", fromEnvironment = "${name}")`);
  return `
    using Workerd = import "/workerd/workerd.capnp";
    const config :Workerd.Config = (
      services = [
        (name = "worker", worker = (
          modules = [(name = "worker", esModule = embed "worker.js")${modules.join("")}],
          compatibilityDate = "2026-11-01",
          bindings = [${bindings.join(", ")}],
          globalOutbound = "network")),
        (name = "network", network = (allow = ["public", "private"], tlsOptions = (trustBrowserCas = true))),
      ],
      sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "worker")]);
  `;
}

async function port(program) {
  for await (const line of createInterface({ input: program.stdio[CONTROL] })) {
    const said = JSON.parse(line);
    if (said.event === "listen") return said.port;
  }
  throw new Error("workerd ended before it listened: see its output above");
}
