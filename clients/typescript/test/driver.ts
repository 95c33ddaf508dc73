// A program with the client, for tests/typescript: each line of the input is a request {"act": name, ...}, and is answered
// with one line {"done": number, ...}. What comes by itself is an {"event": name, ...}.
import dns from "node:dns/promises";
import { syncBuiltinESMExports } from "node:module";
import { createInterface } from "node:readline";
import { inspect } from "node:util";

import { type DescMessage, type Message, toJson } from "@bufbuild/protobuf";
import {
  type AccountBalance,
  AccountErrorEventSchema,
  AccountFaultSchema,
  BalanceEventSchema,
  BalanceSchema,
  type CallOptions,
  type Client,
  Code,
  createClient,
  GetBalanceResponseSchema,
  HeartbeatEventSchema,
  ListAccountsResponseSchema,
  ListExchangesResponseSchema,
  ListPluginsResponseSchema,
  ServiceError,
  type StreamEvent,
} from "exchange-service-client";

type Request = { act: string; number: number } & Record<string, any>;

const clients = new Map<string, Client>();
const streams = new Map<string, AbortController>();
// What the client's token function gives, one after the other; the last one stays.
let tokens: string[] = [];
let tokenCalls = 0;

function giveToken(): string {
  tokenCalls++;
  const [token = ""] = tokens;
  tokens = tokens.length > 1 ? tokens.slice(1) : tokens;
  return token;
}

// What names stand for, in place of the machine's own resolver.
let names: Record<string, string[]> = {};
dns.lookup = (async (name: string) => {
  const addresses = names[name];
  if (addresses === undefined) {
    throw Object.assign(new Error(`getaddrinfo ENOTFOUND ${name}`), { code: "ENOTFOUND" });
  }
  return addresses.map((address) => ({ address, family: 4 }));
}) as unknown as typeof dns.lookup;
syncBuiltinESMExports();

const SCHEMAS: Record<string, DescMessage> = {
  listExchanges: ListExchangesResponseSchema,
  getBalance: GetBalanceResponseSchema,
  listAccounts: ListAccountsResponseSchema,
  listPlugins: ListPluginsResponseSchema,
};

const ACTS: Record<string, (request: Request) => Promise<object>> = {
  create: async ({ client = "main", options, tokens: given }) => {
    tokens = given ?? [];
    clients.set(client, createClient({ ...options, ...(given === undefined ? {} : { token: giveToken }) }));
    return {};
  },
  call: async ({ client = "main", method, request, options }) => {
    const called = (clients.get(client) as any)[method] as (request: any, options: CallOptions) => Promise<Message>;
    const reply = await called.call(clients.get(client), request, callOptions(options));
    return { reply: plain(SCHEMAS[method], reply) };
  },
  // One after the other or together, and how often each outcome came.
  calls: async ({ client = "main", count, request, together = false }) => {
    const outcomes: Record<string, number> = {};
    const one = async () => {
      const outcome = await clients.get(client)!.getBalance(request).then(() => "OK", (error) => error.reason as string);
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    };
    const all: Promise<void>[] = [];
    for (let number = 0; number < count; number++) {
      all.push(one());
      if (!together) {
        await all.at(-1);
      }
    }
    await Promise.all(all);
    return { outcomes };
  },
  exchanges: async ({ client = "main", filters }) => {
    const exchanges = await clients.get(client)!.allExchanges(filters);
    return { ids: exchanges.map(({ id }) => id) };
  },
  balances: async ({ client = "main", user, options }) => {
    const accounts = await clients.get(client)!.balances(user, callOptions(options));
    return { accounts: accounts.map(shownAccount) };
  },
  // What a program has of a balance, without JSON between.
  types: async ({ client = "main", request }) => {
    const { balance } = await clients.get(client)!.getBalance(request);
    return { version: typeof balance?.version, total: typeof balance?.summary?.total };
  },
  follow: async ({ client = "main", stream = "main", request, options, breakAfter = Infinity }) => {
    const stopping = new AbortController();
    streams.set(stream, stopping);
    const { signal: _, ...rest } = callOptions(options);
    const events = clients.get(client)!.streamBalances(revived(request), { ...rest, signal: stopping.signal });
    void follow(stream, events, breakAfter);
    return {};
  },
  leave: async ({ stream = "main" }) => {
    streams.get(stream)?.abort(new Error("left by the test"));
    return {};
  },
  names: async ({ names: given }) => {
    names = given;
    return {};
  },
  tokenCalls: async () => ({ count: tokenCalls }),
  inspect: async ({ client = "main" }) => ({
    text: inspect(clients.get(client), { depth: 12, showHidden: true, getters: true }),
  }),
  close: async ({ client = "main" }) => {
    clients.get(client)?.close();
    return {};
  },
};

/** JSON has no bigint. */
function revived(request: any): any {
  const selectors = (given: any[] = []) =>
    given.map((one) => ({ ...one, knownVersion: BigInt(one.knownVersion ?? 0) }));
  return { ...request, accounts: selectors(request.accounts), known: selectors(request.known) };
}

function callOptions(options: { abortAfterMs?: number } & CallOptions = {}): CallOptions {
  const { abortAfterMs, ...rest } = options;
  return abortAfterMs === undefined ? rest : { ...rest, signal: abortedAfter(abortAfterMs) };
}

function abortedAfter(milliseconds: number): AbortSignal {
  const controller = new AbortController();
  setTimeout(() => controller.abort(new Error("ended by the test")), milliseconds);
  return controller.signal;
}

async function follow(stream: string, events: AsyncIterable<StreamEvent>, breakAfter: number): Promise<void> {
  try {
    let count = 0;
    for await (const event of events) {
      say({ event: event.case, stream, ...shownEvent(event) });
      if (++count >= breakAfter) {
        break;
      }
    }
    say({ event: "over", stream });
  } catch (error) {
    say({ event: "failed", stream, error: shownError(error) });
  }
}

function shownEvent(event: StreamEvent): object {
  switch (event.case) {
    case "balance":
      return { value: plain(BalanceEventSchema, event.value) };
    case "accountError":
      return { value: plain(AccountErrorEventSchema, event.value) };
    case "heartbeat":
      return { value: plain(HeartbeatEventSchema, event.value) };
    case "reconnecting":
      return { error: shownError(event.error), attempt: event.attempt, delayMs: event.delayMs };
  }
}

function shownAccount({ balance, freshness, error, ...name }: AccountBalance): object {
  return {
    ...name,
    balance: balance && plain(BalanceSchema, balance),
    stale: freshness?.stale !== undefined,
    error: error && plain(AccountFaultSchema, error),
  };
}

function shownError(error: unknown): object {
  if (!(error instanceof ServiceError)) {
    return { name: (error as Error).name, message: (error as Error).message, inspected: inspect(error) };
  }
  const { name, reason, code, message, retryAfterMs, requestId, violations } = error;
  return { name, reason, code: Code[code], message, retryAfterMs, requestId, violations, inspected: inspect(error) };
}

function plain(schema: DescMessage | undefined, message: Message): unknown {
  return schema === undefined ? message : toJson(schema, message as never);
}

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function answer(line: string): Promise<void> {
  const request = JSON.parse(line) as Request;
  const began = performance.now();
  const sayDone = (result: object) => say({ done: request.number, elapsedMs: performance.now() - began, ...result });
  try {
    sayDone(await ACTS[request.act]!(request));
  } catch (error) {
    sayDone({ error: shownError(error) });
  }
}

say({ event: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  void answer(line);
}
process.exit(0);
