// Follows all accounts of a user until it is interrupted. Each event is one line of JSON.
import { ServiceError, type StreamEvent } from "exchange-service-client";

import { readArguments } from "./arguments.js";

const { client, words } = readArguments("follow.js USER", 1);
const [userId = ""] = words;
const stopping = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) {
  process.once(name, () => stopping.abort());
}
try {
  for await (const event of client.streamBalances({ userId }, { signal: stopping.signal })) {
    console.log(JSON.stringify(lineOf(event)));
  }
} catch (error) {
  if (!stopping.signal.aborted) {
    console.log(JSON.stringify({ event: "failed", reason: error instanceof ServiceError ? error.reason : String(error) }));
    process.exitCode = 1;
  }
} finally {
  client.close();
}

function lineOf(event: StreamEvent): object {
  switch (event.case) {
    case "balance": {
      const { balance, freshness } = event.value;
      // A version may be more than a number of JavaScript holds exactly.
      const version = String(balance?.version);
      const total = balance?.summary?.total;
      const stale = freshness?.stale !== undefined;
      return { event: event.case, account: balance && accountOf(balance), version, total, stale };
    }
    case "accountError": {
      const { error, lastVersion } = event.value;
      return { event: event.case, account: accountOf(event.value), version: String(lastVersion), message: error?.message };
    }
    case "heartbeat":
      return {
        event: event.case,
        accounts: event.value.accounts.map((state) => ({ account: accountOf(state), version: String(state.version) })),
      };
    case "reconnecting":
      return { event: event.case, reason: event.error.reason, attempt: event.attempt, delayMs: event.delayMs };
  }
}

function accountOf(account: { exchangeId: string; environment: string; accountType: string }): string {
  const { exchangeId, environment, accountType } = account;
  return [exchangeId, environment, ...(accountType === "" ? [] : [accountType])].join("/");
}
