import { create, toBinary, type MessageInitShape } from "@bufbuild/protobuf";

import { invalidArgument } from "./arborist-error.js";
import { GenerateRequestSchema, type GenerateRequest } from "./gen/arborist/v1/generation_pb.js";
import { unfitValue } from "./unfit-value.js";

/** One turn of a conversation. */
export interface ChatTurn {
  role: "system" | "user" | "assistant";
  content: string;
}

/** Text, token ids, or a conversation to render with the model's chat template. */
export type Prompt = string | readonly number[] | readonly ChatTurn[];

/**
 * A completion to ask for: the fields of the contract's `GenerateRequest`, and the prompt as it is.
 * What is left out takes the server's default. Seeds are `bigint`, 64 bits.
 */
export type GenerationRequest = Omit<
  MessageInitShape<typeof GenerateRequestSchema>,
  "$typeName" | "$unknown" | "prompt"
> & { prompt: Prompt };

type PromptField = NonNullable<MessageInitShape<typeof GenerateRequestSchema>["prompt"]>;

/**
 * Returns the message of a request; the server checks the values.
 *
 * @throws ArboristError for a value that no message can carry: another type, more bits.
 */
export function writeRequest(request: GenerationRequest): GenerateRequest {
  const { prompt, ...fields } = request;
  fields.stop?.forEach((one, index) => checkText(`stop[${index}]`, one));
  const message = create(GenerateRequestSchema, { ...fields, prompt: writePrompt(prompt) });
  try {
    toBinary(GenerateRequestSchema, message);
  } catch (error) {
    throw unfitValue(error, message);
  }
  return message;
}

function writePrompt(prompt: Prompt): PromptField {
  if (typeof prompt === "string") {
    checkText("prompt", prompt);
    return { case: "text", value: prompt };
  }
  if (isConversation(prompt)) {
    prompt.forEach((one, index) => checkText(`messages[${index}].content`, one.content));
    return { case: "messages", value: { messages: [...prompt] } };
  }
  if (isTokenIds(prompt)) return { case: "tokenIds", value: { ids: [...prompt] } };
  const kind = Array.isArray(prompt) ? "a mixture" : typeof prompt;
  throw invalidArgument("prompt", kind, "text, token ids or messages");
}

function isConversation(prompt: unknown): prompt is readonly ChatTurn[] {
  const isTurn = (one: unknown) => typeof one === "object" && one !== null;
  return Array.isArray(prompt) && prompt.length > 0 && prompt.every(isTurn);
}

function isTokenIds(prompt: unknown): prompt is readonly number[] {
  return Array.isArray(prompt) && prompt.every((one) => typeof one === "number");
}

function checkText(field: string, text: string): void {
  // Encoding would quietly put another character in the place of half a surrogate pair.
  if (/\p{Surrogate}/u.test(text)) throw invalidArgument(field, "text", "text that UTF-8 can carry");
}
