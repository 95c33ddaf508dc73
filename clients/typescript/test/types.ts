// What the compiler must see in the package's types: it fails if one of these is otherwise.
import type { AccountBalance, Balance, Client, Reason, ServiceError, StreamEvent, Summary } from "exchange-service-client";

type Equal<One, Other> = (<T>() => T extends One ? 1 : 2) extends <T>() => T extends Other ? 1 : 2 ? true : false;

export const versions: Equal<Balance["version"], bigint> = true;
export const totals: Equal<Summary["total"], string | undefined> = true;
export const reasons: Equal<ServiceError["reason"], Reason | "UNREACHABLE" | "UNKNOWN"> = true;
export const events: Equal<StreamEvent["case"], "balance" | "accountError" | "heartbeat" | "reconnecting"> = true;
export const accounts: Equal<Awaited<ReturnType<Client["balances"]>>, AccountBalance[]> = true;
export const known: Reason = "CREDENTIAL_MISSING";
// @ts-expect-error There is no such reason.
export const misspelt: Reason = "CREDENTIAL_MISING";
// @ts-expect-error Number 0 of the enum is not a reason.
export const unspecified: Reason = "UNSPECIFIED";

export async function request(client: Client): Promise<void> {
  // @ts-expect-error A version is not a number.
  await client.getBalance({ userId: "alice", exchangeId: "oanda", knownVersion: 1 });
  // @ts-expect-error A field that is not in the protos.
  await client.getBalance({ user: "alice" });
}
