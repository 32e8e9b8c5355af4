"""Sessions side by side in memory attend as they would alone, and never meet each other."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from arborist.common import slab_attention
from arborist.common.kv_layout import KvLayout
from arborist.common.packed_attention import PackedBatch, Segment, packed_attention
from arborist.target.kv import KvPool
from arborist.target.kv_slab import Slab

CPU = torch.device("cpu")
KV_HEADS, WIDTH, LAYERS = 2, 4, 2
LAYOUT = KvLayout(((KV_HEADS, WIDTH),) * (2 * LAYERS))


class Layer(nn.Module):
    """An attention layer, as far as its number goes."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index


def pool(together: bool, layout: KvLayout = LAYOUT) -> KvPool:
    """A pool with memory side by side, or each session's own."""
    made = KvPool(layout, 4096, CPU, torch.float32)
    if not together:
        made._slabs = None
    return made


def keys_of(count: int) -> list[tuple[str, str]]:
    """Names of sessions."""
    return [("c", str(number)) for number in range(count)]


def attend(kv: KvPool, work: list[tuple[int, list[int] | int]], groups: int, seed: int) -> Tensor:
    """Runs all layers over rows of some sessions and commits the first of each."""
    torch.manual_seed(seed)
    segments = []
    for session, shape in work:
        entry = kv.view(("c", str(session)))
        parents = None if isinstance(shape, int) else shape
        rows = shape if isinstance(shape, int) else len(shape) + 1
        segments.append(Segment(entry, entry.length, rows, parents))
    batch = PackedBatch(segments)
    rows = sum(one.rows for one in segments)
    outs = []
    for layer in range(LAYERS):
        query = torch.randn(1, rows, KV_HEADS * groups, WIDTH).transpose(1, 2)
        key, value = (torch.randn(1, rows, KV_HEADS, WIDTH).transpose(1, 2) for _ in range(2))
        outs.append(
            packed_attention(Layer(layer), query, key, value, None, arborist_batch=batch)[0]
        )
    for session, shape in work:
        kept = range(shape) if isinstance(shape, int) else [0, *range(2, len(shape) + 1, 2)]
        kv.compact(("c", str(session)), kept, None)
    return torch.stack(outs)


trees = st.lists(st.integers(0, 100), max_size=6).map(
    lambda draws: [draw % (place + 1) for place, draw in enumerate(draws)]
)
rounds = st.lists(
    st.dictionaries(st.integers(0, 4), st.one_of(st.integers(1, 5), trees), min_size=1),
    min_size=1,
    max_size=5,
)


@given(rounds=rounds, groups=st.sampled_from([1, 3]), waste=st.sampled_from([3.0, math.inf]))
@settings(max_examples=60, deadline=None)
def test_together_is_as_alone(
    rounds: list[dict[int, list[int] | int]], groups: int, waste: float
) -> None:
    """Chains and trees of any sessions in any rounds, whoever sits out."""
    pools = [pool(True), pool(False)]
    for one in pools:
        for key in keys_of(5):
            one.reserve(key, 60, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slab_attention, "_MAX_WASTE", waste)
        for number, work in enumerate(rounds):
            outs = [attend(one, list(work.items()), groups, number) for one in pools]
            torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)


def test_most_sessions_of_a_busy_worker_do_attend_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain rounds of sessions of like lengths are one operation a layer."""
    calls: list[torch.Size] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, *states: Tensor, **more: object) -> Tensor:
        calls.append(query.shape)
        return real(query, *states, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    kv = pool(True)
    for key in keys_of(5):
        kv.reserve(key, 60, None)
    attend(kv, [(number, 4 + number) for number in range(5)], 1, 0)
    calls.clear()

    attend(kv, [(number, 1) for number in (3, 0, 4, 1, 2)], 1, 1)

    assert [shape[0] for shape in calls] == [5] * LAYERS


def test_one_sessions_nan_stays_its_own() -> None:
    """Neither who attends beside it nor who gets its memory later sees it."""
    kv = pool(True)
    for key in keys_of(3):
        kv.reserve(key, 60, None)
    attend(kv, [(number, 9) for number in range(3)], 1, 0)
    bad = kv.view(("c", "1"))
    for layer in range(LAYERS):
        nan = torch.full((KV_HEADS, 3, WIDTH), math.nan)
        bad.extend(layer, nan, nan)
    bad.compact(range(3))

    out = attend(kv, [(number, 1) for number in range(3)], 1, 1)
    assert out[:, :, 1].isnan().any()
    assert out[:, :, [0, 2]].isfinite().all()

    kv.free(("c", "1"))
    kv.reserve(("c", "3"), 60, None)
    assert kv.view(("c", "3")).place == bad.place
    attend(kv, [(3, 2)], 1, 2)
    assert attend(kv, [(number, 1) for number in (0, 2, 3)], 1, 3).isfinite().all()


def test_memory_is_given_back_with_the_last_session() -> None:
    """Sizes have slabs of their own, a full slab is followed by another, empty ones go."""
    kv = pool(True)
    slabs = kv._slabs
    assert slabs is not None
    sizes = [60, 300, *[20] * 40]
    for key, size in zip(keys_of(len(sizes)), sizes, strict=True):
        kv.reserve(key, size, None)
    assert {size: len(some) for size, some in slabs._slabs.items()} == {256: 2, 512: 1}
    places = [kv.view(key).place for key in keys_of(len(sizes))]
    assert len({(id(place[0]), place[1]) for place in places if place is not None}) == len(sizes)
    for key in keys_of(len(sizes)):
        kv.free(key)
        kv.free(key)
    assert not any(slabs._slabs.values())


@pytest.mark.parametrize("width", [WIDTH, 5])
def test_a_slot_that_is_free_again_reads_as_zeros(width: int) -> None:
    """Also where slots share pages with each other; its neighbours keep what they hold."""
    slab = Slab(((KV_HEADS, width),) * 2, 256, torch.bfloat16)
    slots = [slab.take() for _ in range(6)]
    for slot in slots:
        for stack in slab.stacks(slot).values():
            stack[:, :, :100] = 1 + slot
    for slot in (1, 5, 2, 4):
        slab.give_back(slot, 100)
    for slot, value in zip(slots, (1, 0, 0, 4, 0, 0), strict=True):
        for stack in slab.stacks(slot).values():
            assert (stack[:, :, :100] == value).all()
    assert [slab.take() for _ in range(4)] == [1, 2, 4, 5]


def resident_bytes() -> int:
    """Returns the memory that this process has from the system now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_session_that_ends_gives_its_memory_back_though_others_go_on() -> None:
    """One session that stays does not hold what all the others had beside it."""
    slab = Slab(((8, 64),) * 8, 1024, torch.float32)
    slots = [slab.take() for _ in range(5)]
    for slot in slots:
        for stack in slab.stacks(slot).values():
            stack[:] = 1.0
    num_bytes = sum(stack.nbytes for stack in slab.stacks(slots[0]).values())
    before = resident_bytes()
    for slot in slots[1:]:
        slab.give_back(slot, 1024)
    assert before - resident_bytes() > 2.5 * num_bytes


def test_keys_and_values_of_different_widths_attend_alone() -> None:
    """What one operation cannot hold goes the other way, with the same result."""
    layout = KvLayout(((2, 4), (2, 6)))
    outs = []
    for together in (True, False):
        kv = pool(together, layout)
        for key in keys_of(2):
            kv.reserve(key, 30, None)
        torch.manual_seed(0)
        segments = [Segment(kv.view(key), 0, 3, [0, 1]) for key in keys_of(2)]
        query, key_states = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
        value = torch.randn(1, 2, 6, 6)
        outs.append(
            packed_attention(
                Layer(0), query, key_states, value, None, arborist_batch=PackedBatch(segments)
            )[0]
        )
    torch.testing.assert_close(*outs)
    assert outs[0].shape == (1, 6, 2, 6)
