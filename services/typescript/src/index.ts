export { ArboristError, type ErrorCode } from "./arborist-error.js";
export { ArboristClient, type CallOptions, type ClientOptions } from "./client.js";
export type { Completion, GenerationEvent } from "./completion.js";
export { FinishReason } from "./gen/arborist/v1/generation_pb.js";
export type {
  Model,
  OutputLogprobs,
  ResponseFormat,
  Round,
  RoundTimes,
  Sampling,
  Speculation,
  SpeculationSummary,
  Started,
  Summary,
  Timing,
  TokenLogprob,
} from "./gen/arborist/v1/generation_pb.js";
export type { ChatTurn, GenerationRequest, Prompt } from "./request.js";
