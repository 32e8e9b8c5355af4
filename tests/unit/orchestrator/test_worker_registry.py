"""The registry behind the directory actor: leases, failures, a fresh start."""

from arborist.orchestrator.worker_registry import RegistryEntry, WorkerRegistry


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Returns the time."""
        return self.now_s


TARGET = RegistryEntry("target", "10.0.0.1:9102", model="m")
DRAFT = RegistryEntry("draft", "10.0.0.2:9101")


def test_whoever_renews_stays() -> None:
    """An entry lives as long as its lease is renewed, and not longer."""
    clock = Clock()
    registry = WorkerRegistry(lease_s=10.0, now=clock)
    registry.renew(TARGET)
    registry.renew(DRAFT)
    clock.now_s += 8
    registry.renew(TARGET)
    clock.now_s += 8

    assert registry.snapshot().entries == (TARGET,)
    assert registry.snapshot().age_s == 16


def test_whoever_stops_leaves_at_once() -> None:
    """A worker that drains is not found any more; leaving twice is no error."""
    registry = WorkerRegistry(lease_s=10.0)
    registry.renew(TARGET)
    registry.remove("target", TARGET.address)
    registry.remove("target", TARGET.address)

    assert registry.snapshot().entries == ()


def test_an_entry_is_replaced_by_its_newer_self() -> None:
    """One address is one worker, whatever it says now."""
    registry = WorkerRegistry(lease_s=10.0)
    registry.renew(TARGET)
    newer = RegistryEntry("target", TARGET.address, model="other")
    registry.renew(newer)

    assert registry.snapshot().entries == (newer,)


def test_a_failure_is_kept_until_one_of_the_role_starts() -> None:
    """Whoever waits for the deployment learns why a process does not come up."""
    registry = WorkerRegistry(lease_s=10.0)
    registry.report_failure("draft", "fc.weight is missing")
    registry.renew(TARGET)
    waiting = registry.snapshot().failures
    registry.renew(DRAFT)

    assert waiting == {"draft": "fc.weight is missing"}
    assert registry.snapshot().failures == {}
