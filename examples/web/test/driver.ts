// The application's page and back end without a browser, for tests/web_application: each line of the input is a request
// {"act": name, ...}, and is answered with one line {"done": name, ...}. What comes by itself is an {"event": name, ...}.
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";

import { type DescMessage, type Message, toJson } from "@bufbuild/protobuf";

import { addAmounts, showAmount } from "../src/amounts.js";
import { getBalance } from "../src/balance.js";
import { createClients, tokenSource } from "../src/clients.js";
import { ConnectForm } from "../src/connect-form.js";
import { ExchangeList } from "../src/exchange-list.js";
import {
  AccountCheckSchema,
  ConnectAccountResponseSchema,
  ListAccountsResponseSchema,
} from "../src/gen/exchange_service/accounts/v1/account_service_pb.js";
import { AccountFaultSchema, BalanceSchema } from "../src/gen/exchange_service/v1/balance_pb.js";
import { GetBalanceResponseSchema } from "../src/gen/exchange_service/v1/exchange_service_pb.js";
import { ExchangeSchema } from "../src/gen/exchange_service/v1/exchange_pb.js";
import { type AccountView, LiveBalances } from "../src/live-balances.js";
import { type Problem, readProblem } from "../src/problems.js";
import { mintToken } from "../src/server/token.js";

const [baseUrl = "", secret = "", userId = "", format = "json"] = process.argv.slice(2);

const backEnd = createServer((_, response) => response.end(JSON.stringify(mintToken(userId, secret))));
await new Promise<void>((resolve) => backEnd.listen(0, "127.0.0.1", resolve));
const token = tokenSource(`http://127.0.0.1:${(backEnd.address() as AddressInfo).port}/`);
const clients = createClients(baseUrl, token, format === "binary");
const lists = new Map<string, ExchangeList>();
let live: LiveBalances | undefined;
const forms = new Map<string, ConnectForm>();
let following = new AbortController();

// What the page asks for when it opens a stream, without the five bytes before a message.
const { fetch } = globalThis;
globalThis.fetch = (url, init) => {
  if (init?.body instanceof Uint8Array && String(url).endsWith("/StreamBalances") && format === "json") {
    say({ event: "opened", request: JSON.parse(new TextDecoder().decode(init.body.subarray(5))) });
  }
  return fetch(url, init);
};

type Request = { act: string } & Record<string, any>;

const ACTS: Record<string, (request: Request) => Promise<object>> = {
  list: async ({ filter = {} }) => {
    const key = JSON.stringify(filter);
    const list = lists.get(key) ?? new ExchangeList(clients, filter);
    lists.set(key, list);
    const changed = await list.refresh();
    return { changed, exchanges: list.exchanges.map((exchange) => plain(ExchangeSchema, exchange)) };
  },
  balance: async ({ exchangeId, known, now, user }) => {
    const account = { userId: user ?? userId, exchangeId };
    const reply = await getBalance(clients, account, { knownVersion: BigInt(known ?? 0), now });
    return { reply: plain(GetBalanceResponseSchema, reply) };
  },
  accounts: async () => ({ reply: plain(ListAccountsResponseSchema, await clients.accounts.listAccounts({})) }),
  connect: async ({ exchangeId, values, skipCheck = false }) => {
    const form = await formOf(exchangeId);
    for (const input of form.fields) {
      input.value = values[input.field.name] ?? "";
    }
    const response = await form.submit(skipCheck);
    const inputs = form.fields.map(({ field, value, fault }) => ({ name: field.name, value, fault }));
    return { inputs, problem: shownProblem(form.problem), reply: response && plain(ConnectAccountResponseSchema, response) };
  },
  check: async ({ exchangeId }) => {
    const check = await (await formOf(exchangeId)).check();
    return { check: check && plain(AccountCheckSchema, check) };
  },
  remove: async ({ exchangeId }) => {
    await (await formOf(exchangeId)).remove();
    return {};
  },
  follow: async ({ silence = 40_000 }) => {
    following = new AbortController();
    const changed = () => say({ event: "changed", ...shownBalances() });
    live ??= new Proxy(new LiveBalances(clients, userId, changed, silence), {});
    live.follow(following.signal).then(
      () => say({ event: "left" }),
      (error: unknown) => say({ event: "gave up", problem: shownProblem(readProblem(error)) }),
    );
    return {};
  },
  leave: async () => {
    following.abort();
    return {};
  },
  amounts: async ({ amounts, locale }) => ({
    shown: amounts.map((amount: string | undefined) => showAmount(amount ?? undefined, locale)),
    sum: addAmounts(amounts.filter((amount: string | null) => amount !== null)),
  }),
};

async function formOf(exchangeId: string): Promise<ConnectForm> {
  const form = forms.get(exchangeId);
  if (form !== undefined) {
    return form;
  }
  const list = new Proxy(new ExchangeList(clients, { search: exchangeId }), {});
  await list.refresh();
  const exchange = list.exchanges.find(({ id }) => id === exchangeId);
  if (exchange === undefined) {
    throw new Error(`There is no exchange ${exchangeId}.`);
  }
  // As frameworks do that watch an object for changes.
  const made = new Proxy(new ConnectForm(clients, userId, exchange), {});
  forms.set(exchangeId, made);
  return made;
}

function plain<Schema extends DescMessage>(schema: Schema, message: Message): unknown {
  return toJson(schema, message as never);
}

function shownBalances(): object {
  const interruption = shownProblem(live?.interruption);
  return { interruption, accounts: [...(live?.accounts.values() ?? [])].map(shownAccount) };
}

function shownAccount({ exchangeId, environment, balance, freshness, fault, confirmedAt }: AccountView): object {
  return {
    exchangeId,
    environment,
    balance: balance && plain(BalanceSchema, balance),
    stale: freshness?.stale && plain(AccountFaultSchema, freshness.stale),
    fault: fault && plain(AccountFaultSchema, fault),
    confirmedAt,
  };
}

function shownProblem(problem: Problem | undefined): object | undefined {
  return problem && { ...problem, fields: Object.fromEntries(problem.fields) };
}

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function answer(line: string): Promise<void> {
  const request = JSON.parse(line) as Request;
  const act = ACTS[request.act];
  try {
    say({ done: request.act, ...(act ? await act(request) : { unknown: true }) });
  } catch (error) {
    say({ done: request.act, problem: shownProblem(readProblem(error)) });
  }
}

say({ event: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  await answer(line);
}
process.exit(0);
