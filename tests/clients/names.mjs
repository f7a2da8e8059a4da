// Leads connections to the hosts in NAMES ({host: port}) to 127.0.0.1: node --import ./names.mjs …
// The program and its client do not know of it, and verify the host's certificate.
import tls from "node:tls";

const ports = JSON.parse(process.env.NAMES);
const { connect } = tls;
tls.connect = ({ host, ...options }, ...rest) => {
  const port = ports[host];
  if (!port) throw new Error(`${host} is not one of ${Object.keys(ports)}`);
  return connect({ ...options, servername: host, host: "127.0.0.1", port }, ...rest);
};
