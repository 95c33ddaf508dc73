import { create, type MessageInitShape } from "@bufbuild/protobuf";

import {
  type AccountSelector,
  AccountSelectorSchema,
  type StreamBalancesRequest,
  StreamBalancesRequestSchema,
  type StreamBalancesResponse,
} from "./gen/exchange_service/v1/exchange_service_pb.js";

// The most that a request takes.
const MOST_ACCOUNTS = 200;

/** What names an account within its user, as its events do. */
export interface AccountName {
  exchangeId: string;
  environment: string;
  accountType: string;
}

/** Text that is the same for the same account. */
export function keyOf({ exchangeId, environment, accountType }: AccountName): string {
  return JSON.stringify([exchangeId, environment || "production", accountType]);
}

/**
 * What a stream follows, as the caller spelled it, and what was seen of each account, as the events name it: its newest
 * version, and whether that is confirmed. Enough to open the stream again.
 */
export class StreamPosition {
  readonly #request: StreamBalancesRequest;
  // The newest last: a stream of all accounts may have followed some that are gone.
  readonly #known = new Map<string, AccountSelector>();
  /** Whether any event has come. */
  began = false;

  /** Throws a RangeError for more than 200 `known`. */
  constructor(request: MessageInitShape<typeof StreamBalancesRequestSchema>) {
    this.#request = create(StreamBalancesRequestSchema, request);
    const { known } = this.#request;
    if (known.length > MOST_ACCOUNTS) {
      throw new RangeError(`\`known\` may name ${MOST_ACCOUNTS} accounts, and names ${known.length}.`);
    }
    known.forEach((selector) => this.#note(selector, selector.knownVersion, selector.unconfirmed));
  }

  /** The request that goes on from here. */
  request(): StreamBalancesRequest {
    return create(StreamBalancesRequestSchema, {
      ...this.#request,
      accounts: this.#request.accounts.map((selector) => this.#withVersion(selector)),
      known: [...this.#known.values()].slice(-MOST_ACCOUNTS),
    });
  }

  /** The selector with its newest version, for services that do not read `known` yet. */
  #withVersion(selector: AccountSelector): AccountSelector {
    const seen = this.#known.get(keyOf(selector));
    if (seen === undefined) {
      return selector;
    }
    const knownVersion = seen.knownVersion > selector.knownVersion ? seen.knownVersion : selector.knownVersion;
    return { ...selector, knownVersion, unconfirmed: seen.unconfirmed };
  }

  /** Takes over the version of a balance, and that an error came after it. */
  advance({ event }: StreamBalancesResponse): void {
    this.began = true;
    if (event.case === "balance" && event.value.balance !== undefined) {
      const { balance, freshness } = event.value;
      this.#note(balance, balance.version, freshness?.stale !== undefined);
    } else if (event.case === "accountError") {
      this.#note(event.value, 0n, true);
    }
  }

  #note(account: AccountName, version: bigint, unconfirmed: boolean): void {
    const key = keyOf(account);
    const before = this.#known.get(key)?.knownVersion ?? 0n;
    this.#known.delete(key);
    this.#known.set(
      key,
      create(AccountSelectorSchema, {
        exchangeId: account.exchangeId,
        environment: account.environment || "production",
        accountType: account.accountType,
        knownVersion: version > before ? version : before,
        unconfirmed,
      }),
    );
  }
}
