"""The pool's accounts, what compaction keeps, and how long features stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arborist.common.kv_layout import FeatureLayout, KvLayout
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnknownSessionError,
)
from arborist.target.kv import FeatureRetention, KvPool

CPU = torch.device("cpu")
# Two layers; the second has wider values than keys, and fewer heads.
LAYOUT = KvLayout(((2, 4), (2, 4), (1, 4), (1, 6)))
FEATURES = FeatureLayout(3, torch.float32)
A, B = ("c", "a"), ("c", "b")


def pool(capacity: int = 100, retention: FeatureRetention = "all") -> KvPool:
    """Makes an empty pool."""
    return KvPool(LAYOUT, capacity, CPU, torch.float32, retention)


def rows(values: list[int], heads: int, width: int) -> torch.Tensor:
    """Makes rows that hold their own number, (heads, rows, width)."""
    return torch.tensor(values).float()[None, :, None].expand(heads, -1, width)


def write(kv: KvPool, values: list[int]) -> None:
    """Writes one row per number in every layer of session A."""
    entry = kv.view(A)
    entry.extend(0, rows(values, 2, 4), rows(values, 2, 4))
    entry.extend(1, rows(values, 1, 4), rows(values, 1, 6))


def held(kv: KvPool, session: tuple[str, str] = A) -> list[int]:
    """Reads the numbers of a session back, and insists that all planes agree."""
    entry = kv.view(session)
    planes = [
        *entry.extend(0, torch.empty(2, 0, 4), torch.empty(2, 0, 4)),
        *entry.extend(1, torch.empty(1, 0, 4), torch.empty(1, 0, 6)),
    ]
    numbers = planes[0][0, :, 0].tolist()
    for plane in planes:
        assert torch.equal(plane, torch.tensor(numbers)[None, :, None].expand_as(plane))
    return [int(number) for number in numbers]


@given(
    rounds=st.lists(
        st.integers(1, 12).flatmap(
            lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)).map(sorted))
        ),
        max_size=8,
    ),
    retention=st.sampled_from(["all", "off", 1, 4]),
)
@settings(max_examples=30, deadline=None)
def test_compaction_keeps_what_a_list_would_keep(
    rounds: list[tuple[int, list[int]]], retention: FeatureRetention
) -> None:
    """After any rounds, KV and features are those of a list that kept the same rows."""
    kv = pool(retention=retention)
    kv.reserve(A, 100, FEATURES)
    expected: list[int] = []
    for number, (count, kept) in enumerate(rounds):
        values = [100 * number + i for i in range(count)]
        write(kv, values)
        chosen = [values[i] for i in kept]
        kv.compact(A, kept, torch.tensor(chosen).float()[:, None].expand(-1, 3))
        expected += chosen

    assert held(kv) == expected
    assert kv.view(A).length == len(expected)
    kept_features = {"all": len(expected), "off": 0}.get(str(retention), retention)
    first = max(0, len(expected) - int(kept_features))
    for begin in range(first, len(expected)):
        for end in range(begin + 1, len(expected) + 1):
            read = kv.features(A, begin, end)
            assert read[:, 0].tolist() == expected[begin:end]
    for begin in range(first):
        with pytest.raises(InvalidArgumentError):
            kv.features(A, begin, len(expected))


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["reserve", "free"]), st.integers(0, 3), st.integers(1, 60)),
        max_size=30,
    )
)
@settings(max_examples=30, deadline=None)
def test_reserved_tokens_add_up(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is reserved and freed, the count is the sum of what is held."""
    kv, sizes = pool(), dict[tuple[str, str], int]()
    for action, number, tokens in steps:
        session = ("c", str(number))
        if action == "free":
            kv.free(session)
            sizes.pop(session, None)
        elif session not in sizes:
            fits = sum(sizes.values()) + tokens <= 100
            if fits:
                kv.reserve(session, tokens, None)
                sizes[session] = tokens
            else:
                with pytest.raises(ResourceExhaustedError):
                    kv.reserve(session, tokens, None)
        assert kv.reserved == sum(sizes.values())
        kv.check_integrity()


def test_a_prefix_can_be_shared() -> None:
    """A session starts with another one's first positions and then goes its own way."""
    kv = pool()
    kv.reserve(A, 20, FEATURES)
    kv.reserve(B, 20, FEATURES)
    write(kv, [1, 2, 3, 4])
    kv.compact(A, range(4), torch.arange(12.0).view(4, 3))

    kv.share(A, B, 3)
    kv.view(A).length = 0
    write(kv, [9, 9, 9, 9])
    kv.free(A)

    assert held(kv, B) == [1, 2, 3]
    assert torch.equal(kv.features(B, 0, 3), torch.arange(9.0).view(3, 3))


@pytest.mark.parametrize("length", [-1, 5])
def test_more_than_there_is_cannot_be_shared(length: int) -> None:
    """The length is bounded by what one holds."""
    kv = pool()
    kv.reserve(A, 20, None)
    kv.reserve(B, 20, None)
    write(kv, [1, 2, 3, 4])
    kv.compact(A, range(4), None)

    with pytest.raises(InvalidArgumentError):
        kv.share(A, B, length)
    with pytest.raises(UnknownSessionError):
        kv.share(A, ("c", "nobody"), 1)


def test_wrong_accounts_are_found() -> None:
    """The check sees a count that is off and a length past the end."""
    kv = pool()
    kv.reserve(A, 20, None)
    kv.reserved += 1
    with pytest.raises(ArboristError, match="accounts"):
        kv.check_integrity()
    kv.reserved -= 1
    kv.view(A).length = 21
    with pytest.raises(ArboristError, match="length"):
        kv.check_integrity()


@pytest.mark.parametrize("retention", [0, -3])
def test_retention_must_be_positive(retention: int) -> None:
    """Keeping fewer than one position is spelled off."""
    with pytest.raises(InvalidArgumentError):
        pool(retention=retention)


def test_an_empty_pool_is_refused() -> None:
    """A capacity below one token is no pool."""
    with pytest.raises(InvalidArgumentError):
        pool(capacity=0)
