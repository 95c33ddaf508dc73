import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

export interface Problem {
  code: Code;
  /** One of docs/errors.md, such as "CREDENTIAL_REJECTED". Empty: the service was not reached, or something else answered. */
  reason: string;
  /** For a person: what happened, and what to do next. */
  message: string;
  /** What is wrong with single fields of the request, by their names, such as "fields.api_key". */
  fields: Map<string, string>;
  /** How long to wait before the next attempt. Undefined: not known, or another attempt does not help. */
  retryAfterMilliseconds: number | undefined;
}

/** All that a failed call says. */
export function readProblem(error: unknown): Problem {
  const failure = ConnectError.from(error);
  const reason = failure.findDetails(ErrorInfoSchema)[0]?.reason ?? "";
  const faults = failure.findDetails(BadRequestSchema).flatMap((request) => request.fieldViolations);
  const delay = failure.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return {
    code: failure.code,
    reason,
    message: reason === "" ? failure.rawMessage : failure.rawMessage.replace(`${reason}: `, ""),
    fields: new Map(faults.map((fault) => [fault.field, fault.description])),
    retryAfterMilliseconds: delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
  };
}
