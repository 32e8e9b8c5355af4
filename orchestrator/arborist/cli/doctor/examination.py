"""What is measured of a pair, in which order, and what is left out because it cannot matter."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from arborist.cli.doctor.acceptance import DecodedPrompt, decode, tau_of
from arborist.cli.doctor.diagnosis import GOOD_AGREEMENT, Comparison, Measurements, best_shift
from arborist.cli.doctor.layer_search import MAX_PASSAGES, LayerSearch
from arborist.cli.doctor.patient import Patient
from arborist.cli.doctor.prompts import DoctorPrompt
from arborist.cli.doctor.quantisation import quantisation_of
from arborist.cli.doctor.teacher_forcing import Passage, agreements, forced_run, read_features

SHIFTS = (-1, 0, 1)
# Tau does not need more, and every run that is fed costs a forward per token.
_MAX_PASSAGE_TOKENS = 1024
_MIN_PROMPT_TOKENS, _MIN_OUTPUT_TOKENS = 3, 2


def examine(patient: Patient, prompts: Sequence[DoctorPrompt], max_tokens: int) -> Measurements:
    """Measures a pair.

    Args:
        patient: The pair.
        prompts: At least one.
        max_tokens: Most tokens per output.
    Raises:
        ArboristError: A prompt does not suit the target, or the models failed.
    """
    given = [patient.as_given(prompt) for prompt in prompts]
    decoded = decode(patient.model(), given, max_tokens)
    template = _compare(
        patient, decoded, [patient.with_template(prompt) for prompt in prompts], max_tokens
    )
    bos = _compare(patient, decoded, [patient.with_bos(ids) for ids in given], max_tokens)
    passages = _passages(patient, decoded)
    spec = patient.draft.feature_spec
    agreement, by_passage = _agreement_by_shift(patient, passages)
    asked = mean(by_passage[:MAX_PASSAGES]) if by_passage else None
    best = None
    if asked is not None and asked < GOOD_AGREEMENT and not best_shift(agreement):
        best = LayerSearch(patient.target, patient.draft, passages).best()
    return Measurements(
        tau=tau_of(decoded),
        with_template=template,
        with_bos=bos,
        agreement=agreement,
        asked_layers=None if spec is None else spec.layer_ids,
        best_layers=best,
        agreement_as_asked=asked,
        num_layers=patient.target.info.num_layers,
        quantisation=quantisation_of(patient.target_files),
    )


def _compare(
    patient: Patient,
    decoded: Sequence[DecodedPrompt],
    changed: Sequence[list[int] | None],
    max_tokens: int,
) -> Comparison | None:
    """Returns tau of the prompts that can be changed, before and after; None = there are none."""
    pairs = [(one, ids) for one, ids in zip(decoded, changed, strict=True) if ids is not None]
    if not pairs:
        return None
    before = tau_of([one for one, _ in pairs])
    after = tau_of(decode(patient.model(), [ids for _, ids in pairs], max_tokens))
    return None if before is None or after is None else Comparison(before, after)


def _passages(patient: Patient, decoded: Sequence[DecodedPrompt]) -> list[Passage]:
    """Returns the outputs that a head can be fed with, each with its prompt."""
    limit = min(_MAX_PASSAGE_TOKENS, patient.target.info.context_length)
    return [
        Passage((*one.prompt_ids, *one.output_ids), len(one.prompt_ids))
        for one in decoded
        if len(one.prompt_ids) >= _MIN_PROMPT_TOKENS
        and len(one.output_ids) >= _MIN_OUTPUT_TOKENS
        and len(one.prompt_ids) + len(one.output_ids) <= limit
    ]


def _agreement_by_shift(
    patient: Patient, passages: Sequence[Passage]
) -> tuple[dict[int, float], list[float]]:
    """Returns the mean over the passages by shift, and the share of every passage at shift 0."""
    if not passages:
        return {}, []
    features = [read_features(patient.target, one, patient.draft.feature_spec) for one in passages]
    shares = {
        shift: agreements(
            patient.draft,
            [forced_run(one, fed, shift) for one, fed in zip(passages, features, strict=True)],
        )
        for shift in SHIFTS
    }
    return {shift: mean(found) for shift, found in shares.items()}, shares[0]
