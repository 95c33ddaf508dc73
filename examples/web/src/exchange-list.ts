import type { Clients } from "./clients.js";
import type { Exchange } from "./gen/exchange_service/v1/exchange_pb.js";
import { ExchangeSource, type ListExchangesResponse } from "./gen/exchange_service/v1/exchange_service_pb.js";

export interface ExchangeFilter {
  assetClass?: string;
  source?: ExchangeSource;
  search?: string;
}

/** The catalogue in place of a hard-coded list: kept, and asked for again at the cost of a few bytes. */
export class ExchangeList {
  exchanges: Exchange[] = [];
  private readonly clients: Clients;
  private readonly filter: ExchangeFilter;
  // The newest response of each page, by its token.
  private pages = new Map<string, ListExchangesResponse>();

  constructor(clients: Clients, filter: ExchangeFilter = {}) {
    this.clients = clients;
    this.filter = filter;
  }

  /** Reads the list again; true if it has changed. */
  async refresh(): Promise<boolean> {
    const pages = new Map<string, ListExchangesResponse>();
    let changed = false;
    let pageToken = "";
    do {
      const kept = this.pages.get(pageToken);
      const response = await this.clients.exchanges.listExchanges({ ...this.filter, pageToken, etag: kept?.etag });
      const page = kept && response.notModified ? kept : response;
      changed ||= page !== kept;
      pages.set(pageToken, page);
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    this.pages = pages;
    this.exchanges = [...pages.values()].flatMap((page) => page.exchanges);
    return changed;
  }
}
