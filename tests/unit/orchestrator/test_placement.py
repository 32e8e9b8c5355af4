"""Sessions with one beginning go to one worker, and no worker gets much more than its share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from arborist.orchestrator.placement import LOAD_FACTOR, PLACED_TOKENS, Placement


@dataclass
class Worker:
    """A worker with a load."""

    worker_id: str
    num_sessions: int = 0


def workers(count: int) -> list[Worker]:
    """Idle workers."""
    return [Worker(f"w{number}") for number in range(count)]


def names(placed: list[Worker]) -> list[str]:
    """Their names in order."""
    return [worker.worker_id for worker in placed]


def key(tenant: str, prompt: list[int]) -> str:
    """What a prompt is hashed to."""
    return Placement.of(tenant, prompt).key


def test_every_controller_places_alike() -> None:
    """The order of idle workers follows from tenant and prompt, not from how they are listed."""
    placement = Placement.of("t", [1, 2, 3])
    one, other = workers(5), workers(5)[::-1]
    assert names(placement.order(one)) == names(placement.order(other))
    assert Placement.of("t", [1, 2, 3]) == placement


def test_the_turns_of_a_chat_go_to_one_worker() -> None:
    """What comes behind the first tokens that count does not move a session; the rest does."""
    prompt = list(range(PLACED_TOKENS))
    assert key("t", prompt) == key("t", [*prompt, 1, 2, 3])
    assert key("t", prompt) != key("t", prompt[:-1])
    assert key("t", prompt) != key("u", prompt)
    assert key("t", [1, 12]) != key("t", [11, 2])


def test_prompts_spread_over_idle_workers() -> None:
    """Different prompts begin at different workers, about equally often."""
    first = Counter(
        Placement.of("", [number]).order(workers(4))[0].worker_id for number in range(800)
    )
    assert min(first.values()) > 120


def test_a_worker_that_leaves_moves_only_its_own_sessions() -> None:
    """The others keep their order."""
    for number in range(50):
        placement = Placement.of("", [number])
        all_names = names(placement.order(workers(5)))
        assert names(placement.order(workers(4))) == [name for name in all_names if name != "w4"]


@pytest.mark.parametrize("num_workers", [2, 3, 8])
def test_a_prompt_that_everybody_sends_drowns_no_worker(num_workers: int) -> None:
    """With equal prompts alone, nobody gets more than one session over 1.25 times the mean."""
    pool, random = workers(num_workers), Random(1)
    placement = Placement.of("", [7])
    for _ in range(200):
        placement.order(pool)[0].num_sessions += 1
        mean = sum(worker.num_sessions for worker in pool) / num_workers
        assert max(worker.num_sessions for worker in pool) <= LOAD_FACTOR * mean + 1
        busy = [worker for worker in pool if worker.num_sessions]
        if random.random() < 0.3:
            random.choice(busy).num_sessions -= 1


def test_a_worker_that_knows_the_prompt_comes_before_the_one_hash_names() -> None:
    """A few tokens move nothing, a beginning does, and it is worth one session over the share."""
    pool = workers(3)
    placement = Placement.of("", [7])
    first, second, third = placement.order(pool)

    def best(known: dict[str, int]) -> Worker:
        return placement.order(pool, [known.get(one.worker_id, 0) for one in pool])[0]

    assert best({third.worker_id: 15}) is first
    assert best({third.worker_id: 16}) is third
    assert best({second.worker_id: 40, third.worker_id: 41}) is third
    first.num_sessions = second.num_sessions = third.num_sessions = 1
    assert best({third.worker_id: 100}) is third
    third.num_sessions = 4
    assert best({third.worker_id: 100}) is first


def test_among_full_workers_the_least_loaded_is_next() -> None:
    """Two requests at two workers never share one while the other is idle."""
    one, other = workers(2)
    placement = Placement.of("", [7])
    first = placement.order([one, other])[0]
    first.num_sessions = 1
    assert placement.order([one, other])[0] is not first
