import { createClient, type CallOptions as ConnectOptions, type Client } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

import { invalidArgument } from "./arborist-error.js";
import { callError } from "./call-error.js";
import { readCompletion, type Completion, type GenerationEvent } from "./completion.js";
import { GenerationService, type Model } from "./gen/arborist/v1/generation_pb.js";
import { LinkedAbort } from "./linked-abort.js";
import { writeRequest, type GenerationRequest } from "./request.js";

const DEFAULT_ADDRESS = "127.0.0.1:9000";
// A round is small; a message with a whole output's worth of tokens still fits.
const MAX_MESSAGE_BYTES = 16 << 20;
// An open connection keeps a process from ending.
const IDLE_CONNECTION_MS = 60_000;

/** Where a client connects to, and what holds for all its calls. */
export interface ClientOptions {
  /** host:port of the server's gRPC API, or https://host:port behind TLS. */
  address?: string;
  /** Sent as `authorization: Bearer …` with every call. */
  apiKey?: string;
  /** Milliseconds until a call fails with DEADLINE_EXCEEDED; none = no limit. */
  timeoutMs?: number;
}

/** What holds for one call. */
export interface CallOptions {
  /** Cancels the call; the server stops within a round. */
  signal?: AbortSignal;
  /** Replaces the client's. */
  timeoutMs?: number;
  /** W3C trace context of the caller's span. */
  traceparent?: string;
}

/**
 * Talks to one server, over one connection that it makes when needed. Node.js does not end while it is
 * open: `close` it; after a minute without a call it closes by itself.
 */
export class ArboristClient {
  readonly #address: string;
  readonly #apiKey: string | undefined;
  readonly #timeoutMs: number | undefined;
  readonly #sessions: Http2SessionManager;
  readonly #service: Client<typeof GenerationService>;
  #open = new AbortController();

  /**
   * Prepares; nothing is sent before the first call.
   *
   * @throws ArboristError for an address or a key that cannot be used.
   */
  constructor(options: ClientOptions = {}) {
    this.#address = options.address ?? DEFAULT_ADDRESS;
    this.#apiKey = checkedKey(options.apiKey);
    this.#timeoutMs = options.timeoutMs;
    const baseUrl = baseUrlOf(this.#address);
    this.#sessions = new Http2SessionManager(baseUrl, {
      idleConnectionTimeoutMs: IDLE_CONNECTION_MS,
    });
    const transport = createGrpcTransport({
      baseUrl,
      sessionManager: this.#sessions,
      readMaxBytes: MAX_MESSAGE_BYTES,
    });
    this.#service = createClient(GenerationService, transport);
  }

  /**
   * Streams a completion as it is generated. Nothing is sent before the first event is asked for;
   * leaving the loop cancels, and so does the signal.
   *
   * @throws ArboristError, from the loop, when the server refuses or cannot go on.
   */
  async *generate(
    request: GenerationRequest,
    options: CallOptions = {},
  ): AsyncGenerator<GenerationEvent, void, undefined> {
    const message = writeRequest(request);
    const call = new LinkedAbort(options.signal, this.#open.signal);
    let begun = false;
    try {
      const responses = this.#service.generate(message, this.#call(options, call.signal));
      for await (const { event } of responses) {
        begun = true;
        // A newer server's kinds of event are passed over.
        if (event.case !== undefined) yield event;
      }
    } catch (error) {
      const cancelled = call.signal.aborted;
      throw callError(error, { address: this.#address, begun, cancelled });
    } finally {
      call.end();
    }
  }

  /**
   * Generates to the end.
   *
   * @throws ArboristError when the server refuses or cannot go on.
   */
  async complete(request: GenerationRequest, options: CallOptions = {}): Promise<Completion> {
    return readCompletion(this.generate(request, options));
  }

  /**
   * Returns the models that the server has.
   *
   * @throws ArboristError when it does not answer.
   */
  async listModels(options: CallOptions = {}): Promise<Model[]> {
    const call = new LinkedAbort(options.signal, this.#open.signal);
    try {
      return (await this.#service.listModels({}, this.#call(options, call.signal))).models;
    } catch (error) {
      const cancelled = call.signal.aborted;
      throw callError(error, { address: this.#address, begun: false, cancelled });
    } finally {
      call.end();
    }
  }

  /** Cancels what is under way and disconnects; a later call connects anew. */
  close(): void {
    this.#open.abort();
    this.#open = new AbortController();
    this.#sessions.abort();
  }

  #call(options: CallOptions, signal: AbortSignal): ConnectOptions {
    const headers = new Headers();
    if (this.#apiKey !== undefined) headers.set("authorization", `Bearer ${this.#apiKey}`);
    if (options.traceparent !== undefined) headers.set("traceparent", options.traceparent);
    const timeoutMs = options.timeoutMs ?? this.#timeoutMs;
    return {
      headers,
      signal,
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
    };
  }
}

function baseUrlOf(address: string): string {
  const url = address.includes("://") ? address : `http://${address}`;
  try {
    return new URL(url).origin;
  } catch {
    throw invalidArgument("address", address.slice(0, 64), "host:port or https://host:port");
  }
}

function checkedKey(key: string | undefined): string | undefined {
  // Headers would refuse it too, and name it in the error.
  if (key !== undefined && !/^[\x21-\x7e]+$/.test(key)) {
    throw invalidArgument("apiKey", "text", "visible ASCII characters, at least one");
  }
  return key;
}
