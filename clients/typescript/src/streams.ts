import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";

import type { Caller, CallOptions, Scope } from "./calling.js";
import { ServiceError, ServiceUnreachable } from "./errors.js";
import type { AccountFault, Balance, Freshness } from "./gen/exchange_service/v1/balance_pb.js";
import type {
  AccountErrorEvent,
  AccountSelectorSchema,
  BalanceEvent,
  HeartbeatEvent,
  StreamBalancesRequest,
  StreamBalancesRequestSchema,
  StreamBalancesResponse,
} from "./gen/exchange_service/v1/exchange_service_pb.js";
import { type AccountName, keyOf, StreamPosition } from "./position.js";
import { spread } from "./retries.js";
import { sleep } from "./waiting.js";

/** What a stream brings. Ignore a case that you do not know. */
export type StreamEvent =
  | { case: "balance"; value: BalanceEvent }
  | { case: "accountError"; value: AccountErrorEvent }
  | { case: "heartbeat"; value: HeartbeatEvent }
  | Reconnecting;

/** The stream has ended with `error`, and is opened again after `delayMs`. What you have is not confirmed meanwhile. */
export interface Reconnecting {
  case: "reconnecting";
  error: ServiceError;
  /** 1 for the first attempt after an event has come, 2 for the next one, and so on. */
  attempt: number;
  delayMs: number;
}

/** One account, read once. */
export interface AccountBalance extends AccountName {
  /** Undefined: no balance could be read, and `error` says why. */
  balance?: Balance;
  freshness?: Freshness;
  /** Why the account could not be read now. There may be an older balance beside it. */
  error?: AccountFault;
}

const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 30_000;
// So often a stream is tried at a service that has never answered, but takes connections.
const FIRST_ATTEMPTS = 3;

/** Why streams end that may be opened again, and when that is so. */
class Resumption {
  readonly #caller: Caller;
  readonly #position: StreamPosition;
  #tokenRefused = false;
  attempts = 0;
  pauseMs = 0;

  constructor(caller: Caller, position: StreamPosition) {
    this.#caller = caller;
    this.#position = position;
  }

  onEvent(): void {
    this.attempts = 0;
    this.pauseMs = 0;
    this.#tokenRefused = false;
  }

  /** The event that tells of the next attempt. Throws the error if there should be none. */
  after(error: ServiceError): Reconnecting {
    this.attempts++;
    if (!this.#mayResume(error)) {
      throw error;
    }
    const longer = Math.min(Math.max(this.pauseMs * 2, FIRST_PAUSE_MS), LONGEST_PAUSE_MS);
    // The service gives each stream a delay of its own. Those that lose a replica without a word have none.
    this.pauseMs = Math.max(error.retryAfterMs ?? 0, spread(longer));
    return { case: "reconnecting", error, attempt: this.attempts, delayMs: Math.round(this.pauseMs) };
  }

  #mayResume(error: ServiceError): boolean {
    switch (error.reason) {
      case "SHUTTING_DOWN":
      case "STREAM_LIFETIME_REACHED":
      case "STORE_UNAVAILABLE":
        return true;
      case "SERVICE_OVERLOADED":
        // A service that is full may stay so. A stream that it had taken before comes back, as all do after a restart.
        return this.#position.began;
      case "CALLER_UNKNOWN":
        return this.#mayRenewToken();
      case "UNREACHABLE":
        return this.#mayReach(error as ServiceUnreachable);
      default:
        return false;
    }
  }

  /** A token that was accepted has ended. The next one is tried once: what is refused twice is not accepted later. */
  #mayRenewToken(): boolean {
    const first = !this.#tokenRefused;
    this.#tokenRefused = true;
    return first && this.#position.began && this.#caller.renewsToken;
  }

  /** An address that was never right does not become so by waiting. */
  #mayReach(error: ServiceUnreachable): boolean {
    if (!error.passes || this.#caller.reached) {
      return error.passes;
    }
    return error.connected && this.attempts < FIRST_ATTEMPTS;
  }
}

/** The events of a stream that is opened again whenever it ends, until another attempt cannot help. */
export async function* resumedStream(
  caller: Caller,
  init: MessageInitShape<typeof StreamBalancesRequestSchema>,
  options: CallOptions,
): AsyncGenerator<StreamEvent, void, undefined> {
  const position = new StreamPosition(init);
  const resumption = new Resumption(caller, position);
  const scope = caller.scope(options, options.timeoutMs ?? Infinity);
  try {
    for (;;) {
      let ended: unknown;
      try {
        for await (const reply of oneStream(caller, scope, position.request())) {
          resumption.onEvent();
          position.advance(reply);
          if (reply.event.case !== undefined) {
            yield reply.event;
          }
        }
      } catch (error) {
        ended = error;
      }
      if (!(ended instanceof ServiceError) || scope.signal.aborted) {
        throw ended;
      }
      // A replica that has failed may be the only one that serves now.
      scope.failed.clear();
      const reconnecting = resumption.after(ended);
      yield reconnecting;
      await sleep(reconnecting.delayMs, scope.signal);
    }
  } finally {
    scope.close();
  }
}

/** The replies of one stream at one replica, until it throws: no stream ends without an error. */
async function* oneStream(
  caller: Caller,
  scope: Scope,
  request: StreamBalancesRequest,
): AsyncGenerator<StreamBalancesResponse, never, undefined> {
  const attempt = await caller.attempt(scope);
  try {
    for await (const reply of attempt.connection.exchanges.streamBalances(request, attempt.options)) {
      caller.reached = true;
      yield reply;
    }
    throw endedSilently(attempt.address);
  } catch (error) {
    throw attempt.failed(error);
  } finally {
    attempt.close();
  }
}

function endedSilently(address: string): ServiceUnreachable {
  const message = `The service at ${address} ended the stream without a reason.`;
  return new ServiceUnreachable(message, { code: Code.Unavailable, connected: true });
}

/** Each account once, in the order in which the service names them. */
export async function readOnce(
  caller: Caller,
  { userId, accounts = [] }: RoundOptions,
  options: CallOptions,
): Promise<AccountBalance[]> {
  // A stream that resumes begins with a heartbeat, which names all of its accounts. What `known` names beside them is
  // ignored.
  const known = [{ exchangeId: "none", unconfirmed: true }];
  const round = new Round();
  for await (const event of resumedStream(caller, { userId, accounts: [...accounts], known }, options)) {
    round.take(event);
    if (round.isWhole) {
      break;
    }
  }
  return round.accounts();
}

export interface RoundOptions {
  userId: string;
  accounts?: readonly MessageInitShape<typeof AccountSelectorSchema>[];
}

/** The first event of each account that a heartbeat has named. */
class Round {
  readonly #found = new Map<string, AccountBalance>();
  #named: readonly string[] | undefined;

  get isWhole(): boolean {
    return this.#named?.every((key) => this.#found.has(key)) ?? false;
  }

  accounts(): AccountBalance[] {
    return (this.#named ?? []).flatMap((key) => this.#found.get(key) ?? []);
  }

  take(event: StreamEvent): void {
    if (event.case === "heartbeat") {
      this.#named = event.value.accounts.map(keyOf);
    } else if (event.case === "balance" && event.value.balance !== undefined) {
      const { balance, freshness } = event.value;
      this.#put(balance, { balance, freshness, error: freshness?.stale });
    } else if (event.case === "accountError") {
      this.#put(event.value, { error: event.value.error });
    }
  }

  #put({ exchangeId, environment, accountType }: AccountName, change: Partial<AccountBalance>): void {
    const key = keyOf({ exchangeId, environment, accountType });
    this.#found.set(key, { exchangeId, environment, accountType, ...this.#found.get(key), ...change });
  }
}
