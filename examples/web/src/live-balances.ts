import type { Duration } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";

import type { Clients } from "./clients.js";
import type { AccountFault, Balance, Freshness } from "./gen/exchange_service/v1/balance_pb.js";
import type { AccountState, HeartbeatEvent, StreamBalancesResponse } from "./gen/exchange_service/v1/exchange_service_pb.js";
import { type Problem, readProblem } from "./problems.js";

/** What the page shows of one account. */
export interface AccountView {
  exchangeId: string;
  environment: string;
  accountType: string;
  /** The newest balance. Undefined: there is no balance yet; that is not zero. */
  balance?: Balance;
  /** How far the balance could be trusted when it came; `stale` says why it is an older one. */
  freshness?: Freshness;
  /** When a venue's answer last held this balance, by the page's clock. */
  confirmedAt?: number;
  /** Why the account cannot be read now. Show it beside the balance, which is then no longer confirmed. */
  fault?: AccountFault;
}

// Another attempt does not help with these.
const FINAL = new Set([
  Code.InvalidArgument,
  Code.NotFound,
  Code.PermissionDenied,
  Code.FailedPrecondition,
  Code.Unimplemented,
]);
const LONGEST_PAUSE = 30_000;
const MOST_KNOWN = 200;

/** The balances of one user, kept current by one stream that is opened again whenever it ends. */
export class LiveBalances {
  readonly accounts = new Map<string, AccountView>();
  /** Why there is no stream now. Undefined: the stream is open. */
  interruption: Problem | undefined;
  private readonly clients: Clients;
  private readonly userId: string;
  private readonly changed: () => void;
  // Longer than the operator's `heartbeat_interval`, 15 seconds unless set otherwise.
  private readonly silenceMilliseconds: number;
  private pause = 0;
  private began = false;

  constructor(clients: Clients, userId: string, changed: () => void, silenceMilliseconds = 40_000) {
    this.clients = clients;
    this.userId = userId;
    this.changed = changed;
    this.silenceMilliseconds = silenceMilliseconds;
  }

  /** Follows the accounts until `signal` is aborted. Rejects with the error if another attempt cannot help. */
  async follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      this.began = false;
      try {
        await this.readStream(signal);
      } catch (error) {
        if (!signal.aborted) {
          this.interrupt(error);
        }
      }
      await sleep(this.pause, signal);
    }
  }

  private async readStream(signal: AbortSignal): Promise<void> {
    const silence = new AbortController();
    const fail = () => silence.abort(new ConnectError("The service has said nothing for too long.", Code.Unavailable));
    let timer = setTimeout(fail, this.silenceMilliseconds);
    const request = { userId: this.userId, known: this.known() };
    try {
      const options = { signal: AbortSignal.any([signal, silence.signal]) };
      for await (const event of this.clients.exchanges.streamBalances(request, options)) {
        clearTimeout(timer);
        timer = setTimeout(fail, this.silenceMilliseconds);
        this.began = true;
        this.pause = 0;
        this.interruption = undefined;
        this.take(event);
        this.changed();
      }
    } finally {
      clearTimeout(timer);
    }
  }

  private interrupt(error: unknown): void {
    const problem = readProblem(error);
    // A token that has ended is replaced when the stream is opened again. One that was never accepted is not.
    const refused = problem.code === Code.Unauthenticated && !this.began;
    this.interruption = problem;
    this.changed();
    if (refused || FINAL.has(problem.code)) {
      throw error;
    }
    // All pages come back at once after a restart of the service, unless chance spreads them.
    const longer = Math.min(Math.max(this.pause * 2, 500), LONGEST_PAUSE) * (0.75 + Math.random() / 2);
    this.pause = Math.max(problem.retryAfterMilliseconds ?? 0, longer);
  }

  /** What the page has, so that the service sends only what is newer, and never anything older. */
  private known() {
    return [...this.accounts.values()].slice(-MOST_KNOWN).map((view) => ({
      exchangeId: view.exchangeId,
      environment: view.environment,
      accountType: view.accountType,
      knownVersion: view.balance?.version,
      unconfirmed: view.fault !== undefined || view.freshness?.stale !== undefined,
    }));
  }

  private take({ event }: StreamBalancesResponse): void {
    if (event.case === "balance" && event.value.balance) {
      const { balance, freshness } = event.value;
      this.update(balance, { balance, freshness, confirmedAt: since(freshness?.age), fault: undefined });
    } else if (event.case === "accountError") {
      this.update(event.value, { fault: event.value.error });
    } else if (event.case === "heartbeat") {
      this.compare(event.value);
    }
  }

  /** A heartbeat names every account that the stream follows: the others were removed. */
  private compare(heartbeat: HeartbeatEvent): void {
    const followed = new Map(heartbeat.accounts.map((state) => [keyOf(state), state]));
    for (const key of this.accounts.keys()) {
      if (!followed.has(key)) {
        this.accounts.delete(key);
      }
    }
    for (const state of followed.values()) {
      // While it is catching up, the service has nothing newer to say of the account.
      this.update(state, state.catchingUp ? {} : { fault: state.error });
      if (state.age) {
        this.update(state, { confirmedAt: since(state.age) });
      }
    }
  }

  private update(account: AccountName, change: Partial<AccountView>): void {
    const { exchangeId, environment, accountType } = account;
    const view = this.accounts.get(keyOf(account)) ?? { exchangeId, environment, accountType };
    this.accounts.set(keyOf(account), { ...view, ...change });
  }
}

type AccountName = Pick<AccountState, "exchangeId" | "environment" | "accountType">;

function keyOf(account: AccountName): string {
  return `${account.exchangeId}/${account.environment}/${account.accountType}`;
}

function since(age: Duration | undefined): number {
  return Date.now() - (age ? Number(age.seconds) * 1000 + age.nanos / 1e6 : 0);
}

function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
