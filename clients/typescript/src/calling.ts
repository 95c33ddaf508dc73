import { Code, ConnectError } from "@connectrpc/connect";

import { deadlinePassed, isOfReplica, readError, ServiceError } from "./errors.js";
import type { Connection, Replica, Replicas } from "./replicas.js";
import { RetryBudget } from "./retries.js";
import { orAborted, sleep } from "./waiting.js";

/** A bearer token, or what gives one: it is asked before each attempt, so that a stream is opened again with a new one. */
export type Token = string | (() => string | Promise<string>);

export interface CallOptions {
  /** Ends the call or stream, which then rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Milliseconds for all attempts together, in place of the client's. Infinity: no end, as streams have it. */
  timeoutMs?: number;
  /** Further headers of the call, such as `x-act-as`. */
  headers?: Readonly<Record<string, string>>;
}

/** What one attempt gives to connect-es. */
export interface WireOptions {
  signal: AbortSignal;
  headers: Record<string, string>;
  timeoutMs: number | undefined;
}

// A longer one of Node.js fires at once.
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** One call or stream: the replicas that failed it, and its end by its signal, its deadline or the client's close. */
export class Scope {
  readonly #ended = new AbortController();
  // A cancellation on the wire, whatever the caller's reason for it is.
  readonly #wire = new AbortController();
  readonly #deadline: number;
  readonly #release: () => void;
  readonly failed = new Set<Replica>();
  readonly headers: Readonly<Record<string, string>>;

  constructor(options: CallOptions, timeoutMs: number, addresses: string, scopes: Set<Scope>) {
    const { signal, headers = {} } = options;
    this.headers = headers;
    this.#deadline = performance.now() + (timeoutMs <= LONGEST_TIMER_MS ? timeoutMs : Infinity);
    const timer =
      timeoutMs <= LONGEST_TIMER_MS ? setTimeout(() => this.end(deadlinePassed(addresses)), timeoutMs) : undefined;
    const onAbort = () => this.end(signal?.reason);
    signal?.addEventListener("abort", onAbort);
    scopes.add(this);
    this.#release = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      scopes.delete(this);
    };
    if (signal?.aborted === true) {
      onAbort();
    }
  }

  /** Aborted with the reason that the caller gets. */
  get signal(): AbortSignal {
    return this.#ended.signal;
  }

  get wireSignal(): AbortSignal {
    return this.#wire.signal;
  }

  /** Milliseconds until the deadline; Infinity without one. */
  get leftMs(): number {
    return this.#deadline - performance.now();
  }

  end(reason: unknown): void {
    this.#ended.abort(reason);
    this.#wire.abort(new ConnectError("the call was ended", Code.Canceled));
  }

  /** Must be called once the call or stream is over. */
  close(): void {
    this.#release();
    this.end(undefined);
  }
}

/** Makes calls to the replicas, by the retry policy of docs/operations.md. */
export class Caller {
  readonly #replicas: Replicas;
  readonly #token: Token | undefined;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #budget = new RetryBudget();
  readonly #scopes = new Set<Scope>();
  #isClosed = false;
  /** Whether the service has ever answered this client. */
  reached = false;

  constructor(replicas: Replicas, token: Token | undefined, headers: Readonly<Record<string, string>>) {
    this.#replicas = replicas;
    this.#token = token;
    this.#headers = headers;
  }

  get addresses(): string {
    return this.#replicas.text;
  }

  /** Whether an ended token may be replaced by a new one. */
  get renewsToken(): boolean {
    return typeof this.#token === "function";
  }

  scope(options: CallOptions, timeoutMs: number): Scope {
    if (this.#isClosed) {
      throw new Error("The client is closed.");
    }
    return new Scope(options, timeoutMs, this.addresses, this.#scopes);
  }

  /** One unary call. It is made again by the policy if `retried`. */
  async call<T>(
    send: (connection: Connection, options: WireOptions) => Promise<T>,
    options: CallOptions,
    timeoutMs: number,
    retried: boolean,
  ): Promise<T> {
    const scope = this.scope(options, options.timeoutMs ?? timeoutMs);
    try {
      for (let attempts = 1; ; attempts++) {
        try {
          return await this.#callOnce(scope, send);
        } catch (error) {
          const pause = retried ? this.#pauseAfter(error, attempts, scope) : undefined;
          if (pause === undefined) {
            throw error;
          }
          await sleep(pause, scope.signal);
        }
      }
    } finally {
      scope.close();
    }
  }

  async #callOnce<T>(scope: Scope, send: (connection: Connection, options: WireOptions) => Promise<T>): Promise<T> {
    const attempt = await this.attempt(scope);
    try {
      const value = await send(attempt.connection, attempt.options);
      this.reached = true;
      this.#budget.onSuccess();
      return value;
    } catch (error) {
      throw attempt.failed(error);
    } finally {
      attempt.close();
    }
  }

  #pauseAfter(error: unknown, attempts: number, scope: Scope): number | undefined {
    const isOver = scope.signal.aborted || !(error instanceof ServiceError);
    return isOver ? undefined : this.#budget.pauseAfter(error, attempts, scope.leftMs, this.#replicas.areSeveral);
  }

  /** The next attempt. Rejects with ServiceUnreachable, the signal's reason, or the error of the token function. */
  async attempt(scope: Scope): Promise<Attempt> {
    const headers = await this.#headersOf(scope);
    const replica = await this.#replicas.pick(scope.failed, scope.signal);
    return new Attempt(this, scope, replica, headers);
  }

  async #headersOf(scope: Scope): Promise<Record<string, string>> {
    const headers = { ...this.#headers, ...scope.headers };
    if (this.#token === undefined) {
      return headers;
    }
    const given = typeof this.#token === "string" ? this.#token : this.#token();
    const token = await orAborted(Promise.resolve(given), scope.signal);
    return { ...headers, authorization: `Bearer ${validToken(token)}` };
  }

  close(): void {
    this.#isClosed = true;
    for (const scope of this.#scopes) {
      scope.end(new Error("The client was closed."));
    }
    this.#replicas.close();
  }
}

/** One attempt at one replica, with a place on one of its connections until it is closed. */
export class Attempt {
  readonly #caller: Caller;
  readonly #scope: Scope;
  readonly #replica: Replica;
  readonly connection: Connection;
  readonly options: WireOptions;

  constructor(caller: Caller, scope: Scope, replica: Replica, headers: Record<string, string>) {
    this.#caller = caller;
    this.#scope = scope;
    this.#replica = replica;
    this.connection = replica.connection();
    this.connection.calls++;
    const left = scope.leftMs;
    const timeoutMs = Number.isFinite(left) ? Math.max(Math.floor(left), 1) : undefined;
    this.options = { signal: scope.wireSignal, headers, timeoutMs };
  }

  get address(): string {
    return this.#replica.address;
  }

  /** What the caller gets for what came of the attempt. Throws the reason if the call was ended here. */
  failed(error: unknown): ServiceError {
    this.#scope.signal.throwIfAborted();
    const failure = readError(error, this.#replica.address);
    // The client may say itself that the deadline has passed.
    this.#caller.reached ||= failure.reason !== "UNREACHABLE" && failure.reason !== "DEADLINE_PASSED";
    if (isOfReplica(failure)) {
      this.#scope.failed.add(this.#replica);
      this.#replica.avoid();
    }
    return failure;
  }

  close(): void {
    this.connection.calls--;
  }
}

/** The token. Throws a TypeError that does not show it if it cannot be one. */
export function validToken(token: unknown): string {
  if (typeof token !== "string" || !/^[\x21-\x7e]+$/.test(token)) {
    throw new TypeError("The token is empty, or holds what no token does, such as a blank or the end of a line.");
  }
  return token;
}
