import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { type Client, createClient } from "exchange-service-client";

/** The words after the options, and a client for `--address` (host:port, several with commas between them). */
export function readArguments(usage: string, count: number): { client: Client; words: string[] } {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { address: { type: "string", default: "127.0.0.1:50051" }, "tls-ca": { type: "string" } },
  });
  if (positionals.length !== count) {
    console.error(`Usage: node ${usage} [--address HOST:PORT,...] [--tls-ca FILE]`);
    process.exit(2);
  }
  return { client: clientOf(values.address.split(","), values["tls-ca"]), words: positionals };
}

/** A client whose token, if there is one, comes from the environment: arguments can be read by others. */
export function clientOf(address: string[], tlsCaFile?: string): Client {
  const tlsCa = tlsCaFile === undefined ? undefined : readFileSync(tlsCaFile);
  return createClient({ address, tlsCa, token: process.env["EXCHANGE_SERVICE_TOKEN"] });
}
