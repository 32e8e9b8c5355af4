"""Brings up the contestants, lets them decode every prompt in turn, and takes them down."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from arborist.cli.bench.draft_kinds import DRAFT_LM_MODES, FRSPEC, draft_kind, policy_of
from arborist.cli.bench.modes import DecoderMode, HfGenerateMode, Mode
from arborist.cli.bench.output import Output
from arborist.cli.bench.questions import Question
from arborist.cli.bench.workers import BenchWorkers
from arborist.common.config import TelemetryConfig
from arborist.common.startup_objects import freeze_startup_objects
from arborist.common.telemetry import SpanRecorder, build_span_recorder
from arborist.core.errors import InvalidArgumentError
from arborist.core.policies import Policy, policy_by_name
from arborist.core.policy_settings import DEFAULT_MIN_FRONTIER_LOGPROB, POLICY_NAMES, DraftCalls
from arborist.core.sampling import SamplingParams
from arborist.core.shape import TreeShape
from arborist.core.tree_paths import TreePaths
from arborist.orchestrator.api.incoming import ChatTurn
from arborist.orchestrator.api.tokenizer import Tokenizer
from arborist.orchestrator.local_links import FixedWorkers, LocalDraftLink, LocalTargetLink

MODES = ("hf_generate", "plain", "monolith", *POLICY_NAMES, FRSPEC, *DRAFT_LM_MODES)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is compared, and how.

    Attributes:
        target: Folder of the target.
        draft: Folder of the head.
        modes: Contestants, in the order they take turns.
        shape: Bounds of the tree, for every mode that drafts.
        max_tokens: Most tokens per output.
        dtype: float32, bfloat16 or float16, of every contestant.
        device: cpu or cuda:N, of every contestant.
        num_threads: Compute threads of every contestant; 0 = as workers are configured, and every
            core in process.
        repetitions: Times every prompt is decoded by every mode.
        kv_capacity_tokens: KV of each worker, in tokens.
        tracing: Whether every round is traced, as in production.
        trace_file: Where spans go; None = a file that is dropped afterwards.
        tree_paths: Nodes of eagle1_static; None = EAGLE-1's own.
        min_frontier_logprob: Where dynamic_depth stops.
        draft_calls: A command to the draft per level, or one per tree; in process always levels.
        sampling: How every output is drawn.
        noise_aware: Whether the draft is told the target's noise.
        vocabulary_file: Ids that frspec drafts, most frequent first; the other modes draft all.
        vocabulary_size: So many of them; None = all.
        draft_lm: Folder of the language model that the draft_lm modes draft with.
    """

    target: str
    draft: str
    modes: tuple[str, ...]
    shape: TreeShape
    max_tokens: int
    dtype: str
    device: str = "cpu"
    num_threads: int = 0
    repetitions: int = 5
    kv_capacity_tokens: int = 8192
    tracing: bool = True
    trace_file: Path | None = None
    tree_paths: TreePaths | None = None
    min_frontier_logprob: float = DEFAULT_MIN_FRONTIER_LOGPROB
    draft_calls: DraftCalls = "tree"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    noise_aware: bool = True
    vocabulary_file: Path | None = None
    vocabulary_size: int | None = None
    draft_lm: str | None = None

    def __post_init__(self) -> None:
        """Checks what modes, vocabulary and drafts ask of each other.

        Raises:
            InvalidArgumentError: One is given without the other.
        """
        if FRSPEC in self.modes and self.vocabulary_file is None:
            raise InvalidArgumentError("--vocabulary-file", "unset", f"set for mode {FRSPEC}")
        if self.vocabulary_file is not None and FRSPEC not in self.modes:
            raise InvalidArgumentError(
                "--vocabulary-file", self.vocabulary_file.name, f"unset without mode {FRSPEC}"
            )
        if self.vocabulary_size is not None and self.vocabulary_file is None:
            raise InvalidArgumentError(
                "--vocabulary-size", self.vocabulary_size, "unset without --vocabulary-file"
            )
        drafted = [mode for mode in self.modes if mode in DRAFT_LM_MODES]
        if drafted and self.draft_lm is None:
            raise InvalidArgumentError("--draft-lm", "unset", f"set for mode {drafted[0]}")
        if self.draft_lm is not None and not drafted:
            raise InvalidArgumentError(
                "--draft-lm", self.draft_lm, f"unset without mode {' or '.join(DRAFT_LM_MODES)}"
            )

    def policy(self, mode: str) -> Policy | None:
        """Returns the policy of a mode that runs the decode loop; None for plain decoding.

        Raises:
            InvalidArgumentError: The static tree has nothing within the shape.
        """
        if mode == "plain":
            return None
        return policy_by_name(
            policy_of(mode),
            self.shape,
            paths=self.tree_paths,
            min_frontier_logprob=self.min_frontier_logprob,
        )


@dataclass(slots=True)
class Results:
    """What a contest gave.

    Attributes:
        outputs: By mode, repetition and prompt.
        prompts: Token ids of every prompt that was decoded.
        num_skipped: Prompts that did not fit the context.
    """

    outputs: dict[str, list[list[Output]]] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    num_skipped: int = 0


class Contest:
    """The contestants, ready to decode."""

    def __init__(
        self, settings: BenchSettings, modes: Sequence[Mode], tokenizer: Tokenizer, context: int
    ) -> None:
        self._settings = settings
        self._modes = modes
        self._tokenizer = tokenizer
        self._context = context

    async def run(self, questions: Sequence[Question], progress: Any) -> Results:
        """Decodes every turn of every question with every mode, `repetitions` times.

        Modes take turns at every prompt, so that whatever else the machine does hits all alike.
        The first prompt is decoded once more before, to warm everything up.

        Args:
            questions: Conversations; later turns see the first mode's earlier answers.
            progress: Called with no arguments after every output.
        Returns:
            All outputs; prompts that do not fit the context are skipped and counted.
        """
        results = Results(outputs={mode.name: [] for mode in self._modes})
        await self._first_repetition(questions, results, progress)
        if not results.prompts:
            raise InvalidArgumentError("--prompts", "no prompt", "one that fits the context")
        for _ in range(self._settings.repetitions - 1):
            for mode in self._modes:
                results.outputs[mode.name].append([])
            for prompt in results.prompts:
                await self._decode(prompt, results, progress)
        return results

    async def _first_repetition(
        self, questions: Sequence[Question], results: Results, progress: Any
    ) -> None:
        for mode in self._modes:
            results.outputs[mode.name].append([])
        for question in questions:
            turns: list[ChatTurn] = []
            for text in question.turns:
                turns.append(ChatTurn("user", text))
                prompt = self._encode(turns)
                if len(prompt) + self._settings.max_tokens > self._context:
                    results.num_skipped += 1
                    break
                if not results.prompts:
                    await self._warm_up(prompt)
                results.prompts.append(prompt)
                answer = await self._decode(prompt, results, progress)
                turns.append(ChatTurn("assistant", self._tokenizer.decode(answer.token_ids)))

    async def _warm_up(self, prompt: list[int]) -> None:
        for mode in self._modes:
            await mode.generate(prompt, min(16, self._settings.max_tokens))

    async def _decode(self, prompt: list[int], results: Results, progress: Any) -> Output:
        answers: list[Output] = []
        for mode in self._modes:
            answers.append(await mode.generate(prompt, self._settings.max_tokens))
            results.outputs[mode.name][-1].append(answers[-1])
            progress()
        return answers[0]

    def _encode(self, turns: list[ChatTurn]) -> list[int]:
        if self._tokenizer.has_chat_template:
            return self._tokenizer.render_chat(turns)
        return self._tokenizer.encode("\n\n".join(turn.content for turn in turns))


@asynccontextmanager
async def open_contest(settings: BenchSettings, tokenizer: Tokenizer) -> AsyncIterator[Contest]:
    """Starts what the modes need: engines in process, workers as processes; stops it again.

    Raises:
        ArboristError: A model cannot be loaded or a worker does not start.
    """
    async with AsyncExitStack() as stack:
        trace_file = settings.trace_file
        if settings.tracing and trace_file is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="arborist-bench-"))
            trace_file = Path(folder) / "spans.jsonl"
        recorder = SpanRecorder()
        if settings.tracing:
            recorder = build_span_recorder(TelemetryConfig(trace_file=trace_file), "controller")
            stack.callback(recorder.shutdown)
        from arborist.cli.bench.models import (
            load_hf,
            load_local_draft,
            load_local_target,
            model_facts,
        )

        facts = model_facts(settings.target)
        modes: list[Mode] = []
        remote = BenchWorkers(settings, trace_file, stack)
        for name in settings.modes:
            make = partial(
                DecoderMode,
                name,
                eos_token_ids=facts.eos_token_ids,
                recorder=recorder,
                sampling=settings.sampling,
                noise_aware=settings.noise_aware,
            )
            if name == "hf_generate":
                modes.append(HfGenerateMode(load_hf(settings), facts.eos_token_ids))
            elif name == "monolith":
                local = FixedWorkers(
                    LocalTargetLink(load_local_target(settings, settings.dtype)),
                    LocalDraftLink(load_local_draft(settings)),
                )
                modes.append(make(workers=local, policy=settings.policy(name)))
            else:
                workers = await remote.pool(draft_kind(name))
                policy, calls = settings.policy(name), settings.draft_calls
                modes.append(make(workers=workers, policy=policy, draft_calls=calls))
        freeze_startup_objects()
        yield Contest(settings, modes, tokenizer, facts.context_length)
