import { Code, ConnectError } from "@connectrpc/connect";

import { ErrorReason } from "./gen/exchange_service/v1/error_reason_pb.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** Every reason that the service gives, see docs/errors.md. */
export type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/** What is wrong with one field of a request. */
export interface Violation {
  /** The field's name in the protos, such as "exchange_id" or "fields.api_key". */
  field: string;
  description: string;
}

interface ErrorFields {
  code: Code;
  retryAfterMs?: number | undefined;
  requestId?: string;
  violations?: readonly Violation[];
  cause?: unknown;
}

/** A call that failed. */
export class ServiceError extends Error {
  override readonly name: string = "ServiceError";
  /**
   * Why. "UNREACHABLE": the service did not answer, see ServiceUnreachable. "UNKNOWN": the service gives a reason that
   * is newer than this package; `message` begins with it, and `code` says what kind it is.
   */
  readonly reason: Reason | "UNREACHABLE" | "UNKNOWN";
  /** gRPC's code. */
  readonly code: Code;
  /** How many milliseconds to wait before the next attempt. Undefined: not known, or another attempt does not help. */
  readonly retryAfterMs: number | undefined;
  /** The call's name in the service's log. Empty: the service did not give one. */
  readonly requestId: string;
  /** The wrong fields of the request. Empty, unless the reason is FIELD_INVALID. */
  readonly violations: readonly Violation[];
  /** What to wait before another attempt by the trailer for gRPC's retries; -1: make none. Undefined: not said. */
  readonly pushbackMs: number | undefined;

  constructor(
    reason: ServiceError["reason"],
    message: string,
    { code, retryAfterMs, requestId = "", violations = [], pushbackMs, cause }: ErrorFields & { pushbackMs?: number | undefined },
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.reason = reason;
    this.code = code;
    this.retryAfterMs = retryAfterMs;
    this.requestId = requestId;
    this.violations = violations;
    this.pushbackMs = pushbackMs;
  }
}

/** Nothing answers at the service's address, or something other than this service does. */
export class ServiceUnreachable extends ServiceError {
  override readonly name = "ServiceUnreachable";
  /** Whether a connection stood, so that the request may have been seen. */
  readonly connected: boolean;

  constructor(message: string, { connected, ...fields }: ErrorFields & { connected: boolean }) {
    super("UNREACHABLE", message, fields);
    this.connected = connected;
  }

  /** Whether another attempt may help: what refuses a call for what it is goes on doing so. */
  get passes(): boolean {
    return !REFUSALS.has(this.code);
  }
}

/** Whether another replica may answer what this one has not: it is gone, or leaves. */
export function isOfReplica(error: ServiceError): boolean {
  return error instanceof ServiceUnreachable || error.reason === "SHUTTING_DOWN";
}

// A proxy's answers, such as 401, 403 and 404.
const REFUSALS = new Set([
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.Unimplemented,
  Code.NotFound,
  Code.InvalidArgument,
  Code.FailedPrecondition,
  Code.OutOfRange,
]);
const PUSHBACK = "grpc-retry-pushback-ms";
const DOMAIN = "exchange-service";

/** The error of a call at `address`: of the reason that the service gives, else that it did not answer. */
export function readError(error: unknown, address: string): ServiceError {
  if (error instanceof ServiceError) {
    return error;
  }
  const failure = ConnectError.from(error);
  const info = failure.findDetails(ErrorInfoSchema).find(({ domain }) => domain === DOMAIN);
  if (info !== undefined) {
    return fromDetails(failure, info.reason);
  }
  return failure.code === Code.DeadlineExceeded ? deadlinePassed(address, failure) : unanswered(failure, address);
}

function fromDetails(failure: ConnectError, reason: string): ServiceError {
  const delay = failure.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const pushback = failure.metadata.get(PUSHBACK);
  const faults = failure.findDetails(BadRequestSchema).flatMap((request) => request.fieldViolations);
  return new ServiceError(isReason(reason) ? reason : "UNKNOWN", failure.rawMessage, {
    code: failure.code,
    retryAfterMs: delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
    requestId: failure.metadata.get("x-request-id") ?? "",
    violations: faults.map(({ field, description }) => ({ field, description })),
    // What cannot be read means none, as gRPC has it.
    pushbackMs: pushback === null ? undefined : /^\d{1,9}$/.test(pushback) ? Number(pushback) : -1,
    cause: failure,
  });
}

function isReason(reason: string): reason is Reason {
  return reason !== "UNSPECIFIED" && Number.isNaN(Number(reason)) && Object.hasOwn(ErrorReason, reason);
}

/** The caller's time is over, and the service has not said so. */
export function deadlinePassed(address: string, cause?: unknown): ServiceError {
  const message = `DEADLINE_PASSED: The service at ${address} did not answer in time. Give the call more time.`;
  return new ServiceError("DEADLINE_PASSED", message, { code: Code.DeadlineExceeded, cause });
}

function unanswered(failure: ConnectError, address: string): ServiceUnreachable {
  const text = `${Code[failure.code]}: ${failure.rawMessage.slice(0, 200)}`;
  const message = `The call to ${address} was not answered by the service (${text}). Look at the address, and whether the service wants TLS.`;
  return new ServiceUnreachable(message, { code: failure.code, connected: true, cause: failure });
}

/** No connection to any of the addresses. `reasons` are the errors of the attempts, in the same order. */
export function notConnected(addresses: readonly string[], reasons: readonly unknown[]): ServiceUnreachable {
  const attempts = addresses.map((address, index) => `${address}: ${explain(reasons[index])}`).join("; ");
  const message = `No connection to the service (${attempts}). ${advise(reasons)}`;
  return new ServiceUnreachable(message, { code: Code.Unavailable, connected: false, cause: reasons[0] });
}

function explain(reason: unknown): string {
  const causes = chainOf(reason);
  const deepest = causes.at(-1);
  const code = causes.map(codeOf).find((code) => code !== "") ?? "";
  const text = deepest instanceof ConnectError ? deepest.rawMessage : (deepest?.message ?? "unknown");
  return (code === "" || text.includes(code) ? text : `${text}, ${code}`).slice(0, 300);
}

function advise(reasons: readonly unknown[]): string {
  const codes = reasons.flatMap((reason) => chainOf(reason).map(codeOf)).join(" ");
  if (/SELF_SIGNED|UNABLE_TO_|ISSUER/.test(codes)) {
    return "Give the authority that signed the service's certificate as tlsCa.";
  }
  if (/CERT_|ALTNAME/.test(codes)) {
    return "The service's certificate does not fit: look at its names and its end.";
  }
  if (/EPROTO|ERR_SSL|ECONNRESET/.test(codes)) {
    return "One side may speak TLS and the other not: look at tls and tlsCa, and at the service's tls_certificate.";
  }
  return "Start it with `exchange-service serve` or `exchange-service demo`, or correct the address.";
}

function chainOf(reason: unknown): Error[] {
  const chain: Error[] = [];
  for (let one = reason; one instanceof Error && !chain.includes(one); one = one.cause) {
    chain.push(one);
  }
  return chain;
}

function codeOf(error: Error): string {
  return "code" in error && typeof error.code === "string" ? error.code : "";
}
