"""What the demo measures: the same prompts with and without a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arborist.client import Client, Completion, Message, Prompt, RoundEvent, Speculation
from arborist.core.errors import InvalidArgumentError

QUESTIONS = (
    "Write a Python function that returns the sum of the even numbers in a list.",
    "Tom has 12 apples. He buys 3 bags with 5 apples each. How many apples does he have now?",
    "How do I make a good cup of tea?",
)
# For a model without a tokenizer: any ids do.
_TOKEN_PROMPTS = ((1, 17, 300, 42), (9, 8, 7), (5, 12, 19, 26, 33))
_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, decoded both ways."""

    drafted: Completion
    plain: Completion

    @property
    def identical(self) -> bool:
        """Returns whether both ways gave the same tokens."""
        return self.drafted.token_ids == self.plain.token_ids


@dataclass(frozen=True, slots=True)
class Comparison:
    """All prompts, decoded both ways."""

    pairs: tuple[Pair, ...]

    @property
    def num_identical(self) -> int:
        """Returns the prompts whose outputs are the same."""
        return sum(one.identical for one in self.pairs)

    @property
    def tau(self) -> float:
        """Returns mean tokens per round of speculative decoding; 0 without rounds."""
        summaries = [one.drafted.summary.speculation for one in self.pairs]
        rounds = sum(one.rounds for one in summaries)
        accepted = sum(one.accepted_tokens for one in summaries)
        return 1 + accepted / rounds if rounds else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Returns decode speed with a draft, over all prompts."""
        return _tokens_per_s([one.drafted for one in self.pairs])

    @property
    def plain_tokens_per_s(self) -> float:
        """Returns decode speed without one."""
        return _tokens_per_s([one.plain for one in self.pairs])

    def summary(self) -> str:
        """Returns the demo's last line."""
        plain = self.plain_tokens_per_s
        speedup = self.tokens_per_s / plain if plain else 0.0
        return (
            f"demo: prompts={len(self.pairs)} "
            f"identical_to_plain={self.num_identical}/{len(self.pairs)} "
            f"tau={self.tau:.2f} tokens_per_s={self.tokens_per_s:.1f} "
            f"plain_tokens_per_s={plain:.1f} speedup={speedup:.2f}"
        )


def compare(
    client: Client,
    max_tokens: int,
    *,
    on_prompt: Callable[[int, str], None],
    on_round: Callable[[RoundEvent], None],
) -> Comparison:
    """Runs every prompt with speculation, streaming, then without.

    Args:
        client: Of the deployment.
        max_tokens: Most tokens per output.
        on_prompt: Called before a prompt with its number from 1 and its text.
        on_round: Called with every round of the speculative output as it comes.

    Returns:
        Both outputs of every prompt.

    Raises:
        ArboristError: A request failed.
    """
    prompts = _prompts_that_fit(client)
    # The first requests of a process pay for what is set up once.
    for enabled in (True, False):
        _run(client, prompts[0], _WARM_UP_TOKENS, enabled, lambda _: None)
    pairs = []
    for index, prompt in enumerate(prompts):
        on_prompt(index + 1, QUESTIONS[index] if _is_text(prompt) else str(list(prompt)))
        drafted = _run(client, prompt, max_tokens, True, on_round)
        plain = _run(client, prompt, max_tokens, False, lambda _: None)
        pairs.append(Pair(drafted, plain))
    return Comparison(tuple(pairs))


def _run(
    client: Client,
    prompt: Prompt,
    max_tokens: int,
    speculation: bool,
    on_round: Callable[[RoundEvent], None],
) -> Completion:
    options = Speculation(enabled=speculation)
    with client.generate(prompt, max_tokens=max_tokens, speculation=options) as stream:
        for one in stream:
            on_round(one)
        return stream.completion()


def _prompts_that_fit(client: Client) -> Sequence[Prompt]:
    """Returns the questions as the model takes them: as a chat, as text, or as token ids."""
    forms: tuple[Sequence[Prompt], ...] = (
        [[Message("user", one)] for one in QUESTIONS],
        QUESTIONS,
        _TOKEN_PROMPTS,
    )
    for form in forms[:-1]:
        try:
            client.complete(form[0], max_tokens=1)
        except InvalidArgumentError:
            continue  # No chat template, or no tokenizer at all.
        return form
    return forms[-1]


def _is_text(prompt: Prompt) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[0], Message)


def _tokens_per_s(completions: Sequence[Completion]) -> float:
    # The first token is the prefill's; decode_ms begins with it.
    tokens = sum(max(len(one.token_ids) - 1, 0) for one in completions)
    seconds = sum(one.summary.timing.decode_ms for one in completions) / 1e3
    return tokens / seconds if seconds else 0.0
