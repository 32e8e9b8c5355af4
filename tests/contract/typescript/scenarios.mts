// Uses the client as a program would; prints what came as one line of JSON.
import {
  ArboristClient,
  ArboristError,
  FinishReason,
  type CallOptions,
  type ChatTurn,
  type GenerationRequest,
} from "arborist-client";

type Scenario = (client: ArboristClient, address: string) => Promise<unknown>;

const PROMPT = [1, 2, 3];

const scenarios: Record<string, Scenario> = {
  async models(client) {
    const [model] = await client.listModels();
    const created: bigint | undefined = model?.createdS;
    return { ...model, createdS: created };
  },

  async complete(client) {
    const { started, text, tokenIds, logprobs, rounds, summary } = await client.complete(
      {
        prompt: "abc",
        model: "tiny",
        maxTokens: 5,
        sampling: { temperature: 0.5, topK: 7, seed: 2n ** 64n - 1n, logitBias: { 5: 1.5 } },
        stop: ["zz"],
        stopTokenIds: [9],
        minTokens: 1,
        logprobs: 2,
        ignoreEos: true,
        speculation: { enabled: true, depth: 2, topK: 3, numDraftTokens: 4, policy: "chain" },
      },
      { traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01` },
    );
    return {
      seed: started.seed,
      text,
      tokenIds,
      logprobs: logprobs.map((one) => [one.logprob, one.top.map((top) => top.tokenId)]),
      totalMs: rounds.map((one) => one.times?.totalMs),
      length: summary.finishReason === FinishReason.LENGTH,
      tau: summary.speculation?.tau,
    };
  },

  async stream(client) {
    const seen: unknown[] = [];
    for await (const event of client.generate({ prompt: PROMPT })) {
      switch (event.case) {
        case "started":
          seen.push([event.case, event.value.promptTokens]);
          break;
        case "round":
          seen.push([event.case, event.value.roundIndex, event.value.tokenIds]);
          break;
        case "summary":
          seen.push([event.case, event.value.completionTokens]);
      }
    }
    return seen;
  },

  async chat(client) {
    const prompt: ChatTurn[] = [{ role: "user", content: "a" }];
    return (await client.complete({ prompt })).started.promptTokens;
  },

  async schema(client) {
    const schema = { type: "object", properties: { a: { type: "integer" } } };
    const responseFormat = {
      format: { case: "jsonSchema" as const, value: JSON.stringify(schema) },
    };
    return (await client.complete({ prompt: PROMPT, responseFormat })).text;
  },

  async signal(client) {
    const abort = new AbortController();
    let rounds = 0;
    try {
      for await (const event of client.generate({ prompt: PROMPT }, { signal: abort.signal })) {
        if (event.case === "round") rounds += 1;
        if (event.case === "round") setTimeout(() => abort.abort(), 20);
      }
    } catch (error) {
      return [rounds, parts(error)];
    }
    return "not cancelled";
  },

  async aborted(client) {
    const signal = AbortSignal.abort();
    return Promise.all([
      failure(client.complete({ prompt: PROMPT }, { signal })),
      failure(client.listModels({ signal })),
    ]);
  },

  async leave(client) {
    for await (const event of client.generate({ prompt: PROMPT })) {
      if (event.case === "round") break;
    }
    // Still connected, so it is the call that was cancelled.
    return (await client.listModels()).length;
  },

  async close(client) {
    const [failed] = await Promise.all([
      failure(client.complete({ prompt: PROMPT })),
      new Promise((resolve) => setTimeout(resolve, 200)).then(() => client.close()),
    ]);
    return [failed, (await client.listModels()).length];
  },

  async deadline(client, address) {
    const hasty = new ArboristClient({ address, timeoutMs: 150 });
    const request: GenerationRequest = { prompt: PROMPT };
    const options: CallOptions = { timeoutMs: 150 };
    const failed = [await failure(hasty.complete(request))];
    failed.push(await failure(client.complete(request, options)));
    hasty.close();
    return failed;
  },

  async fails(client) {
    return failure(client.complete({ prompt: PROMPT, maxTokens: 8 }));
  },

  async refused(client) {
    return [
      await failure(client.complete({ prompt: PROMPT, speculation: { depth: 7 } })),
      await failure(client.complete({ prompt: PROMPT, sampling: { temperature: NaN } })),
      await failure(client.complete({ prompt: [], maxTokens: 1 })),
    ];
  },

  async unfit(client, address) {
    const requests: GenerationRequest[] = [
      { prompt: PROMPT, maxTokens: 2 ** 40 },
      { prompt: [1, 1.5] },
      { prompt: "half a pair \ud83d" },
      { prompt: [{ role: "user", content: "\udc00" }] },
      { prompt: PROMPT, stop: ["a", "\ud83d"] },
      { prompt: PROMPT, stopTokenIds: [2 ** 31] },
      { prompt: PROMPT, sampling: { seed: 2n ** 64n } },
      { prompt: PROMPT, speculation: { topK: 0.5 } },
      { prompt: PROMPT, sampling: { logitBias: { 4294967296: 1 } } },
      // @ts-expect-error: a seed beyond 2^53 would not be the one that was written.
      { prompt: PROMPT, sampling: { seed: "7.5" } },
      // @ts-expect-error: the prompt is missing.
      {},
      // @ts-expect-error: no such role, and a mixture.
      { prompt: [1, { role: "tool", content: "a" }] },
    ];
    const failed = [];
    for (const one of requests) failed.push(await failure(client.complete(one)));
    for (const options of [{ address: "http://" }, { address, apiKey: "two\nlines" }]) {
      failed.push(await failure((async () => new ArboristClient(options).listModels())()));
    }
    return failed;
  },
};

// Never called: what must not compile.
export function wrong(client: ArboristClient): unknown {
  return [
    // @ts-expect-error: no such field.
    client.complete({ prompt: "a", max_tokens: 1 }),
    // @ts-expect-error: a field of sampling.
    client.complete({ prompt: "a", temperature: 1 }),
    // @ts-expect-error: seeds are bigint.
    client.complete({ prompt: "a", sampling: { seed: 7 } }),
  ];
}

async function failure(call: Promise<unknown>): Promise<unknown> {
  try {
    await call;
  } catch (error) {
    return parts(error);
  }
  return "no error";
}

function parts(error: unknown): unknown {
  if (!(error instanceof ArboristError)) return String(error);
  const { code, reason, field, retryAfterMs, message, metadata } = error;
  return { code, reason, field, retryAfterMs, message, metadata };
}

const [name = "", address = ""] = process.argv.slice(2);
const client = new ArboristClient({ address, apiKey: "secret" });
const said = await scenarios[name]?.(client, address);
client.close();
console.log(JSON.stringify(said, (_, one) => (typeof one === "bigint" ? `${one}n` : one)));
