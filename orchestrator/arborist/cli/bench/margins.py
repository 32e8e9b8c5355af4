"""How sure the target was: the gap between its two best logits along an output."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from arborist.cli.bench.flips import Margin, Place
from arborist.cli.bench.output import Output
from arborist.core.engine import (
    Prefill,
    PrefillResult,
    TargetEngine,
    TargetOpen,
    TargetOutcome,
    Verify,
    VerifyResult,
)
from arborist.core.errors import ArboristError, SessionFailedError
from arborist.core.sampling import SamplingParams
from arborist.orchestrator.decode import DecodeLimits

if TYPE_CHECKING:
    from arborist.cli.bench.contest import BenchSettings

_log = logging.getLogger(__name__)
OutcomeT = TypeVar("OutcomeT", PrefillResult, VerifyResult)
_SESSION = ("bench", "margins")


def plain_margins(
    engine: TargetEngine,
    prompt: Sequence[int],
    tokens: Sequence[int],
    last: int,
    sampling: SamplingParams | None = None,
) -> list[float]:
    """Follows an output as plain decoding computes it: the prompt in chunks, then row by row.

    Args:
        engine: The target, in any dtype.
        prompt: Token ids.
        tokens: The output, whose tokens are fed whatever the engine would say.
        last: Last position wanted, in [0, len(tokens)].
        sampling: How the output was drawn; None = greedily.
    Returns:
        The gap between the two best (perturbed) logits for the token at position 0, 1, ... `last`.
    Raises:
        ArboristError: The engine failed.
    """
    request = TargetOpen(sampling or SamplingParams(), None, len(prompt) + last, 0)
    engine.open(_SESSION, request)
    try:
        margins = [_prefill_margin(engine, prompt)]
        for place, token in enumerate(tokens[:last]):
            work = Verify(_SESSION, len(prompt) + place + 1, token, [], [], want_features=False)
            margins.append(_expect(engine.run([work])[0], VerifyResult).min_margin)
    finally:
        engine.release(_SESSION)
    return margins


def measure_margins(
    settings: BenchSettings,
    prompts: Sequence[Sequence[int]],
    plain: Sequence[Output],
    places: Iterable[Place],
) -> dict[Place, Margin]:
    """Computes the margins after prefixes of plain decoding's outputs, in own dtype and in fp32.

    What cannot be computed (fp32 weights may not fit on the device) stays unknown: figures that
    took an hour are not lost to it.

    Args:
        settings: The target, where, and in which dtype.
        prompts: Token ids.
        plain: Outputs of plain decoding, by prompt.
        places: Prompts and positions.
    Returns:
        A margin per place.
    """
    wanted = sorted(set(places))
    own = _try_dtype(settings, settings.dtype, prompts, plain, wanted)
    fp32 = own
    if settings.dtype != "float32":
        fp32 = _try_dtype(settings, "float32", prompts, plain, wanted)
    return {place: Margin(own.get(place), fp32.get(place)) for place in wanted}


def _try_dtype(
    settings: BenchSettings,
    dtype: str,
    prompts: Sequence[Sequence[int]],
    plain: Sequence[Output],
    places: Sequence[Place],
) -> dict[Place, float]:
    if not places:
        return {}
    import torch

    from arborist.cli.bench.models import load_local_target

    last = dict(places)  # Ascending, so a prompt keeps its furthest position.
    try:
        engine = load_local_target(settings, dtype)
        lines = {
            prompt: plain_margins(
                engine, prompts[prompt], plain[prompt].token_ids, position, settings.sampling
            )
            for prompt, position in last.items()
        }
    except (ArboristError, torch.OutOfMemoryError) as error:
        _log.warning("no margins in %s: %s", dtype, error)
        return {}
    return {(prompt, position): lines[prompt][position] for prompt, position in places}


def _prefill_margin(engine: TargetEngine, prompt: Sequence[int]) -> float:
    chunk = DecodeLimits().prefill_chunk_tokens  # As large as the decode loop's.
    margin = 0.0
    for begin in range(0, len(prompt), chunk):
        part = list(prompt[begin : begin + chunk])
        ends = begin + chunk >= len(prompt)
        work = Prefill(_SESSION, begin, part, last=ends, want_features=False)
        margin = _expect(engine.run([work])[0], PrefillResult).margin
    return margin


def _expect(outcome: TargetOutcome, kind: type[OutcomeT]) -> OutcomeT:
    if isinstance(outcome, ArboristError):
        raise outcome
    if not isinstance(outcome, kind):
        raise SessionFailedError(f"expected {kind.__name__}, got {type(outcome).__name__}")
    return outcome
