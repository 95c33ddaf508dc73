import { Code } from "@connectrpc/connect";

import { isOfReplica, type ServiceError, ServiceUnreachable } from "./errors.js";

// The policy of docs/operations.md, "Several replicas".
const MOST_ATTEMPTS = 3;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 1_000;
const RETRYABLE = new Set([Code.Unavailable, Code.Canceled]);
const MOST_TOKENS = 10;
const TOKENS_A_SUCCESS = 0.1;

/** After several failures in a row nothing is retried: retries would make the trouble of a service worse. */
export class RetryBudget {
  #tokens = MOST_TOKENS;

  onSuccess(): void {
    this.#tokens = Math.min(this.#tokens + TOKENS_A_SUCCESS, MOST_TOKENS);
  }

  /**
   * How many milliseconds to wait before the next attempt after `attempts`; undefined: make none, and tell the caller
   * now. `leftMs` is what the deadline leaves. The first attempt at another replica is free: hundreds of calls may be
   * lost at the moment in which one ends.
   */
  pauseAfter(error: ServiceError, attempts: number, leftMs: number, areSeveral: boolean): number | undefined {
    if (!mayPass(error)) {
      return undefined;
    }
    const isFree = areSeveral && attempts === 1 && isOfReplica(error);
    const isAllowed = isFree || this.#spend();
    const pause = error.pushbackMs ?? error.retryAfterMs ?? backoff(attempts);
    return isAllowed && attempts < MOST_ATTEMPTS && pause >= 0 && pause < leftMs ? pause : undefined;
  }

  #spend(): boolean {
    this.#tokens = Math.max(this.#tokens - 1, 0);
    return this.#tokens > MOST_TOKENS / 2;
  }
}

function mayPass(error: ServiceError): boolean {
  return error instanceof ServiceUnreachable ? error.passes : RETRYABLE.has(error.code);
}

function backoff(attempts: number): number {
  return spread(Math.min(FIRST_PAUSE_MS * 2 ** (attempts - 1), LONGEST_PAUSE_MS));
}

/** A fifth more or less by chance, so that many clients do not come back at the same moment. */
export function spread(milliseconds: number): number {
  return milliseconds * (0.8 + Math.random() * 0.4);
}
