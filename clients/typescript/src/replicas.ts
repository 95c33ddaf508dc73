import type { SecureClientSessionOptions } from "node:http2";

import { type Client, createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

import { type Address, resolve, urlOf } from "./addresses.js";
import { notConnected, ServiceUnreachable } from "./errors.js";
import { AccountService } from "./gen/exchange_service/accounts/v1/account_service_pb.js";
import { PluginService } from "./gen/exchange_service/operator/v1/plugin_service_pb.js";
import { ExchangeService } from "./gen/exchange_service/v1/exchange_service_pb.js";
import { orAborted } from "./waiting.js";

const CONNECT_MS = 5_000;
// A server lets each connection have so many calls and streams open at the same time, and Node.js lets further ones wait
// without a word. This service's limit is 250; proxies often have 100 or 128.
const CALLS_A_CONNECTION = 100;
// A replica that has been started again is tried within this time.
const RECONNECT_MS = 1_000;
// How long a replica that has failed or is leaving comes last.
const AVOID_MS = 3_000;
// How long a replica that may do better is waited for if one that has just failed is connected.
const HOPE_MS = 500;
// How old the addresses of a name may be; while no replica is connected they are looked up every second.
const RESOLVE_MS = 5_000;

/** How connections are made. `tls` undefined: in plaintext. */
export interface ConnectionOptions {
  pingIntervalMs: number;
  pingTimeoutMs: number;
  tls: SecureClientSessionOptions | undefined;
}

/** One HTTP/2 connection to a replica, which is opened again when it is needed. */
export class Connection {
  readonly exchanges: Client<typeof ExchangeService>;
  readonly accounts: Client<typeof AccountService>;
  readonly plugins: Client<typeof PluginService>;
  readonly sessions: Http2SessionManager;
  /** The calls and streams that are open on it. */
  calls = 0;

  constructor(address: Address, { tls, ...pings }: ConnectionOptions) {
    const url = urlOf(address, tls !== undefined);
    const named = address.serverName === undefined ? tls : tls && { servername: address.serverName, ...tls };
    this.sessions = new Http2SessionManager(url, { ...pings, connectTimeoutMs: CONNECT_MS }, named);
    const transport = createGrpcTransport({ baseUrl: url, sessionManager: this.sessions, acceptCompression: [] });
    this.exchanges = createClient(ExchangeService, transport);
    this.accounts = createClient(AccountService, transport);
    this.plugins = createClient(PluginService, transport);
  }

  get isOpen(): boolean {
    return this.sessions.state() === "open" || this.sessions.state() === "idle";
  }
}

/** One address of the service, with as many connections as its open calls need. */
export class Replica {
  readonly address: string;
  readonly #open: () => Connection;
  readonly #connections: Connection[];
  #failedAt = -Infinity;
  #avoidUntil = -Infinity;

  constructor(address: Address, options: ConnectionOptions) {
    this.address = address.text;
    this.#open = () => new Connection(address, options);
    this.#connections = [this.#open()];
  }

  get isConnected(): boolean {
    return this.#connections.some((connection) => connection.isOpen);
  }

  /** Whether it has just failed, or said that it is leaving. */
  get isAvoided(): boolean {
    return performance.now() < this.#avoidUntil;
  }

  avoid(): void {
    this.#avoidUntil = performance.now() + AVOID_MS;
  }

  /** A connection with room for one more call: count the call in its `calls`. */
  connection(): Connection {
    const found = this.#connections.find(({ calls }) => calls < CALLS_A_CONNECTION);
    if (found !== undefined) {
      return found;
    }
    const made = this.#open();
    this.#connections.push(made);
    return made;
  }

  /** Connects, unless it is connected. Rejects with the cause. */
  async connect(): Promise<this> {
    const { sessions } = this.connection();
    const wasConnected = this.isConnected;
    if ((await sessions.connect()) === "error") {
      this.#failedAt = performance.now();
      throw sessions.error() ?? new Error("the connection was closed");
    }
    if (!wasConnected) {
      // It has been started again: one that leaves takes no new connection.
      this.#avoidUntil = -Infinity;
    }
    return this;
  }

  /** Connects in the background, unless that has just failed. */
  connectSoon(): void {
    if (!this.isConnected && performance.now() - this.#failedAt >= RECONNECT_MS) {
      this.connect().catch(() => undefined);
    }
  }

  /** Closes what is not in use: a name does not stand for it any more. */
  retire(): void {
    this.#connections.filter(({ calls }) => calls === 0).forEach(({ sessions }) => sessions.abort());
  }

  close(): void {
    this.#connections.forEach(({ sessions }) => sessions.abort());
  }
}

/** The replicas in turn, as gRPC's round_robin has it: those that are connected, while the others are connected to. */
export class Replicas {
  readonly #given: readonly Address[];
  readonly #options: ConnectionOptions;
  readonly #areNamed: boolean;
  // By their addresses.
  #all: ReadonlyMap<string, Replica> = new Map();
  // Many clients that start at the same time do not begin with the same replica.
  #next = Math.floor(Math.random() * 1_000);
  #resolving: Promise<void> | undefined;
  #resolvedAt = -Infinity;

  constructor(addresses: readonly Address[], options: ConnectionOptions) {
    this.#given = addresses;
    this.#options = options;
    this.#areNamed = addresses.some(({ isName }) => isName);
    if (!this.#areNamed) {
      this.#follow(addresses);
    }
  }

  /** Whether another replica may answer what one has not. */
  get areSeveral(): boolean {
    return this.#all.size > 1;
  }

  /** The addresses, for a message. */
  get text(): string {
    return this.#given.map(({ text }) => text).join(", ");
  }

  /**
   * The replica for the next attempt: rather not one of `failed`. Rejects with ServiceUnreachable if there is no
   * connection to any of them, and with the signal's reason.
   */
  async pick(failed: ReadonlySet<Replica>, signal: AbortSignal): Promise<Replica> {
    if (this.#areNamed) {
      await orAborted(this.#resolveNames(), signal);
    }
    const rank = (replica: Replica) => (failed.has(replica) ? 2 : replica.isAvoided ? 1 : 0);
    const order = this.#inTurn().sort((one, other) => rank(one) - rank(other));
    order.forEach((replica) => replica.connectSoon());
    const connected = order.find(({ isConnected }) => isConnected);
    if (connected === undefined) {
      return orAborted(this.#connectAny(order), signal);
    }
    const better = order.filter((replica) => rank(replica) < rank(connected));
    return (await orAborted(firstOf(better, HOPE_MS), signal)) ?? connected;
  }

  /** Looks names up that were not looked up lately, and waits for that while no replica is connected. */
  async #resolveNames(): Promise<void> {
    const isConnected = [...this.#all.values()].some((replica) => replica.isConnected);
    if (performance.now() - this.#resolvedAt >= (isConnected ? RESOLVE_MS : RECONNECT_MS)) {
      this.#resolvedAt = performance.now();
      this.#resolving = this.#resolveAll();
      // While some are known, a failure of the lookup costs nothing.
      this.#resolving.catch(() => undefined);
    }
    if (!isConnected) {
      await this.#resolving?.catch((error: unknown) => this.#requireSome(error));
    }
  }

  async #resolveAll(): Promise<void> {
    const found = await Promise.all(this.#given.map(resolve));
    this.#follow(found.flat());
  }

  #requireSome(error: unknown): void {
    if (this.#all.size === 0) {
      throw notConnected([this.text], [error]);
    }
  }

  #follow(addresses: readonly Address[]): void {
    const before = this.#all;
    const made = (address: Address) => before.get(address.text) ?? new Replica(address, this.#options);
    this.#all = new Map(addresses.map((address) => [address.text, made(address)]));
    before.forEach((replica, text) => this.#all.has(text) || replica.retire());
  }

  #inTurn(): Replica[] {
    const all = [...this.#all.values()];
    const first = this.#next++ % all.length;
    return [...all.slice(first), ...all.slice(0, first)];
  }

  async #connectAny(order: readonly Replica[]): Promise<Replica> {
    try {
      return await Promise.any(order.map((replica) => replica.connect()));
    } catch (error) {
      throw this.#unreachable(order, error);
    }
  }

  #unreachable(order: readonly Replica[], error: unknown): ServiceUnreachable {
    const reasons: unknown[] = error instanceof AggregateError ? error.errors : [error];
    return notConnected(
      order.map(({ address }) => address),
      reasons,
    );
  }

  close(): void {
    this.#all.forEach((replica) => replica.close());
  }
}

/** The first that connects in time; undefined if none does. */
async function firstOf(replicas: readonly Replica[], milliseconds: number): Promise<Replica | undefined> {
  if (replicas.length === 0) {
    return undefined;
  }
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => (timer = setTimeout(() => resolve(undefined), milliseconds)));
  try {
    return await Promise.race([late, Promise.any(replicas.map((replica) => replica.connect()))]);
  } catch {
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}
