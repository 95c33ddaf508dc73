import { lookup } from "node:dns/promises";
import { isIP } from "node:net";

/** One replica's address, or a name that stands for those of several. */
export interface Address {
  /** As it was given, for messages. */
  text: string;
  host: string;
  port: number;
  /** Whether the host is a name, each of whose addresses is a replica's. */
  isName: boolean;
  /** The name in the certificate of an address that a name stands for. */
  serverName?: string;
}

const NAME = "dns:///";

/**
 * The addresses of `address`, each host:port, [IPv6]:port or dns:///name:port. Throws a TypeError for anything else, or if
 * the array is empty.
 */
export function parseAddresses(address: string | readonly string[]): Address[] {
  const texts = typeof address === "string" ? [address] : [...address];
  if (texts.length === 0) {
    throw new TypeError("There is no address: give host:port, or an array of several.");
  }
  return texts.map(parseAddress);
}

function parseAddress(text: string): Address {
  const isName = text.startsWith(NAME);
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/@[\]]+)):(\d{1,5})$/.exec(isName ? text.slice(NAME.length) : text);
  const host = match?.[1] ?? match?.[2] ?? "";
  const port = Number(match?.[3]);
  if (match === null || port < 1 || port > 65535) {
    throw new TypeError(`The address ${JSON.stringify(text)} is not host:port, such as "127.0.0.1:50051".`);
  }
  return { text, host, port, isName };
}

/** The replicas' addresses: of a name all that it stands for now. Rejects if the name is not known. */
export async function resolve(address: Address): Promise<Address[]> {
  const { host, port, isName, text } = address;
  if (!isName) {
    return [address];
  }
  const found = await lookup(host, { all: true });
  return found.map((one) => ({
    text: `${text} (${one.address})`,
    host: one.address,
    port,
    isName: false,
    serverName: host,
  }));
}

/** Whether an address is on this machine. Any other name may lead to another one, "127.example.com" too. */
export function isLoopback({ host }: Address): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

/** The URL for HTTP/2 requests. */
export function urlOf({ host, port }: Address, tls: boolean): string {
  return `${tls ? "https" : "http"}://${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
}
