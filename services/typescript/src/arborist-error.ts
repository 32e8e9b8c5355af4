/** Canonical code of an error, by gRPC's name. */
export type ErrorCode =
  | "CANCELLED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

/** What an `ArboristError` is made of. */
export interface ErrorParts {
  code: ErrorCode;
  message: string;
  /** The code's name when absent. */
  reason?: string;
  metadata?: Readonly<Record<string, string>>;
  retryAfterMs?: number;
  cause?: unknown;
}

/** The one error of this client: what the server refused, or why the call did not end well. */
export class ArboristError extends Error {
  /** Canonical code. */
  readonly code: ErrorCode;
  /** Machine-readable reason of the server's error table, UPPER_SNAKE_CASE. */
  readonly reason: string;
  /** Details by reason: `field`, `value` and `limit` of an invalid argument, `incident`, ... */
  readonly metadata: Readonly<Record<string, string>>;
  /** Milliseconds to wait before a retry; 0 = no advice. */
  readonly retryAfterMs: number;

  constructor(parts: ErrorParts) {
    super(parts.message, parts.cause === undefined ? {} : { cause: parts.cause });
    this.name = "ArboristError";
    this.code = parts.code;
    this.reason = parts.reason ?? parts.code;
    this.metadata = parts.metadata ?? {};
    this.retryAfterMs = parts.retryAfterMs ?? 0;
  }

  /** Field of the request that was refused, as the contract writes it; undefined otherwise. */
  get field(): string | undefined {
    return this.metadata["field"];
  }
}

/** Returns the error of a value that is refused before anything is sent. */
export function invalidArgument(field: string, value: string, limit: string): ArboristError {
  return new ArboristError({
    code: "INVALID_ARGUMENT",
    message: `${field} = ${value}: must be ${limit}`,
    metadata: { field, value, limit },
  });
}
