"""Time that may be lost to tries."""

from arborist.orchestrator.savings import Savings


def test_what_is_not_saved_up_is_not_spent() -> None:
    """A refused try costs nothing."""
    savings = Savings(first_ms=10.0)

    assert not savings.spend(11.0)
    assert savings.spend(10.0)
    assert not savings.spend(1.0)

    savings.add(1000.0)
    assert savings.spend(1.0)


def test_what_a_try_cost_beyond_its_price_is_paid_first() -> None:
    """So that tries cost no more than their share in all."""
    savings = Savings()
    savings.owe(50.0)

    savings.add(9000.0)
    assert not savings.spend(1.0)
    savings.add(2000.0)
    assert savings.spend(1.0)


def test_neither_savings_nor_debts_grow_without_bound() -> None:
    """A day without tries is no reason to try for an hour, nor a dear one never to try again."""
    rich, poor = Savings(), Savings()
    rich.add(1e12)
    poor.owe(1e12)
    poor.add(2e6)

    assert rich.spend(10_000.0)  # All there is: no try is dearer.
    assert not rich.spend(1.0)
    assert poor.spend(1000.0)
