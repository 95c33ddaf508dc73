// Calls the service twenty times a second for so many seconds, and counts the calls that fail: for rolling restarts.
// The last line is `calls N failed M`; the exit code is 1 if any failed.
import { setTimeout as sleep } from "node:timers/promises";

import { ServiceError } from "exchange-service-client";

import { clientOf } from "./arguments.js";

const CALLS_A_SECOND = 20;

const [text = "", ...addresses] = process.argv.slice(2);
const seconds = Number(text);
if (!(seconds > 0) || addresses.length === 0) {
  console.error("Usage: node steady.js SECONDS HOST:PORT...");
  process.exit(2);
}
const client = clientOf(addresses, process.env["EXCHANGE_SERVICE_TLS_CA"]);
const calls: Promise<void>[] = [];
let failed = 0;

async function call(): Promise<void> {
  try {
    await client.listExchanges({ pageSize: 1 });
  } catch (error) {
    failed++;
    console.log(error instanceof ServiceError ? `${error.reason} ${error.message}` : String(error));
  }
}

const began = performance.now();
for (let number = 0; number < seconds * CALLS_A_SECOND; number++) {
  await sleep(began + (number * 1000) / CALLS_A_SECOND - performance.now());
  calls.push(call());
}
await Promise.all(calls);
client.close();
console.log(`calls ${calls.length} failed ${failed}`);
process.exitCode = failed > 0 ? 1 : 0;
