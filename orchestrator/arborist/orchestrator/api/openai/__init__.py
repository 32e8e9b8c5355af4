"""The HTTP API that OpenAI's clients speak: what it takes, what it answers, how it streams."""
