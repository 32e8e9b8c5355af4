"""Sessions that begin like earlier ones take over what those computed, and say the same."""

from random import Random

import pytest
import torch
from tests.unit.target.conftest import MakeEngine
from tests.unit.target.sessions import STATES, Decoder, TinyModel, draft_tree

from arborist.core.engine import TargetOpen
from arborist.core.errors import InvalidArgumentError
from arborist.core.features import FeatureSpec
from arborist.core.prefix import Prefix
from arborist.core.sampling import SamplingParams
from arborist.target.engine import HfTargetEngine

pytestmark = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)]
)

PENALISED = SamplingParams(
    temperature=0.8, seed=7, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2
)


def end(engine: HfTargetEngine, session: Decoder) -> None:
    """Ends a session the way the worker does."""
    engine.keep(session.key)
    engine.release(session.key)


def grow(session: Decoder, random: Random, truth: list[int], num_nodes: int = 6) -> None:
    """Runs rounds with trees until the output has the length of `truth`, or a little more."""
    while len(session.output) < len(truth):
        rest = truth[len(session.output) :]
        session.round(*draft_tree(random, num_nodes, 96, rest))


def test_sessions_over_shared_beginnings_say_what_they_say_alone(
    tiny: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """Random prompts off common stems: same tokens and features as without a cache."""
    random = Random(3)
    cached, plain = make_engine(tiny, prefix_cache_tokens=150), make_engine(tiny)
    texts = [tiny.prompt(0, 20)]
    reused = 0
    for number in range(25):
        stem = random.choice(texts)
        prompt = [*stem[: random.randrange(1, len(stem) + 1)], *tiny.prompt(number, 3)][:60]
        sampling = random.choice([SamplingParams(), SamplingParams(temperature=1.0, seed=number)])
        scope = random.choice("aab")
        alone = Decoder(plain, prompt, str(number), sampling=sampling, max_draft_tokens=6)
        truth = alone.plain(random.randrange(1, 12))
        session = Decoder(
            cached, prompt, str(number), sampling=sampling, scope=scope, chunk=7, max_draft_tokens=6
        )
        reused += session.num_reused
        grow(session, random, truth)

        assert session.output[: len(truth)] == truth
        ours, theirs = torch.cat(session.features), torch.cat(alone.features)
        torch.testing.assert_close(ours[: len(theirs)], theirs, atol=1e-4, rtol=1e-4)
        cached.check_integrity()
        end(cached, session)
        plain.release(alone.key)
        texts.append(session.log)
    assert reused > 100
    assert cached.prefix_counts.num_hits == reused
    assert cached.kv_reserved_tokens == 0


def test_the_next_turn_of_a_chat_computes_its_new_tokens_alone(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """What a turn took over is everything the turn before committed, up to its last token."""
    engine = make_engine(llama, prefix_cache_tokens=200)
    log, committed = llama.prompt(1, 10), 0
    for turn in range(4):
        session = Decoder(engine, log, str(turn), scope="chat")
        assert session.num_reused == committed
        session.plain(5)
        committed = len(session.log) - 1
        end(engine, session)
        log = [*session.log, *llama.prompt(turn + 2, 4)]


def test_penalties_count_what_was_taken_over(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """Processors see the whole prompt, computed or not."""
    prompt = llama.prompt(4, 30)
    engine = make_engine(llama, prefix_cache_tokens=200)
    first = Decoder(engine, prompt, "first", sampling=PENALISED, scope="s")
    expected = first.plain(12)
    end(engine, first)

    again = Decoder(engine, prompt, "again", sampling=PENALISED, scope="s")

    assert again.num_reused == len(prompt) - 1
    assert again.plain(12) == expected
    engine.check_integrity()


def test_nothing_is_taken_over_from_another_scope_or_for_another_draft(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """A tenant sees its own sessions only, and a head gets features of its own kind only."""
    prompt = llama.prompt(5, 20)
    engine = make_engine(llama, prefix_cache_tokens=200)
    end(engine, Decoder(engine, prompt, scope="a"))

    assert Decoder(engine, prompt, "1", scope="b").num_reused == 0
    assert Decoder(engine, prompt, "2", scope="a", feature_spec=FeatureSpec((0, 2))).num_reused == 0
    assert Decoder(engine, prompt, "3").num_reused == 0
    assert Decoder(engine, prompt, "4", scope="a").num_reused == 19


def test_sessions_that_share_nothing_leave_nothing(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """Without a prefix in Open, or without features that were asked for, nothing is kept."""
    prompt = llama.prompt(6, 20)
    engine = make_engine(llama, prefix_cache_tokens=200)
    end(engine, Decoder(engine, prompt))
    assert engine.prefix_counts.num_cached == 0

    forgetful = make_engine(llama, feature_retention=8, prefix_cache_tokens=200)
    end(forgetful, Decoder(forgetful, prompt, chunk=4, scope="a", feature_spec=STATES))
    assert forgetful.prefix_counts.num_cached == 0


def test_the_cache_never_takes_room_from_sessions(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """A full cache leaves the whole capacity to sessions, and stays as large as it was made."""
    engine = make_engine(llama, kv_capacity_tokens=121, prefix_cache_tokens=30)
    for number in range(5):
        end(engine, Decoder(engine, llama.prompt(number, 25), scope="s"))
        assert engine.kv_reserved_tokens == 0
        assert engine.prefix_counts.num_cached <= 30
    Decoder(engine, llama.prompt(9, 25))
    assert engine.kv_reserved_tokens == 121


def test_all_memory_is_there_and_counted_before_the_first_session(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """Sessions of every kind share it; only wider features than any before take more, at Open."""
    engine = make_engine(llama, prefix_cache_tokens=100)
    hidden = engine.info.hidden_size * 4
    before = engine.prefix_counts.num_bytes
    assert before > 100 * hidden
    prompt = llama.prompt(3, 20)
    wide = FeatureSpec((0, 2))
    for spec, width in ((STATES, 1), (None, 1), (FeatureSpec((1,)), 1), (wide, 2), (STATES, 2)):
        session = Decoder(engine, prompt, scope="s", feature_spec=spec)
        assert engine.prefix_counts.num_bytes == before + 100 * (width - 1) * hidden
        session.plain(4)
        end(engine, session)
        assert engine.prefix_counts.num_bytes == before + 100 * (width - 1) * hidden


def test_features_of_several_kinds_in_one_table_stay_what_they_are(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """Whatever came wide or narrow before or between, in whatever element type."""
    engine, plain = make_engine(llama, prefix_cache_tokens=200), make_engine(llama)
    prompt = llama.prompt(8, 30)
    kinds = [STATES, FeatureSpec((0, 2)), FeatureSpec((1,), "bfloat16")]
    for number, spec in enumerate([*kinds, *kinds]):
        session = Decoder(engine, prompt, str(number), scope="s", feature_spec=spec)
        assert session.num_reused == (0 if number < len(kinds) else len(prompt) - 1)
        alone = Decoder(plain, prompt, str(number), feature_spec=spec)
        ours, theirs = (
            one.read_features(two.key, 0, len(prompt))
            for one, two in ((engine, session), (plain, alone))
        )
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-2)
        end(engine, session)
        plain.release(alone.key)


def test_a_prefix_longer_than_the_session_is_refused(
    llama: TinyModel, make_engine: MakeEngine, device: str
) -> None:
    """The message names field and limit, and nothing is reserved."""
    engine = make_engine(llama, prefix_cache_tokens=30)
    request = TargetOpen(SamplingParams(), STATES, 10, 4, prefix=Prefix("s", tuple(range(11))))
    with pytest.raises(InvalidArgumentError, match=r"prefix.tokens = 11: must be at most 10"):
        engine.open(("c", "s"), request)
    assert engine.kv_reserved_tokens == 0
