// Lead connections to custom domain names to the local cloud, in an unmodified program:
// `node --import ./tests/support/loopback.mjs …` with NODE_EXTRA_CA_CERTS and
// LOOPBACK='{"api.example.test": 40443}', the port of each name.
import tls from "node:tls";

const ports = JSON.parse(process.env.LOOPBACK);
const connect = tls.connect;

tls.connect = (options, ...rest) => {
  const port = ports[options.host ?? options.hostname];
  if (!port) return connect(options, ...rest);
  const servername = options.servername || options.host || options.hostname;
  return connect({ ...options, host: "127.0.0.1", hostname: "127.0.0.1", port, servername }, ...rest);
};
