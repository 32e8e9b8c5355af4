"""What the demo says about what it measured."""

from io import StringIO

from rich.console import Console

from arborist.cli.demo_comparison import Comparison, Pair, compare
from arborist.cli.round_table import round_table
from arborist.client import (
    Completion,
    RoundEvent,
    RoundTimes,
    SpeculationSummary,
    Started,
    Summary,
    Timing,
)
from arborist.core.errors import InvalidArgumentError


def completion(tokens: list[int], accepted: list[int], decode_ms: float = 100.0) -> Completion:
    """A completion whose rounds accepted that many tokens each."""
    times = RoundTimes(10.0, 20.0, 2.0, 1.0, 33.0)
    prefill = RoundEvent(-1, (tokens[0],), "a", 0, 0, 0, times)
    rounds = [RoundEvent(i, (), "b", 24, one, 5, times) for i, one in enumerate(accepted)]
    tau = 1 + sum(accepted) / len(accepted) if accepted else 0.0
    speculation = SpeculationSummary(len(accepted), 24 * len(accepted), sum(accepted), tau, (), 0)
    timing = Timing(5.0, decode_ms, decode_ms + 5, 0.0)
    summary = Summary("length", 3, len(tokens), speculation, timing)
    started = Started("r", "m", 3, 0, "")
    return Completion(started, "ab", tuple(tokens), (prefill, *rounds), summary)


class FakeClient:
    """Takes only what a model without a chat template, or without a tokenizer, takes."""

    def __init__(self, *, takes_text: bool) -> None:
        self.takes_text = takes_text
        self.asked: list[tuple[object, bool]] = []

    def complete(self, prompt, **options):
        """Refuses chats, and text too if told so."""
        if not isinstance(prompt, str) or not self.takes_text:
            raise InvalidArgumentError("prompt", "text", "token ids")

    def generate(self, prompt, *, max_tokens, speculation):
        """Notes what was asked."""
        self.asked.append((prompt, speculation.enabled))
        return FakeStream()


class FakeStream:
    """One output of five tokens."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __iter__(self):
        return iter(completion([1, 2, 3, 4, 5], [3]).rounds)

    def completion(self) -> Completion:
        """Returns it."""
        return completion([1, 2, 3, 4, 5], [3])


def test_the_last_line_has_every_figure() -> None:
    """Speeds count the tokens after the first; tau counts all rounds alike."""
    drafted = completion([1, 2, 3, 4, 5], [1, 1], decode_ms=50)
    plain = completion([1, 2, 3, 4, 5], [], decode_ms=100)
    other = completion([1, 2, 3, 4, 6], [], decode_ms=100)
    comparison = Comparison((Pair(drafted, plain), Pair(drafted, plain), Pair(drafted, other)))

    assert comparison.summary() == (
        "demo: prompts=3 identical_to_plain=2/3 tau=2.00 tokens_per_s=80.0 "
        "plain_tokens_per_s=40.0 speedup=2.00"
    )


def test_every_prompt_is_decoded_both_ways() -> None:
    """Each prompt with a draft, streaming, then without; the first pair only warms up."""
    client = FakeClient(takes_text=True)
    prompts: list[tuple[int, str]] = []
    rounds: list[RoundEvent] = []
    comparison = compare(
        client,  # type: ignore[arg-type]
        5,
        on_prompt=lambda number, text: prompts.append((number, text)),
        on_round=rounds.append,
    )

    assert [enabled for _, enabled in client.asked] == [True, False] * 4
    assert [number for number, _ in prompts] == [1, 2, 3]
    assert all(isinstance(prompt, str) for prompt, _ in client.asked)
    assert len(rounds) == 3 * 2
    assert comparison.num_identical == 3


def test_a_model_without_a_tokenizer_gets_token_ids() -> None:
    """The demo runs with any model."""
    client = FakeClient(takes_text=False)
    compare(
        client,  # type: ignore[arg-type]
        5,
        on_prompt=lambda number, text: None,
        on_round=lambda one: None,
    )

    assert all(isinstance(prompt, tuple) for prompt, _ in client.asked)


def test_the_table_shows_rounds_and_their_means() -> None:
    """A section per prompt: the first rounds, then all of them in one row, 80 columns wide."""
    console = Console(width=80, record=True, file=StringIO())
    console.print(round_table([completion([1] * 9, [1, 3, 5]), completion([1, 1], [])], 2))
    lines = console.export_text().splitlines()
    rows = [line.split() for line in lines if line.strip()]

    assert rows[1] == [
        "round",
        "tree",
        "depth",
        "accepted",
        "tau",
        "draft",
        "verify",
        "wire",
        "control",
        "total",
    ]
    assert rows[3] == ["1", "0", "24", "5", "1", "2.00", "10.0", "20.0", "2.0", "1.0", "33.0"]
    assert rows[4][:5] == ["1", "24", "5", "3", "3.00"]
    assert rows[5] == [
        "all",
        "3",
        "24.0",
        "5.0",
        "3.0",
        "4.00",
        "10.0",
        "20.0",
        "2.0",
        "1.0",
        "33.0",
    ]
    assert "…" not in "".join(lines)
