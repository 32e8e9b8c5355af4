/** Aborts with the first of several signals, or when the call that it stands for ends. */
export class LinkedAbort {
  readonly #outer: readonly AbortSignal[];
  readonly #inner = new AbortController();
  // Without the outer reason: whatever it is, the call was cancelled.
  readonly #follow = () => this.#inner.abort();

  constructor(...outer: (AbortSignal | undefined)[]) {
    this.#outer = outer.filter((one) => one !== undefined) as AbortSignal[];
    for (const one of this.#outer) {
      one.addEventListener("abort", this.#follow);
      if (one.aborted) this.#follow();
    }
  }

  /** What the call follows. */
  get signal(): AbortSignal {
    return this.#inner.signal;
  }

  /** Ends the call, if it has not ended, and forgets the signals. */
  end(): void {
    for (const one of this.#outer) one.removeEventListener("abort", this.#follow);
    this.#inner.abort();
  }
}
