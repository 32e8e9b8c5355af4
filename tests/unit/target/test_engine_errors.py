"""What goes wrong concerns one session and changes nothing."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from tests.unit.target.conftest import MakeEngine
from tests.unit.target.sessions import GREEDY, STATES, Decoder, TinyModel, failed, run_one

from arborist.core.engine import Prefill, SessionKey, TargetOpen, TargetWork, Verify
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SessionFailedError,
    UnknownSessionError,
)
from arborist.core.features import FeatureSpec
from arborist.target.engine import HfTargetEngine

BAD_WORK: dict[str, Callable[[Decoder], TargetWork]] = {
    "begin": lambda d: Prefill(d.key, 3, [5], last=True),
    "tokens": lambda d: Prefill(d.key, len(d.log) - 1, [], last=True),
    "tokens[1]": lambda d: Prefill(d.key, len(d.log) - 1, [5, 96], last=False),
    "base.committed_length": lambda d: Verify(d.key, len(d.log) - 1, 5, [6], [0]),
    "root": lambda d: Verify(d.key, len(d.log), -1, [6], [0]),
    "tokens[2]": lambda d: Verify(d.key, len(d.log), 5, [6, 96], [0, 0]),
    "parent_indices[1]": lambda d: Verify(d.key, len(d.log), 5, [6], [1]),
    "parent_indices": lambda d: Verify(d.key, len(d.log), 5, [6], []),
}


@pytest.mark.parametrize("field", BAD_WORK)
def test_a_bad_command_names_its_field_and_changes_nothing(
    llama: TinyModel, make_engine: MakeEngine, field: str
) -> None:
    """The session and its neighbour in the batch go on as if nothing had happened."""
    engine = make_engine(llama)
    bad, good = (Decoder(engine, llama.prompt(n, 6), f"s{n}") for n in (1, 2))
    expected = [Decoder(engine, llama.prompt(n, 6), "x").plain(8) for n in (1, 2)]
    work = good.work([3, 4], [0, 1])

    error, outcome = engine.run([BAD_WORK[field](bad), work])

    assert isinstance(error, InvalidArgumentError)
    assert error.metadata["field"] == field
    good.commit(work, outcome)
    assert [bad.plain(8), good.plain(8)] == expected


@pytest.mark.parametrize(
    ("tokens", "parents"), [([3] * 21, list(range(21))), ([3, 3], [0, 0])], ids=["large", "twin"]
)
def test_a_tree_over_its_bounds_is_refused(
    llama: TinyModel, make_engine: MakeEngine, tokens: list[int], parents: list[int]
) -> None:
    """A tree may not have more nodes than reserved, nor the same child twice."""
    decoder = Decoder(make_engine(llama), llama.prompt(1, 6), max_draft_tokens=20)

    error = failed(run_one(decoder.engine, decoder.work(tokens, parents)))

    assert isinstance(error, InvalidArgumentError)


def test_a_sequence_longer_than_reserved_is_refused(
    llama: TinyModel, make_engine: MakeEngine
) -> None:
    """Neither a prompt nor a round may pass max_length."""
    decoder = Decoder(make_engine(llama), llama.prompt(1, 6), max_length=8)
    prefill = Prefill(decoder.key, 6, [5, 5, 5], last=True)

    assert isinstance(run_one(decoder.engine, prefill), InvalidArgumentError)
    decoder.round([], [])
    decoder.round([], [])
    assert isinstance(run_one(decoder.engine, decoder.work([], [])), InvalidArgumentError)


def test_an_unknown_session_is_told_apart(llama: TinyModel, make_engine: MakeEngine) -> None:
    """Commands, reads and lengths of a session that is not open say so."""
    engine = make_engine(llama)
    key = ("controller", "nobody")

    assert isinstance(run_one(engine, Prefill(key, 0, [5], last=True)), UnknownSessionError)
    with pytest.raises(UnknownSessionError):
        engine.read_features(key, 0, 1)
    with pytest.raises(UnknownSessionError):
        engine.kv_length(key)
    engine.release(key)


def test_a_session_named_twice_in_a_batch_runs_once(
    llama: TinyModel, make_engine: MakeEngine
) -> None:
    """The first command of a session runs, the second is refused."""
    engine = make_engine(llama)
    decoder = Decoder(engine, llama.prompt(1, 6))
    work = decoder.work([], [])

    first, second = engine.run([work, work])

    decoder.commit(work, first)
    assert isinstance(second, InvalidArgumentError)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_numbers_fail_one_session_alone(
    llama: TinyModel, make_engine: MakeEngine, value: float
) -> None:
    """NaN or infinity in one session's KV reaches no other session, and its KV does not grow."""
    engine = make_engine(llama)
    bad, good, chunk = (Decoder(engine, llama.prompt(n, 6), f"s{n}") for n in (1, 2, 3))
    expected = Decoder(engine, llama.prompt(2, 6), "x").plain(8)
    for sick in (bad, chunk):
        engine._pool.view(sick.key)._values[1][:, 2] = value
    works = [bad.work([3, 4], [0, 1]), good.work([3, 4], [0, 1])]

    first, second, third = engine.run([*works, Prefill(chunk.key, 6, [5, 6], last=False)])

    assert isinstance(first, SessionFailedError)
    good.commit(works[1], second)
    assert isinstance(third, SessionFailedError)
    assert good.plain(8) == expected
    assert engine.kv_length(bad.key) == engine.kv_length(chunk.key) == 6
    engine.check_integrity()


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("max_length", TargetOpen(GREEDY, STATES, 129, 5)),
        ("max_length", TargetOpen(GREEDY, STATES, 0, 5)),
        ("max_draft_tokens", TargetOpen(GREEDY, STATES, 10, 257)),
        ("max_draft_tokens", TargetOpen(GREEDY, STATES, 10, -1)),
        ("feature_spec.layer_ids", TargetOpen(GREEDY, FeatureSpec((0, 3)), 10, 5)),
        ("feature_spec.layer_ids", TargetOpen(GREEDY, FeatureSpec(()), 10, 5)),
        ("feature_spec.dtype", TargetOpen(GREEDY, FeatureSpec(dtype="int32"), 10, 5)),
    ],
)
def test_a_session_that_cannot_be_served_is_refused(
    llama: TinyModel, make_engine: MakeEngine, field: str, request_: TargetOpen
) -> None:
    """Open names the field that is out of bounds and reserves nothing."""
    engine = make_engine(llama)

    with pytest.raises(InvalidArgumentError) as caught:
        engine.open(("c", "s"), request_)

    assert caught.value.metadata["field"] == field
    assert engine.kv_reserved_tokens == 0


def test_sessions_reserve_and_free_tokens(llama: TinyModel, make_engine: MakeEngine) -> None:
    """What does not fit is refused until another session goes; opening again drops the old."""
    engine = make_engine(llama, kv_capacity_tokens=100)
    request = TargetOpen(GREEDY, STATES, 40, 9)

    assert engine.open(("c", "one"), request) == 50
    assert engine.open(("c", "one"), request) == 50
    assert engine.open(("d", "one"), request) == 50
    with pytest.raises(ResourceExhaustedError) as caught:
        engine.open(("c", "two"), TargetOpen(GREEDY, None, 1, 0))
    assert caught.value.retry_after_ms > 0
    assert engine.kv_reserved_tokens == engine.kv_capacity_tokens == 100
    engine.check_integrity()
    engine.release(("c", "one"))
    engine.release(("c", "one"))
    assert engine.kv_reserved_tokens == 50
    assert engine.open(("c", "two"), request) == 50
    with pytest.raises(InvalidArgumentError):
        engine.open(("c", "three"), TargetOpen(GREEDY, STATES, 100, 9))
    engine.check_integrity()


def test_opening_again_starts_from_nothing(llama: TinyModel, make_engine: MakeEngine) -> None:
    """A session's old log is gone after Open."""
    engine = make_engine(llama)
    Decoder(engine, llama.prompt(1, 6)).plain(5)

    again = Decoder(engine, llama.prompt(2, 7))

    assert again.plain(8) == Decoder(engine, llama.prompt(2, 7), "x").plain(8)


def test_a_session_without_features_returns_and_keeps_none(
    llama: TinyModel, make_engine: MakeEngine
) -> None:
    """No feature_spec means no features anywhere."""
    decoder = Decoder(make_engine(llama), llama.prompt(1, 6), feature_spec=None)

    assert decoder.round([3], [0]).features is None
    with pytest.raises(ArboristError):
        decoder.engine.read_features(decoder.key, 0, 1)


def test_features_not_wanted_are_kept_all_the_same(
    llama: TinyModel, make_engine: MakeEngine
) -> None:
    """A draft that comes later can still read what earlier rounds did not ask for."""
    engine = make_engine(llama)
    decoder = Decoder(engine, llama.prompt(1, 6))
    silent = Verify(decoder.key, len(decoder.log), decoder.log[-1], [], [], want_features=False)

    result = decoder.commit(silent, run_one(engine, silent))

    assert result.features is None
    assert engine.read_features(decoder.key, 0, 7).shape == (7, 32)


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (2, 2), (0, 7), (5, 4)])
def test_positions_outside_the_log_are_refused(
    llama: TinyModel, make_engine: MakeEngine, begin: int, end: int
) -> None:
    """ReadFeatures covers the KV positions and no more."""
    decoder = Decoder(make_engine(llama), llama.prompt(1, 6))

    with pytest.raises(InvalidArgumentError):
        decoder.engine.read_features(decoder.key, begin, end)


def test_retention_keeps_the_newest_features(llama: TinyModel, make_engine: MakeEngine) -> None:
    """With last_n the newest n positions can be read, older ones are refused by number."""
    engines: list[HfTargetEngine] = [
        make_engine(llama, feature_retention=retention) for retention in ("all", 5)
    ]
    kept = []
    for engine in engines:
        decoder = Decoder(engine, llama.prompt(1, 12), chunk=7)
        decoder.plain(9)
        kept.append(engine.read_features(decoder.key, 15, 20))

    torch.testing.assert_close(kept[0], kept[1])
    with pytest.raises(InvalidArgumentError, match="at least 15"):
        engines[1].read_features(("controller", "s"), 14, 20)


def test_retention_off_keeps_no_features(llama: TinyModel, make_engine: MakeEngine) -> None:
    """Rounds still return features; reading them later is refused."""
    engine = make_engine(llama, feature_retention="off")
    decoder = Decoder(engine, llama.prompt(1, 6))

    assert decoder.round([], []).features is not None
    with pytest.raises(InvalidArgumentError):
        engine.read_features(decoder.key, 0, 1)


def test_a_forward_without_memory_changes_nothing(
    llama: TinyModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every item of the batch may be tried again; what was refused before stays refused."""
    engine = make_engine(llama)
    decoder = Decoder(engine, llama.prompt(1, 6))
    expected = Decoder(engine, llama.prompt(1, 6), "x").plain(8)

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    unknown = Prefill(("controller", "nobody"), 0, [5], last=True)
    with monkeypatch.context() as patch:
        patch.setattr(engine._model, "forward", full)
        first, second = engine.run([unknown, decoder.work([3], [0])])

    assert isinstance(first, UnknownSessionError)
    assert isinstance(second, ResourceExhaustedError)
    assert decoder.plain(8) == expected


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.OutOfMemoryError("full")])
def test_what_breaks_behind_the_forward_ends_one_session_alone(
    llama: TinyModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Items settled before and after it stay committed, so none of them may run again."""
    engine = make_engine(llama)
    good, bad, last = (Decoder(engine, llama.prompt(n, 6), f"s{n}") for n in (1, 2, 3))
    expected = [Decoder(engine, llama.prompt(n, 6), "x").plain(8) for n in (1, 3)]
    works = [one.work([3, 4], [0, 1]) for one in (good, bad, last)]
    compact = engine._pool.compact

    def break_one(session: SessionKey, kept: Sequence[int], features: torch.Tensor | None) -> None:
        if session == bad.key:
            raise error
        compact(session, kept, features)

    with monkeypatch.context() as patch:
        patch.setattr(engine._pool, "compact", break_one)
        first, second, third = engine.run(works)

    assert isinstance(second, SessionFailedError)
    good.commit(works[0], first)
    last.commit(works[2], third)
    assert [good.plain(8), last.plain(8)] == expected
    assert isinstance(run_one(engine, works[1]), UnknownSessionError)
    engine.check_integrity()


def test_log_probs_that_fail_commit_nothing(
    llama: TinyModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree whose log-probs cannot be had leaves its session as it was."""
    engine = make_engine(llama)
    decoder = Decoder(engine, llama.prompt(1, 6))
    expected = Decoder(engine, llama.prompt(1, 6), "x").plain(8)

    def fail(*_: object) -> None:
        raise ResourceExhaustedError("full")

    with monkeypatch.context() as patch:
        patch.setattr("arborist.target.engine.token_logprobs", fail)
        work = Verify(decoder.key, len(decoder.log), decoder.log[-1], [3], [0], num_logprobs=1)
        assert isinstance(run_one(engine, work), ResourceExhaustedError)

    assert decoder.plain(8) == expected
