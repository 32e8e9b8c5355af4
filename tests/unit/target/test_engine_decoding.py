"""What the engine says is what the model says, whatever tree it is asked about."""

from random import Random

import pytest
import torch
from tests.unit.target.conftest import MakeEngine
from tests.unit.target.sessions import (
    Decoder,
    TinyModel,
    draft_tree,
    prefilled,
    run_one,
    verified,
)

from arborist.core.accept import accept
from arborist.core.engine import Prefill, TargetWork
from arborist.core.features import FeatureSpec
from arborist.core.sampling import SamplingParams
from arborist.core.tree import node_depths

pytestmark = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)]
)

SAMPLED = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=1234)


def generate(tiny: TinyModel, prompt: list[int], length: int, device: str) -> list[int]:
    """Lets transformers generate greedily, past any end of sequence."""
    model = tiny.reference(device)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt], device=device)
    output = model.generate(
        ids, max_new_tokens=length, do_sample=False, attention_mask=torch.ones_like(ids)
    )
    return output[0, len(prompt) :].tolist()


def paths(tokens: list[int], parents: list[int]) -> list[list[int]]:
    """Lists the tokens from below the root to every node, root first."""
    found: list[list[int]] = [[]]
    for token, parent in zip(tokens, parents, strict=True):
        found.append([*found[parent], token])
    return found


def test_verifying_roots_alone_equals_transformers_generate(
    tiny: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """A chain of rounds without drafted tokens is plain greedy decoding."""
    prompt = tiny.prompt(1, 13)

    output = Decoder(make_engine(tiny), prompt).plain(40)

    assert output == generate(tiny, prompt, 40, device)


def test_a_tree_gives_every_node_the_token_the_model_would_put_there(
    tiny: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """Each node's token is the argmax of the model run on prompt and path alone."""
    decoder = Decoder(make_engine(tiny), tiny.prompt(2, 11))
    tokens, parents = draft_tree(Random(5), 18, tiny.vocab_size, [])
    prefix = list(decoder.log)

    result = decoder.round(tokens, parents)

    model = tiny.reference(device)
    expected = [
        int(model(torch.tensor([prefix + path], device=device)).logits[0, -1].argmax())
        for path in paths(tokens, parents)
    ]
    assert max(node_depths(parents)) > 2
    assert result.node_tokens == expected
    assert result.accepted_nodes == accept(tokens, parents, expected).accepted_nodes


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", range(3))
def test_random_trees_never_change_the_output(
    tiny: TinyModel, make_engine: MakeEngine, sampling: SamplingParams, seed: int
) -> None:
    """Rounds with trees commit exactly what rounds without trees commit."""
    engine, random = make_engine(tiny), Random(seed)
    prompt = tiny.prompt(seed, 9)
    truth = Decoder(engine, prompt, "plain", sampling=sampling).plain(40)
    decoder = Decoder(engine, prompt, "trees", sampling=sampling)
    accepted = 0

    while len(decoder.output) < 30:
        done = len(decoder.output)
        tree = draft_tree(random, random.randrange(20), tiny.vocab_size, truth[done:])
        accepted += len(decoder.round(*tree).accepted_nodes)

    assert decoder.output == truth[: len(decoder.output)]
    assert accepted > 5


def test_the_seed_decides_what_is_sampled(tiny: TinyModel, make_engine: MakeEngine) -> None:
    """The same seed repeats an output, another one does not."""
    engine, prompt = make_engine(tiny), tiny.prompt(3, 9)
    other = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=4321)

    outputs = [
        Decoder(engine, prompt, sampling=sampling).plain(30)
        for sampling in (SAMPLED, SAMPLED, other)
    ]

    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


@pytest.mark.parametrize("chunk", [1, 4, 5, 19])
def test_a_prompt_in_chunks_equals_the_prompt_at_once(
    tiny: TinyModel, make_engine: MakeEngine, chunk: int
) -> None:
    """Chunks change neither features nor tokens."""
    engine, prompt = make_engine(tiny), tiny.prompt(4, 19)
    whole = Decoder(engine, prompt, "whole")

    parts = Decoder(engine, prompt, "parts", chunk=chunk)

    torch.testing.assert_close(
        torch.cat(parts.features), torch.cat(whole.features), atol=1e-5, rtol=1e-5
    )
    assert parts.plain(12) == whole.plain(12)


def test_a_mixed_batch_equals_each_session_alone(tiny: TinyModel, make_engine: MakeEngine) -> None:
    """Prompts' chunks and trees of many sessions share a forward without touching each other."""
    lengths = [3, 12, 7, 30]
    alone, together = make_engine(tiny), make_engine(tiny)
    outcomes = []
    for engine in (alone, together):
        decoders = [Decoder(engine, tiny.prompt(n, n), f"s{n}", sampling=SAMPLED) for n in lengths]
        decoders[2].plain(9)
        fresh = Decoder(engine, tiny.prompt(9, 5), "fresh")
        more = tiny.prompt(10, 6)
        batch: list[TargetWork] = [
            decoder.work(*draft_tree(Random(n), n % 9, tiny.vocab_size, []))
            for n, decoder in zip(lengths, decoders, strict=True)
        ]
        # A chunk in the middle of a prompt, and one that ends it.
        batch.insert(1, fresh_prefill(fresh, more[:4], last=False))
        if engine is together:
            outcomes.append(engine.run(batch))
        else:
            outcomes.append([run_one(engine, work) for work in batch])
        outcomes[-1].append(run_one(engine, fresh_prefill(fresh, more[4:], last=True, ahead=4)))

    for one, other in zip(*outcomes, strict=True):
        assert one.features is not None
        torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)
    for place, (one, other) in enumerate(zip(*outcomes, strict=True)):
        if place in (1, 5):
            assert prefilled(one).root == prefilled(other).root
        else:
            assert verified(one).node_tokens == verified(other).node_tokens
            assert verified(one).accepted_nodes == verified(other).accepted_nodes
            assert verified(one).bonus == verified(other).bonus


def fresh_prefill(decoder: Decoder, tokens: list[int], *, last: bool, ahead: int = 0) -> TargetWork:
    """Makes a chunk that continues a session's prompt."""
    return Prefill(decoder.key, decoder.prompt_length + ahead, tokens, last)


@pytest.mark.parametrize("layer_ids", [None, (0, 2), (1,)], ids=["norm", "layers", "layer"])
def test_stored_features_equal_recomputed_states(
    tiny: TinyModel,
    make_engine: MakeEngine,
    device: str,
    layer_ids: tuple[int, ...] | None,
) -> None:
    """After rounds with trees, features of every KV position are those of the committed log."""
    engine, random = make_engine(tiny), Random(8)
    prompt, spec = tiny.prompt(5, 9), FeatureSpec(layer_ids)
    truth = Decoder(engine, prompt, "plain").plain(40)
    decoder = Decoder(engine, prompt, feature_spec=spec)
    while len(decoder.output) < 25:
        done = len(decoder.output)
        decoder.round(*draft_tree(random, 15, tiny.vocab_size, truth[done:]))

    length = engine.kv_length(decoder.key)
    stored = engine.read_features(decoder.key, 0, length)

    ids = torch.tensor([decoder.log[:length]], device=device)
    states = tiny.reference(device).model(ids, output_hidden_states=True)
    if layer_ids is None:
        expected = states.last_hidden_state[0]
    else:
        expected = torch.cat([states.hidden_states[layer][0] for layer in layer_ids], dim=-1)
    torch.testing.assert_close(stored, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(decoder.features), stored, atol=0, rtol=0)
    torch.testing.assert_close(engine.read_features(decoder.key, 7, 12), stored[7:12])


def test_half_precision_decodes_with_trees(tiny: TinyModel, make_engine: MakeEngine) -> None:
    """In bf16 a tree along the plain output is accepted nearly everywhere."""
    engine, prompt = make_engine(tiny, dtype="bfloat16"), tiny.prompt(6, 9)
    truth = Decoder(engine, prompt, "plain").plain(30)
    decoder = Decoder(engine, prompt, "trees", feature_spec=FeatureSpec(dtype="float32"))

    result = decoder.round(truth[1:6], [0, 1, 2, 3, 4])

    assert len(result.accepted_nodes) >= 3
    assert result.features is not None
    assert result.features.dtype == torch.float32
    assert decoder.features[0].dtype == torch.float32
