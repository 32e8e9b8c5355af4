"""The contestants: each decodes a prompt and says how long the decoding took."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Protocol

from arborist.cli.bench.output import Output
from arborist.common.telemetry import SpanRecorder
from arborist.core.policies import Policy
from arborist.core.policy_settings import DraftCalls
from arborist.core.sampling import SamplingParams
from arborist.orchestrator.clock import SystemClock
from arborist.orchestrator.deadlines import DeadlinePolicy, Deadlines
from arborist.orchestrator.decode import DecodeLimits, Decoder
from arborist.orchestrator.links import WorkerPool
from arborist.orchestrator.round import Round
from arborist.orchestrator.session import Session
from arborist.orchestrator.spans import begin_trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A benchmark measures time, it must not lose a worker to it.
_PATIENT = DeadlinePolicy(draft_floor_s=30.0, target_floor_s=60.0, open_s=60.0, draft_open_s=60.0)


class Mode(Protocol):
    """One way of decoding."""

    @property
    def name(self) -> str:
        """Returns the mode's name of DESIGN §9."""
        ...

    async def generate(self, prompt: list[int], max_tokens: int) -> Output:
        """Decodes until an eos token or `max_tokens`."""
        ...


class HfGenerateMode:
    """transformers `generate`: sdpa attention, KV cache, the same weights, dtype and threads."""

    name = "hf_generate"

    def __init__(self, model: PreTrainedModel, eos_token_ids: tuple[int, ...]) -> None:
        self._model = model
        self._eos_token_ids = list(eos_token_ids)

    async def generate(self, prompt: list[int], max_tokens: int) -> Output:
        """Runs `generate`; the clock starts when the first new token is handed out."""
        import torch

        clock = _FirstTokenClock()
        generate: Any = self._model.generate
        with torch.inference_mode():
            ids = torch.tensor([prompt], device=self._model.device)  # [1, T]
            result = generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=self._eos_token_ids or None,
                pad_token_id=self._eos_token_ids[0] if self._eos_token_ids else 0,
                streamer=clock,
            )
        ended = time.perf_counter()
        return Output(result[0, len(prompt) :].tolist(), ended - clock.first_token_s)


class _FirstTokenClock:
    """A streamer that only notes when the first new token came."""

    def __init__(self) -> None:
        self.first_token_s = 0.0
        self._calls = 0

    def put(self, value: object) -> None:
        """Is called with the prompt, then with every new token."""
        self._calls += 1
        if self._calls == 2:
            self.first_token_s = time.perf_counter()

    def end(self) -> None:
        """Is called at the end."""


class DecoderMode:
    """This system's decode loop over some workers: plain, monolith, eagle2."""

    def __init__(
        self,
        name: str,
        workers: WorkerPool,
        policy: Policy | None,
        eos_token_ids: tuple[int, ...],
        recorder: SpanRecorder,
        draft_calls: DraftCalls = "level",
        sampling: SamplingParams | None = None,
        noise_aware: bool = True,
    ) -> None:
        """Prepares a mode.

        Args:
            name: Name of DESIGN §9.
            workers: In process or over gRPC.
            policy: Shapes the tree; None = plain decoding.
            eos_token_ids: Tokens that end an output.
            recorder: Takes the spans of every request.
            draft_calls: A command to the draft per level, or one per tree.
            sampling: How outputs are drawn; None = greedily.
            noise_aware: Whether the draft is told the target's noise.
        """
        self._limits = DecodeLimits(draft_calls=draft_calls, noise_aware=noise_aware)
        self._sampling = sampling or SamplingParams()
        self._name = name
        self._workers = workers
        self._policy = policy
        self._eos_token_ids = frozenset(eos_token_ids)
        self._recorder = recorder
        self._deadlines = Deadlines(_PATIENT)
        self._clock = SystemClock()

    @property
    def name(self) -> str:
        """Returns the mode's name of DESIGN §9."""
        return self._name

    async def generate(self, prompt: list[int], max_tokens: int) -> Output:
        """Decodes one session from open to release."""
        session = Session(
            session_id=secrets.token_hex(8),
            prompt=prompt,
            sampling=self._sampling,
            max_tokens=max_tokens,
            eos_token_ids=self._eos_token_ids,
        )
        trace = begin_trace(self._recorder, self._clock, "level", "")
        decoder = Decoder(
            session,
            self._workers,
            self._policy,
            limits=self._limits,
            deadlines=self._deadlines,
            clock=self._clock,
            trace=trace,
        )
        rounds: list[Round] = []
        first_token_s = ended = 0.0
        try:
            async for round_ in decoder.run():
                ended = time.perf_counter()
                trace.deliver(round_, len(round_.tokens))
                if round_.round_index < 0:
                    first_token_s = ended
                else:
                    rounds.append(round_)
        finally:
            decoder.close()
            trace.finish({"completion_tokens": len(session.output)})
        return Output(session.output, ended - first_token_s, rounds)
