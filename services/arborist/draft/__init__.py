"""The draft worker: an EAGLE head, its KV and the engine that expands trees with it."""
