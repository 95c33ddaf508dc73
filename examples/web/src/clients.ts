import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

import { AccountService } from "./gen/exchange_service/accounts/v1/account_service_pb.js";
import { ExchangeService } from "./gen/exchange_service/v1/exchange_service_pb.js";
import type { TokenReply } from "./server/token.js";

export interface Clients {
  exchanges: Client<typeof ExchangeService>;
  accounts: Client<typeof AccountService>;
}

/** The two services at `baseUrl`. `token` is asked before each call, so that a stream is reopened with a new one. */
export function createClients(baseUrl: string, token: () => Promise<string>, useBinaryFormat = false): Clients {
  const authorize: Interceptor = (next) => async (request) => {
    request.header.set("authorization", `Bearer ${await token()}`);
    return next(request);
  };
  const transport = createConnectTransport({ baseUrl, useBinaryFormat, interceptors: [authorize] });
  return { exchanges: createClient(ExchangeService, transport), accounts: createClient(AccountService, transport) };
}

/** Tokens from the application's own back end; each is used until a minute before its end. */
export function tokenSource(url: string): () => Promise<string> {
  let current: Promise<TokenReply> | undefined;
  let renewAt = 0;
  return async () => {
    if (current === undefined || Date.now() >= renewAt) {
      renewAt = Infinity;
      current = fetchToken(url);
      current.then(
        (reply) => (renewAt = Date.now() + (reply.lifetimeSeconds - 60) * 1000),
        () => (current = undefined),
      );
    }
    return (await current).token;
  };
}

async function fetchToken(url: string): Promise<TokenReply> {
  const response = await fetch(url, { cache: "no-store" });
  if (!response.ok) {
    throw new Error(`The back end gives no token: ${response.status}.`);
  }
  return (await response.json()) as TokenReply;
}
