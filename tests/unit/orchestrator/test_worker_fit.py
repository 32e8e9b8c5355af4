"""A head is used with its own target only."""

import dataclasses

import pytest

from arborist.core.engine import ModelInfo
from arborist.core.features import FeatureSpec
from arborist.orchestrator.worker_fit import draft_misfit

TARGET = ModelInfo("t", "dt", 100, 32, 8, 512, 1, "float32", (), "e1")
DRAFT = ModelInfo("d", "dd", 100, 32, 1, 512, 1, "float32", (), "e1")
FINAL_NORM = FeatureSpec()


def test_a_head_of_its_target_fits():
    """Equal vocabulary, width and embedding."""
    assert draft_misfit(TARGET, DRAFT, FINAL_NORM, 32) == ""
    layers = FeatureSpec((0, 4, 7))
    assert draft_misfit(TARGET, DRAFT, layers, 96) == ""


def test_unknown_embeddings_are_given_the_benefit_of_the_doubt():
    """A worker that tells no digest is judged by its sizes."""
    silent = dataclasses.replace(DRAFT, embedding_digest="")
    assert draft_misfit(TARGET, silent, FINAL_NORM, 32) == ""


def test_a_language_model_draft_needs_the_tokens_only():
    """It takes no features and has a width of its own; the digest says whose tokens it shares."""
    model = dataclasses.replace(DRAFT, hidden_size=16)
    assert draft_misfit(TARGET, model, None, 0) == ""


@pytest.mark.parametrize(
    ("changes", "spec", "width", "said"),
    [
        ({"vocab_size": 99}, FINAL_NORM, 32, "vocab_size"),
        ({"vocab_size": 99}, None, 0, "vocab_size"),
        ({}, FINAL_NORM, 31, "width"),
        ({}, FeatureSpec((1, 2)), 32, "width"),
        ({}, FeatureSpec((1, 8)), 64, "layer 8 is wanted, the target has layers 0 to 7"),
        ({"embedding_digest": "e2"}, FINAL_NORM, 32, "embedding"),
        ({"embedding_digest": "e2"}, None, 0, "embedding"),
    ],
)
def test_what_does_not_fit_is_said(changes, spec, width, said):
    """The text names what differs."""
    misfit = draft_misfit(TARGET, dataclasses.replace(DRAFT, **changes), spec, width)
    assert said in misfit
