"""How long a tree in one call may take."""

from arborist.orchestrator.deadlines import DeadlinePolicy, Deadlines

POLICY = DeadlinePolicy(draft_floor_s=0.25, draft_factor=4.0)


def test_unknown_levels_get_a_floor_each() -> None:
    """A slow draft's first tree must not fail for want of figures."""
    assert Deadlines(POLICY).draft_tree_s(rows=3, top_k=10, depth=6) == 6 * 0.25


def test_known_levels_share_one_floor() -> None:
    """A frozen draft is noticed as soon as with a command per level."""
    deadlines = Deadlines(POLICY)
    deadlines.observe("draft", 3, 0.002)
    deadlines.observe("draft", 10, 0.001)
    assert deadlines.draft_tree_s(rows=3, top_k=10, depth=6) == 0.25
    slow = Deadlines(POLICY)
    slow.observe("draft", 3, 0.2)
    slow.observe("draft", 10, 0.1)
    assert slow.draft_tree_s(rows=3, top_k=10, depth=6) == 4 * (0.2 + 5 * 0.1)
