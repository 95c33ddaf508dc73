import type { Clients } from "./clients.js";
import type { GetBalanceResponse } from "./gen/exchange_service/v1/exchange_service_pb.js";

/**
 * The balance of one account. `knownVersion` is the version of the newest balance that the page has of it: an older
 * one never comes back. `now` asks the venue in any case; it counts against a quota, so keep it for a button.
 */
export async function getBalance(
  clients: Clients,
  account: { userId: string; exchangeId: string; environment?: string },
  { knownVersion = 0n, now = false } = {},
): Promise<GetBalanceResponse> {
  const maxAge = now ? { seconds: 0n, nanos: 0 } : undefined;
  return clients.exchanges.getBalance({ ...account, knownVersion, maxAge }, { timeoutMs: 15_000 });
}
