import { ScalarType, type DescField, type DescMessage } from "@bufbuild/protobuf";

import { invalidArgument, type ArboristError } from "./arborist-error.js";
import {
  ChatMessageSchema,
  GenerateRequestSchema,
  SamplingSchema,
  SpeculationSchema,
  TokenIdsSchema,
  type GenerateRequest,
} from "./gen/arborist/v1/generation_pb.js";

/** Part of a request: how the server writes its fields, and what they hold. */
interface Part {
  schema: DescMessage;
  name: (field: string) => string;
  values: object | undefined;
}

/**
 * Returns what a value means to a user that protobuf could not encode.
 *
 * @param error What encoding threw; it names the field.
 * @param request The message.
 */
export function unfitValue(error: unknown, request: GenerateRequest): ArboristError {
  const text = error instanceof Error ? error.message : "";
  const [, type, fieldName] = /^cannot encode field ([\w.]+)\.(\w+)/.exec(text) ?? [];
  for (const { schema, name, values } of partsOf(request)) {
    const field = schema.fields.find((one) => one.name === fieldName);
    if (schema.typeName !== type || field === undefined) continue;
    const value = values === undefined ? undefined : Reflect.get(values, field.localName);
    return refusal(field, name(field.name), value);
  }
  return invalidArgument("request", "what was given", "one that the contract can carry");
}

function refusal(field: DescField, name: string, value: unknown): ArboristError {
  if (Array.isArray(value)) {
    const index = value.findIndex((one) => typeof one !== "number" || one !== (one | 0));
    return invalidArgument(`${name}[${index}]`, shown(value[index]), limitOf(field));
  }
  return invalidArgument(name, shown(value), limitOf(field));
}

function shown(value: unknown): string {
  // Never a text itself: it may be a prompt.
  if (typeof value === "string") return "text";
  return typeof value === "object" ? "an object" : String(value).slice(0, 64);
}

function partsOf(request: GenerateRequest): Part[] {
  const prompt = request.prompt.value;
  return [
    { schema: GenerateRequestSchema, name: (field) => field, values: request },
    { schema: TokenIdsSchema, name: () => "token_ids", values: asObject(prompt) },
    { schema: ChatMessageSchema, name: (field) => `messages[].${field}`, values: undefined },
    { schema: SamplingSchema, name: (field) => field, values: request.sampling },
    { schema: SpeculationSchema, name: (field) => `speculation.${field}`, values: request.speculation },
  ];
}

function asObject(value: unknown): object | undefined {
  return typeof value === "object" && value !== null ? value : undefined;
}

function limitOf(field: DescField): string {
  if (field.fieldKind === "map") return "a number for each 32-bit token id";
  switch (field.scalar) {
    case ScalarType.INT32:
      return "a 32-bit integer";
    case ScalarType.FIXED64:
      return "an unsigned 64-bit bigint";
    case ScalarType.BOOL:
      return "true or false";
    case ScalarType.STRING:
      return "text";
    default:
      return "a number";
  }
}
