"""The KV pool against a list of what every session wrote."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.draft.conftest import tiny_config

from arborist.core.errors import InvalidArgumentError, ResourceExhaustedError
from arborist.draft.kv import KvPool, KvRegion

CAPACITY = 24


def make_pool() -> KvPool:
    """A pool of two layers."""
    config = tiny_config(num_layers=2)
    return KvPool(config, CAPACITY, torch.device("cpu"), torch.float32)


def fill(pool: KvPool, region: KvRegion, mark: float) -> None:
    """Writes something recognisable into every slot and layer."""
    rows = torch.full((region.length, 2, 8), mark)
    for layer in range(2):
        pool.write(layer, region, 0, rows + layer, -rows)


def is_filled(pool: KvPool, region: KvRegion, mark: float) -> bool:
    """Says whether all of it is still there."""
    for layer in range(2):
        keys, values = pool.view(layer, region, region.length)
        if not (bool((keys == mark + layer).all()) and bool((values == -mark).all())):
            return False
    return True


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("reserve"), st.integers(1, CAPACITY + 2)),
            st.tuples(st.just("free"), st.integers(0, 20)),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_regions_keep_their_contents_whatever_happens(steps: list[tuple[str, int]]) -> None:
    """Whatever fits by count is given, and no session's KV is lost or touched by another."""
    pool = make_pool()
    held: list[tuple[KvRegion, float]] = []
    for number, (step, size) in enumerate(steps, start=1):
        used = sum(region.length for region, _ in held)
        if step == "free":
            if held:
                pool.free(held.pop(size % len(held))[0])
        elif size > CAPACITY:
            with pytest.raises(InvalidArgumentError):
                pool.reserve(size)
        elif used + size > CAPACITY:
            with pytest.raises(ResourceExhaustedError):
                pool.reserve(size)
        else:
            region = pool.reserve(size)
            fill(pool, region, number)
            held.append((region, number))
        assert pool.reserved == sum(region.length for region, _ in held)
        pool.check_integrity()
        assert all(is_filled(pool, region, mark) for region, mark in held)


def test_gaps_are_joined_when_only_together_they_are_enough() -> None:
    """Two free ends and a session between them make room for one long session."""
    pool = make_pool()
    first, middle, last = (pool.reserve(8) for _ in range(3))
    fill(pool, middle, 5.0)
    pool.free(first)
    pool.free(last)
    wide = pool.reserve(16)
    fill(pool, wide, 9.0)
    assert is_filled(pool, middle, 5.0)
    assert pool.reserved == CAPACITY


def test_integrity_notices_an_overlap_and_a_wrong_count() -> None:
    """Damage that should never happen is reported."""
    pool = make_pool()
    region, other = pool.reserve(4), pool.reserve(4)
    other.begin = region.begin + 2
    with pytest.raises(RuntimeError, match="overlaps"):
        pool.check_integrity()
    other.begin = 4
    pool.reserved += 1
    with pytest.raises(RuntimeError, match="counts 9 tokens, regions hold 8"):
        pool.check_integrity()
