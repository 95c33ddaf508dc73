// Prints the balance of one account, row by row; exit code 1 with the reason if it cannot be read.
import { ServiceError } from "exchange-service-client";

import { readArguments } from "./arguments.js";

const { client, words } = readArguments("balance.js USER EXCHANGE", 2);
const [userId = "", exchangeId = ""] = words;
try {
  const { balance, freshness } = await client.getBalance({ userId, exchangeId });
  for (const { asset, total, free } of balance?.venueAccounts.flatMap(({ assets }) => assets) ?? []) {
    // Absent is not zero: the venue does not say.
    console.log(`${asset}\ttotal ${total ?? "-"}\tfree ${free ?? "-"}`);
  }
  if (freshness?.stale !== undefined) {
    console.log(`An older balance: ${freshness.stale.message}`);
  }
} catch (error) {
  if (!(error instanceof ServiceError)) {
    throw error;
  }
  console.error(error.message);
  process.exitCode = 1;
} finally {
  client.close();
}
