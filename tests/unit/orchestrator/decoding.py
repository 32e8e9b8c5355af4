"""Runs the decode loop over fake workers."""

from __future__ import annotations

from arborist.core.policy import Eagle2Policy
from arborist.core.policy_settings import DraftCalls
from arborist.core.sampling import SamplingParams
from arborist.core.shape import TreeShape
from arborist.orchestrator.clock import SystemClock
from arborist.orchestrator.deadlines import DeadlinePolicy, Deadlines
from arborist.orchestrator.decode import DecodeLimits, Decoder
from arborist.orchestrator.links import WorkerPool
from arborist.orchestrator.request_trace import NoTrace
from arborist.orchestrator.round import Round
from arborist.orchestrator.session import Session
from arborist.orchestrator.tree_sizer import RoundSizer

PROMPT = [5, 9, 13, 2, 40, 33, 21]
SHAPE = TreeShape(depth=4, top_k=3, num_draft_tokens=10)
MAX_TOKENS = 24


def make_decoder(
    workers: WorkerPool,
    *,
    prompt: list[int] = PROMPT,
    shape: TreeShape | None = SHAPE,
    max_tokens: int = MAX_TOKENS,
    sampling: SamplingParams | None = None,
    eos: frozenset[int] = frozenset(),
    retry_rounds: int = 2,
    draft_calls: DraftCalls = "level",
    stop_tokens: frozenset[int] = frozenset(),
    num_logprobs: int | None = None,
    tenant: str | None = None,
    noise_aware: bool = True,
    sizer: RoundSizer | None = None,
) -> tuple[Decoder, Session]:
    """Returns a decoder with short chunks, so that a prompt takes several, and its session."""
    session = Session(
        "s",
        list(prompt),
        sampling or SamplingParams(),
        max_tokens,
        eos,
        stop_tokens,
        num_logprobs,
        tenant,
    )
    decoder = Decoder(
        session,
        workers,
        Eagle2Policy(shape) if shape else None,
        limits=DecodeLimits(
            prefill_chunk_tokens=3,
            bulk_part_bytes=32,
            draft_retry_rounds=retry_rounds,
            draft_calls=draft_calls,
            noise_aware=noise_aware,
        ),
        deadlines=Deadlines(DeadlinePolicy()),
        clock=SystemClock(),
        trace=NoTrace(),
        sizer=sizer,
    )
    return decoder, session


async def decode(decoder: Decoder) -> list[Round]:
    """Decodes to the end and frees everything."""
    try:
        return [round_ async for round_ in decoder.run()]
    finally:
        decoder.close()
