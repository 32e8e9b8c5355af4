"""The target's states by example, so that a second epoch costs no target forward."""

from __future__ import annotations

from threading import Lock

from arborist.training.records import EncodedRecord
from arborist.training.target_states import SequenceStates, StateSource


class StateCache:
    """Remembers states up to a limit; what does not fit is computed again.

    States are rounded before they are used the first time too, so that a resumed run, whose cache
    is empty, sees the same numbers.
    """

    def __init__(self, source: StateSource, limit_bytes: int) -> None:
        """Begin empty.

        Args:
            source: of states.
            limit_bytes: kept at most.
        """
        self._source = source
        self._limit_bytes = limit_bytes
        self._kept: dict[int, SequenceStates] = {}
        self._num_bytes = 0
        self._lock = Lock()

    def states(self, key: int, example: EncodedRecord) -> SequenceStates:
        """States of an example on the target's device, or on the CPU when remembered.

        Args:
            key: number of the example.
            example: its tokens.
        """
        found = self._kept.get(key)
        if found is None:
            found = self._source.states(example.token_ids.tolist())
            self._keep(key, found)
        return found

    def _keep(self, key: int, states: SequenceStates) -> None:
        with self._lock:
            if key in self._kept or self._num_bytes + states.num_bytes > self._limit_bytes:
                return
            self._num_bytes += states.num_bytes
            features = states.features.cpu()
            finals = features if states.finals is states.features else states.finals.cpu()
            self._kept[key] = SequenceStates(features, finals)
