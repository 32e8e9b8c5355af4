"""`LocalModel`: the in-process way to a completion."""

from pathlib import Path

import pytest
from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.cli.local import LocalModel
from arborist.common.config import ArboristConfig, load_config
from arborist.core.errors import InvalidArgumentError
from arborist.draft.engine import EagleDraftEngine, load_draft
from arborist.orchestrator.api.incoming import IncomingRequest, TokenPrompt
from arborist.orchestrator.generation import SpeculationOptions
from arborist.orchestrator.round import Round
from arborist.target.engine import HfTargetEngine, load_target

PAIR = Path(__file__).resolve().parents[2] / "golden" / "eagle2"
Engines = tuple[HfTargetEngine, EagleDraftEngine]
PROMPT = TokenPrompt((1, 2, 3, 4, 5))


@pytest.fixture(scope="module")
def engines() -> Engines:
    """The golden pair, loaded once."""
    target = load_target(PAIR / "target", device="cpu", dtype="float32", kv_capacity_tokens=512)
    draft = load_draft(
        PAIR / "eagle_head",
        PAIR / "target",
        device="cpu",
        dtype="float32",
        kv_capacity_tokens=512,
    )
    return target, draft


def test_rounds_are_shown_as_controller_and_client_see_them(engines: Engines) -> None:
    """Both views agree; the target's token at every node comes on request."""
    model = LocalModel(engines[0], engines[1], None, ArboristConfig(), want_node_tokens=True)
    rounds: list[Round] = []
    seen: list[tuple[int, ...]] = []

    completion = model.complete(
        IncomingRequest(PROMPT, max_tokens=16, ignore_eos=True),
        on_text=lambda round_: seen.append(round_.token_ids),
        on_round=rounds.append,
    )

    assert [tuple(one.tokens) for one in rounds] == seen
    assert tuple(token for one in seen for token in one) == completion.token_ids
    assert rounds[0].round_index == -1
    assert all(len(one.node_tokens) == one.num_draft_tokens + 1 for one in rounds[1:])
    assert completion.started.prompt_tokens == 5


@pytest.mark.parametrize("ending", ["length", "stop", "refused"])
def test_nothing_of_a_request_stays(engines: Engines, ending: str) -> None:
    """However it ends, both engines have all their KV back."""
    target, draft = engines
    tokenizer = byte_level_tokenizer()
    model = LocalModel(target, draft, tokenizer, ArboristConfig())
    free = model.complete(IncomingRequest(PROMPT, max_tokens=16, ignore_eos=True))
    character = tokenizer.decode(free.token_ids)[4:5]
    stop = (character,) if ending == "stop" else ()
    request = IncomingRequest(
        PROMPT, max_tokens=0 if ending == "refused" else 16, ignore_eos=True, stop=stop
    )

    if ending == "refused":
        with pytest.raises(InvalidArgumentError):
            model.complete(request)
    else:
        completion = model.complete(request)
        assert completion.summary.finish_reason == ending
        assert completion.summary.completion_tokens == len(completion.token_ids)
        assert completion.token_ids == free.token_ids[: len(completion.token_ids)]

    assert target.kv_reserved_tokens == 0
    assert draft.kv_reserved_tokens == 0


def test_speculation_without_a_draft_is_refused_only_when_asked_for(engines: Engines) -> None:
    """Never a silent tau of 1."""
    model = LocalModel(engines[0], None, None, ArboristConfig())
    asked = SpeculationOptions(enabled=True)

    plain = model.complete(IncomingRequest(PROMPT, max_tokens=4, ignore_eos=True))
    with pytest.raises(InvalidArgumentError, match="no draft is loaded"):
        model.complete(IncomingRequest(PROMPT, max_tokens=4, speculation=asked))

    assert plain.summary.speculation.draft_tokens == 0
    assert plain.summary.speculation.rounds_without_draft == 0
    assert not model.models()[0].speculation


def test_a_model_is_loaded_as_a_server_would() -> None:
    """Folders, names and limits come from the configuration."""
    config = load_config(
        flags={
            "target.model": str(PAIR / "target"),
            "target.name": "golden",
            "draft.model": str(PAIR / "eagle_head"),
            "target.kv_capacity_tokens": 512,
            "draft.kv_capacity_tokens": 512,
            "speculation.max_depth": 6,
        }
    )
    model = LocalModel.load(config)

    assert model.models()[0].id == "golden"
    assert model.tokenizer is None
    with pytest.raises(InvalidArgumentError, match=r"speculation.depth = 7: .*\[1, 6\]"):
        model.complete(IncomingRequest(PROMPT, speculation=SpeculationOptions(depth=7)))
