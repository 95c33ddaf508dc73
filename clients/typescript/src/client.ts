import type { MessageInitShape } from "@bufbuild/protobuf";

import { isLoopback, parseAddresses } from "./addresses.js";
import { Caller, type CallOptions, type Token, validToken } from "./calling.js";
import type {
  CheckAccountRequestSchema,
  CheckAccountResponse,
  ConnectAccountRequestSchema,
  ConnectAccountResponse,
  ListAccountsRequestSchema,
  ListAccountsResponse,
  RemoveAccountRequestSchema,
} from "./gen/exchange_service/accounts/v1/account_service_pb.js";
import type { ListPluginsResponse } from "./gen/exchange_service/operator/v1/plugin_service_pb.js";
import type { Exchange } from "./gen/exchange_service/v1/exchange_pb.js";
import type {
  AccountSelectorSchema,
  ExchangeSource,
  GetBalanceRequestSchema,
  GetBalanceResponse,
  ListExchangesRequestSchema,
  ListExchangesResponse,
  StreamBalancesRequestSchema,
} from "./gen/exchange_service/v1/exchange_service_pb.js";
import { Replicas } from "./replicas.js";
import { type AccountBalance, readOnce, resumedStream, type StreamEvent } from "./streams.js";

export interface ClientOptions {
  /**
   * host:port, or several: the replicas are then called in turn, and one that fails or leaves is passed over.
   * dns:///name:port stands for every address of the name, which is looked up again and again.
   */
  address: string | readonly string[];
  /** A bearer token, or a function that gives one. It is asked before each attempt. */
  token?: Token;
  /** TLS with the authorities that Node.js knows. Unset: TLS if `tlsCa` or `tlsCertificate` is given. */
  tls?: boolean;
  /** The certificates, as PEM text, of the authority that signed the service's. */
  tlsCa?: string | Buffer;
  /** The client's own certificate chain and private key, as PEM text. */
  tlsCertificate?: string | Buffer;
  tlsKey?: string | Buffer;
  /** Milliseconds that a call may take with all its attempts. 10 000 unless set. Streams have no end. */
  timeoutMs?: number;
  /** Headers of every call. */
  headers?: Readonly<Record<string, string>>;
  /**
   * How a dead connection is noticed while a call or stream is open: a ping after so many milliseconds of silence, 30 000
   * unless set, and its answer within so many, 10 000 unless set. The service allows two pings a second.
   */
  pingIntervalMs?: number;
  pingTimeoutMs?: number;
}

/** Which exchanges to list: those that match each filter that is set. */
export interface ExchangeFilters {
  assetClass?: string;
  source?: ExchangeSource;
  search?: string;
}

/**
 * Calls the service. Every method rejects with ServiceError: the service's reason, or ServiceUnreachable; or with the
 * reason of its signal. Requests have the fields of the protos. Amounts are texts, and versions are bigint.
 */
export class Client {
  readonly #caller: Caller;
  readonly #timeoutMs: number;

  /** @internal Use `createClient`. */
  constructor(caller: Caller, timeoutMs: number) {
    this.#caller = caller;
    this.#timeoutMs = timeoutMs;
  }

  /** One page of the catalogue. */
  listExchanges(
    request: MessageInitShape<typeof ListExchangesRequestSchema> = {},
    options: CallOptions = {},
  ): Promise<ListExchangesResponse> {
    return this.#caller.call((one, wire) => one.exchanges.listExchanges(request, wire), options, this.#timeoutMs, true);
  }

  /** Every exchange that the filters select, over all pages. */
  async allExchanges(
    filters: ExchangeFilters = {},
    options: CallOptions = {},
  ): Promise<Exchange[]> {
    const exchanges: Exchange[] = [];
    let pageToken = "";
    do {
      const page = await this.listExchanges({ ...filters, pageToken }, options);
      exchanges.push(...page.exchanges);
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    return exchanges;
  }

  /**
   * The balance of one account. With `knownVersion`, the version of a balance that you have, it is never an older one.
   * `maxAge` unset: as the service is set; zero: ask the venue now, which counts against a quota.
   */
  getBalance(
    request: MessageInitShape<typeof GetBalanceRequestSchema>,
    options: CallOptions = {},
  ): Promise<GetBalanceResponse> {
    return this.#caller.call((one, wire) => one.exchanges.getBalance(request, wire), options, this.#timeoutMs, true);
  }

  /** All accounts of a user once, or those that `accounts` selects: each with its balance, or why it has no balance. */
  balances(
    userId: string,
    options: CallOptions & { accounts?: readonly MessageInitShape<typeof AccountSelectorSchema>[] } = {},
  ): Promise<AccountBalance[]> {
    const { accounts = [], ...rest } = options;
    return readOnce(this.#caller, { userId, accounts }, { timeoutMs: this.#timeoutMs, ...rest });
  }

  /**
   * The events of a user's accounts, until you stop iterating or an error is thrown. No `accounts`: all.
   *
   * `known` is what you have of accounts already, each named as its events name it, with its `knownVersion` and
   * `unconfirmed`: only what is newer is sent. A stream that ends because the service restarts, cannot be reached any
   * more, has no database or takes no further stream for now, or because its token has ended, is opened again with what
   * it has brought: an event "reconnecting" says so. An address that was never reached is an error at once.
   */
  streamBalances(
    request: MessageInitShape<typeof StreamBalancesRequestSchema>,
    options: CallOptions = {},
  ): AsyncGenerator<StreamEvent, void, undefined> {
    return resumedStream(this.#caller, request, options);
  }

  /** The accounts for which a credential of the user is stored. It needs the right to manage, as the next three do. */
  listAccounts(
    request: MessageInitShape<typeof ListAccountsRequestSchema> = {},
    options: CallOptions = {},
  ): Promise<ListAccountsResponse> {
    return this.#caller.call((one, wire) => one.accounts.listAccounts(request, wire), options, this.#timeoutMs, false);
  }

  /** Stores a credential after it was tried at the venue. It is not made again by itself, as the next two are not. */
  connectAccount(
    request: MessageInitShape<typeof ConnectAccountRequestSchema>,
    options: CallOptions = {},
  ): Promise<ConnectAccountResponse> {
    return this.#caller.call((one, wire) => one.accounts.connectAccount(request, wire), options, this.#timeoutMs, false);
  }

  /** Tries a stored credential at the venue: what it shows, and what its key may do. */
  checkAccount(
    request: MessageInitShape<typeof CheckAccountRequestSchema>,
    options: CallOptions = {},
  ): Promise<CheckAccountResponse> {
    return this.#caller.call((one, wire) => one.accounts.checkAccount(request, wire), options, this.#timeoutMs, false);
  }

  /** Removes a stored credential. */
  async removeAccount(
    request: MessageInitShape<typeof RemoveAccountRequestSchema>,
    options: CallOptions = {},
  ): Promise<void> {
    await this.#caller.call((one, wire) => one.accounts.removeAccount(request, wire), options, this.#timeoutMs, false);
  }

  /** The plugins of the replica that answers, and the processes that run them. For operators. */
  listPlugins(options: CallOptions = {}): Promise<ListPluginsResponse> {
    return this.#caller.call((one, wire) => one.plugins.listPlugins({}, wire), options, this.#timeoutMs, false);
  }

  /** Closes all connections. Calls and streams that are open reject. */
  close(): void {
    this.#caller.close();
  }
}

/**
 * A client, which connects when it is first called. Throws a TypeError for an address that is not host:port, and for a
 * token, also one in `headers`, that would be sent to another machine in plaintext.
 */
export function createClient(options: ClientOptions): Client {
  const addresses = parseAddresses(options.address);
  const tls = tlsOf(options);
  const { token, headers = {}, timeoutMs = 10_000, pingIntervalMs = 30_000, pingTimeoutMs = 10_000 } = options;
  if (!(timeoutMs > 0)) {
    throw new RangeError("timeoutMs should be more than 0.");
  }
  if (typeof token === "string") {
    validToken(token);
  }
  const bearsToken = token !== undefined || Object.keys(headers).some((name) => name.toLowerCase() === "authorization");
  if (bearsToken && tls === undefined && !addresses.every(isLoopback)) {
    throw new TypeError("A token is not sent to another machine in plaintext: use TLS (tls or tlsCa).");
  }
  const replicas = new Replicas(addresses, { pingIntervalMs, pingTimeoutMs, tls });
  return new Client(new Caller(replicas, token, headers), timeoutMs);
}

function tlsOf({ tls, tlsCa, tlsCertificate, tlsKey }: ClientOptions) {
  if (!(tls ?? (tlsCa !== undefined || tlsCertificate !== undefined))) {
    return undefined;
  }
  if (tlsCa !== undefined && !tlsCa.toString().includes("-----BEGIN CERTIFICATE-----")) {
    throw new TypeError("tlsCa is not PEM text: read the file, and give what it holds.");
  }
  return { ca: tlsCa, cert: tlsCertificate, key: tlsKey };
}
