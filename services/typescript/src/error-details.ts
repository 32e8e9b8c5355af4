import { fromBinary } from "@bufbuild/protobuf";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { DurationSchema } from "@bufbuild/protobuf/wkt";

/** `google.rpc.ErrorInfo`. */
export interface ErrorInfo {
  reason: string;
  domain: string;
  metadata: Record<string, string>;
}

// Two messages of google.rpc are read by field number: generating them would need their protos.

/** Reads a `google.rpc.ErrorInfo`; throws when the bytes are none. */
export function readErrorInfo(bytes: Uint8Array): ErrorInfo {
  const info: ErrorInfo = { reason: "", domain: "", metadata: {} };
  readFields(bytes, (field, reader) => {
    if (field === 1) info.reason = reader.string();
    else if (field === 2) info.domain = reader.string();
    else if (field === 3) {
      const [key, value] = readEntry(reader.bytes());
      info.metadata[key] = value;
    } else return false;
    return true;
  });
  return info;
}

/** Reads a `google.rpc.RetryInfo`: milliseconds to wait; throws when the bytes are none. */
export function readRetryDelayMs(bytes: Uint8Array): number {
  let delayMs = 0;
  readFields(bytes, (field, reader) => {
    if (field !== 1) return false;
    const delay = fromBinary(DurationSchema, reader.bytes());
    delayMs = Math.max(0, Number(delay.seconds) * 1000 + delay.nanos / 1e6);
    return true;
  });
  return delayMs;
}

function readEntry(bytes: Uint8Array): [string, string] {
  let key = "";
  let value = "";
  readFields(bytes, (field, reader) => {
    if (field === 1) key = reader.string();
    else if (field === 2) value = reader.string();
    else return false;
    return true;
  });
  return [key, value];
}

/** Walks over the fields of a message; what `read` returns false for is passed over. */
function readFields(bytes: Uint8Array, read: (field: number, reader: BinaryReader) => boolean) {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (!read(field, reader)) reader.skip(wireType, field);
  }
}
