import { Code, ConnectError } from "@connectrpc/connect";

import { ArboristError, type ErrorCode } from "./arborist-error.js";
import { readErrorInfo, readRetryDelayMs, type ErrorInfo } from "./error-details.js";

const ERROR_DOMAIN = "arborist";

const CODES: Record<Code, ErrorCode> = {
  [Code.Canceled]: "CANCELLED",
  [Code.Unknown]: "UNKNOWN",
  [Code.InvalidArgument]: "INVALID_ARGUMENT",
  [Code.DeadlineExceeded]: "DEADLINE_EXCEEDED",
  [Code.NotFound]: "NOT_FOUND",
  [Code.AlreadyExists]: "ALREADY_EXISTS",
  [Code.PermissionDenied]: "PERMISSION_DENIED",
  [Code.ResourceExhausted]: "RESOURCE_EXHAUSTED",
  [Code.FailedPrecondition]: "FAILED_PRECONDITION",
  [Code.Aborted]: "ABORTED",
  [Code.OutOfRange]: "OUT_OF_RANGE",
  [Code.Unimplemented]: "UNIMPLEMENTED",
  [Code.Internal]: "INTERNAL",
  [Code.Unavailable]: "UNAVAILABLE",
  [Code.DataLoss]: "DATA_LOSS",
  [Code.Unauthenticated]: "UNAUTHENTICATED",
};

// What the transport reports without our details; its own text may name hosts and stays the cause.
const TRANSPORT_TEXTS: Partial<Record<ErrorCode, string>> = {
  CANCELLED: "the call was cancelled",
  DEADLINE_EXCEEDED: "the call outlived its deadline",
  RESOURCE_EXHAUSTED: "a message is over its size limit or the peer takes no more calls",
  FAILED_PRECONDITION: "the peer refused the call",
  UNIMPLEMENTED: "the peer does not have this method",
};

/** Where a call was when it failed. */
export interface CallPlace {
  /** Where it went, for messages. */
  address: string;
  /** Whether the server had answered before. */
  begun: boolean;
  /** Whether the caller cancelled it. */
  cancelled: boolean;
}

/** Returns what a failed call means to a user; what is no error of a call is returned as it is. */
export function callError(error: unknown, place: CallPlace): unknown {
  if (!(error instanceof ConnectError)) return error;
  const info = findErrorInfo(error);
  if (info !== undefined) {
    return new ArboristError({
      code: CODES[error.code],
      reason: info.reason,
      message: error.rawMessage,
      metadata: info.metadata,
      retryAfterMs: findDetail(error, "google.rpc.RetryInfo", readRetryDelayMs) ?? 0,
      cause: error,
    });
  }
  if (isLostConnection(error, place)) {
    const message = place.begun
      ? `the connection to the server at ${place.address} was lost`
      : `no server answers at ${place.address}: start one with \`arborist serve\`, or give its address`;
    return new ArboristError({ code: "UNAVAILABLE", message, cause: error });
  }
  const code = CODES[error.code];
  const message = TRANSPORT_TEXTS[code] ?? `the call ended with ${code}`;
  return new ArboristError({ code, message, cause: error });
}

function findErrorInfo(error: ConnectError): ErrorInfo | undefined {
  const info = findDetail(error, "google.rpc.ErrorInfo", readErrorInfo);
  return info?.domain === ERROR_DOMAIN ? info : undefined;
}

function findDetail<T>(
  error: ConnectError,
  type: string,
  read: (bytes: Uint8Array) => T,
): T | undefined {
  for (const detail of error.details) {
    if (!("value" in detail) || !(detail.value instanceof Uint8Array)) continue;
    if (!("type" in detail) || detail.type !== type) continue;
    try {
      return read(detail.value);
    } catch {
      return undefined; // Corrupt details: the status itself still counts.
    }
  }
  return undefined;
}

function isLostConnection(error: ConnectError, place: CallPlace): boolean {
  if (place.cancelled) return false;
  // A stream that the peer reset ends as cancelled.
  if (error.code === Code.Unavailable || error.code === Code.Canceled) return true;
  // Errors of sockets and of HTTP/2 carry Node's own codes, such as ECONNRESET.
  const cause = error.cause;
  return cause instanceof Error && "code" in cause && typeof cause.code === "string";
}
