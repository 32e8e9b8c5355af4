import type {
  GenerateResponse,
  OutputLogprobs,
  Round,
  Started,
  Summary,
} from "./gen/arborist/v1/generation_pb.js";

import { ArboristError } from "./arborist-error.js";

/** What comes of a request, in order: `started`, one `round` per round, `summary`. */
export type GenerationEvent = Exclude<GenerateResponse["event"], { case: undefined }>;

/** A whole output. */
export interface Completion {
  /** What the server decided. */
  started: Started;
  /** Text, without the stop string that ended it. */
  text: string;
  /** Tokens, up to the one that completed a stop string. */
  tokenIds: number[];
  /** Log-probs of all tokens; empty unless asked for. */
  logprobs: OutputLogprobs[];
  /** What each round delivered. */
  rounds: Round[];
  /** How it ended. */
  summary: Summary;
}

/**
 * Reads a stream of events to its end.
 *
 * @throws ArboristError when the stream ends before its summary.
 */
export async function readCompletion(events: AsyncIterable<GenerationEvent>): Promise<Completion> {
  let started: Started | undefined;
  let summary: Summary | undefined;
  const rounds: Round[] = [];
  for await (const event of events) {
    if (event.case === "started") started = event.value;
    else if (event.case === "round") rounds.push(event.value);
    else summary = event.value;
  }
  if (started === undefined || summary === undefined) {
    const message = "the stream ended before its summary";
    throw new ArboristError({ code: "UNAVAILABLE", message });
  }
  return {
    started,
    text: rounds.map((one) => one.text).join(""),
    tokenIds: rounds.flatMap((one) => one.tokenIds),
    logprobs: rounds.flatMap((one) => one.logprobs),
    rounds,
    summary,
  };
}
