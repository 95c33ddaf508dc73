import type { Clients } from "./clients.js";
import type {
  AccountCheck,
  ConnectAccountResponse,
} from "./gen/exchange_service/accounts/v1/account_service_pb.js";
import type { CredentialField, Exchange } from "./gen/exchange_service/v1/exchange_pb.js";
import { type Problem, readProblem } from "./problems.js";

/** One input of the form. `field` says its label, whether it is required and secret, and its help. */
export interface FormField {
  field: CredentialField;
  value: string;
  /** Offer several lines: it takes a private key. */
  severalLines: boolean;
  /** What is wrong with the value. Empty: nothing is known to be wrong. */
  fault: string;
}

/** The form of one exchange, to connect an account, or to repair one: the two are the same call. */
export class ConnectForm {
  readonly fields: FormField[];
  environment: string;
  /** Why the last attempt failed. Undefined: it did not. */
  problem: Problem | undefined;
  private readonly clients: Clients;
  private readonly userId: string;
  private readonly exchange: Exchange;

  constructor(clients: Clients, userId: string, exchange: Exchange, environment = "production") {
    this.clients = clients;
    this.userId = userId;
    this.exchange = exchange;
    this.environment = environment;
    this.fields = exchange.credentialFields.map((field) => ({
      field,
      value: "",
      severalLines: field.privateKeys.length > 0,
      fault: "",
    }));
  }

  /** Tries the key at the venue and stores it. Undefined: it failed, nothing was changed, and `problem` says why. */
  async submit(skipCheck = false): Promise<ConnectAccountResponse | undefined> {
    const fields = Object.fromEntries(this.fields.map((input) => [input.field.name, input.value]));
    try {
      const request = { ...this.account(), fields, skipCheck };
      const response = await this.clients.accounts.connectAccount(request, { timeoutMs: 30_000 });
      this.show(undefined);
      this.fields.forEach((input) => (input.value = ""));
      return response;
    } catch (error) {
      this.show(readProblem(error));
      return undefined;
    }
  }

  /** Tries the stored key again. Rejects with the venue's error if the account cannot be read. */
  async check(): Promise<AccountCheck | undefined> {
    return (await this.clients.accounts.checkAccount(this.account())).check;
  }

  /** Removes the stored key. It stays valid at the venue until the user deletes it there. */
  async remove(): Promise<void> {
    await this.clients.accounts.removeAccount(this.account());
  }

  private show(problem: Problem | undefined): void {
    this.problem = problem;
    for (const input of this.fields) {
      input.fault = problem?.fields.get(`fields.${input.field.name}`) ?? "";
    }
  }

  private account() {
    return { userId: this.userId, exchangeId: this.exchange.id, environment: this.environment };
  }
}
