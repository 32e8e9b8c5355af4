"""Drafting ahead: the next level is computed while the newest one travels to the controller.

The controller expands, level by level, the nodes with the highest cumulative log-prob of the newest
level (EAGLE-2 §4.1). A draft that remembers the scores of the tree knows these nodes before it is
told, so it need not be idle while its answer and the next command are on their way. A guess that
comes true turns a round trip into nothing; one that does not costs a forward nobody waited for, and
changes no answer: the level guessed is dropped and the tree put back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from arborist.core.engine import (
    DraftEngine,
    DraftOpen,
    DraftOutcome,
    DraftWork,
    Expand,
    Extend,
    ModelInfo,
    SessionKey,
)
from arborist.core.features import FeatureSpec
from arborist.core.prefix import PrefixCounts
from arborist.core.tree import FloatArray, Level, best_first

_log = logging.getLogger(__name__)


class RewindableDraftEngine(DraftEngine, Protocol):
    """A draft engine whose newest level can be taken back."""

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the features it reads."""
        ...

    @property
    def feature_width(self) -> int:
        """Returns the width of a feature row."""
        ...

    @property
    def num_draft_ids(self) -> int:
        """Returns the token ids that can be drafted."""
        ...

    def warm_up(self) -> None:
        """Runs once, so that no client pays for first calls."""
        ...

    def check_integrity(self) -> None:
        """Checks what must hold between two batches."""
        ...

    def num_reused(self, session: SessionKey) -> int:
        """Returns the rows that a session took over when it was opened."""
        ...

    def keep(self, session: SessionKey) -> None:
        """Leaves what a session holds to those that begin alike."""
        ...

    @property
    def prefix_counts(self) -> PrefixCounts:
        """Returns what the prefix cache did so far."""
        ...

    def tree(self, session: SessionKey) -> object:
        """Returns the session's tree as it is now; later levels leave it unchanged."""
        ...

    def put_back(self, session: SessionKey, tree: object) -> None:
        """Makes an earlier tree of the same round the session's tree again."""
        ...


@dataclass(slots=True)
class _Guess:
    """A level computed before it was asked for."""

    work: Expand
    level: Level
    tree_before: object


@dataclass(slots=True)
class _Course:
    """What a session's rounds look like.

    Attributes:
        scores: Cumulative log-probs of the newest level's candidates, fp32; None = no tree.
        widths: Nodes expanded at each level of this round's tree so far.
        last_widths: The same of the round before: this round is expected to go the same way.
        top_k: Children per node of the last Expand.
        guess: The next level, if it was computed.
    """

    scores: FloatArray | None = None
    widths: list[int] = field(default_factory=list)
    last_widths: list[int] = field(default_factory=list)
    top_k: int = 0
    guess: _Guess | None = None


class RunAheadDraft:
    """A draft engine that runs one level ahead of what it is asked: core.engine.DraftEngine."""

    def __init__(self, engine: RewindableDraftEngine) -> None:
        """Wraps an engine, which from then on is called through this object alone."""
        self._engine = engine
        self._courses: dict[SessionKey, _Course] = {}
        self.num_guessed = 0
        """Levels computed ahead."""
        self.num_right = 0
        """Levels computed ahead that were then asked for."""

    @property
    def info(self) -> ModelInfo:
        """Returns what is loaded."""
        return self._engine.info

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the features it reads."""
        return self._engine.feature_spec

    @property
    def feature_width(self) -> int:
        """Returns the width of a feature row."""
        return self._engine.feature_width

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        return self._engine.kv_capacity_tokens

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns KV positions reserved by sessions."""
        return self._engine.kv_reserved_tokens

    @property
    def num_draft_ids(self) -> int:
        """Returns the token ids that can be drafted."""
        return self._engine.num_draft_ids

    def open(self, session: SessionKey, request: DraftOpen) -> int:
        """Opens a session; see the engine."""
        self._courses.pop(session, None)
        reserved = self._engine.open(session, request)
        self._courses[session] = _Course()
        return reserved

    def release(self, session: SessionKey) -> None:
        """Frees everything of the session; unknown sessions are no error."""
        self._courses.pop(session, None)
        self._engine.release(session)

    def num_reused(self, session: SessionKey) -> int:
        """Returns the rows that a session took over when it was opened."""
        return self._engine.num_reused(session)

    def keep(self, session: SessionKey) -> None:
        """Leaves what a session holds to those that begin alike."""
        self._engine.keep(session)

    @property
    def prefix_counts(self) -> PrefixCounts:
        """Returns what the prefix cache did so far."""
        return self._engine.prefix_counts

    def warm_up(self) -> None:
        """Runs once, so that no client pays for first calls."""
        self._engine.warm_up()

    def check_integrity(self) -> None:
        """Checks what must hold between two batches."""
        self._engine.check_integrity()

    def run(self, batch: Sequence[DraftWork]) -> list[DraftOutcome]:
        """Runs what was not computed ahead; outcomes as the engine's.

        An ExpandTree leaves nothing to run ahead of, so it goes to the engine as it is.
        """
        guesses = [self._right_guess(work) for work in batch]
        left = [work for work, guess in zip(batch, guesses, strict=True) if guess is None]
        # If this raises, the right guesses are still there when their commands are repeated.
        computed = iter(self._engine.run(left) if left else ())
        answers = [next(computed) if guess is None else guess.level for guess in guesses]
        for work, answer in zip(batch, answers, strict=True):
            self._follow(work, answer)
        self.num_right += len(batch) - len(left)
        return answers

    def run_ahead(self) -> list[SessionKey]:
        """Computes the next level of every session that will most likely be asked for it.

        Call it when there is nothing else to compute. Whatever goes wrong leaves the sessions as
        they were: it will go wrong again, and be reported, when the level is really asked for.

        Returns:
            The sessions it was done for.
        """
        batch = [
            work
            for session, course in self._courses.items()
            if (work := _next_work(session, course)) is not None
        ]
        if not batch:
            return []
        trees = [self._engine.tree(work.session) for work in batch]
        try:
            outcomes: Sequence[DraftOutcome | None] = self._engine.run(batch)
        except Exception:  # noqa: BLE001 - nobody asked for it, so nobody is to be told
            _log.warning("drafting ahead failed for %d sessions", len(batch), exc_info=True)
            outcomes = [None] * len(batch)
        done: list[SessionKey] = []
        for work, before, outcome in zip(batch, trees, outcomes, strict=True):
            course = self._courses[work.session]
            if isinstance(outcome, Level):
                course.guess = _Guess(work, outcome, before)
                done.append(work.session)
            else:
                self._engine.put_back(work.session, before)
                course.scores = None
        self.num_guessed += len(done)
        return done

    def _right_guess(self, work: DraftWork) -> _Guess | None:
        """Returns the guess that this work asks for; drops one that it shows to be wrong."""
        course = self._courses.get(work.session)
        if course is None or course.guess is None:
            return None
        guess = course.guess
        if isinstance(work, Expand) and _same_level(work, guess.work):
            return guess
        course.guess = None
        self._engine.put_back(work.session, guess.tree_before)
        return None

    def _follow(self, work: DraftWork, outcome: DraftOutcome) -> None:
        """Notes how the session's round goes on."""
        course = self._courses.get(work.session)
        if course is None:
            return
        course.guess = None
        if isinstance(work, Extend):
            course.last_widths, course.widths = course.widths or course.last_widths, []
            course.scores = None
            if isinstance(outcome, Level):
                course.scores = np.minimum(outcome.logprobs[0], np.float32(0))
        elif not isinstance(work, Expand):
            course.scores, course.widths, course.last_widths = None, [], []  # Nothing is left.
        elif isinstance(outcome, Level) and course.scores is not None:
            course.widths.append(len(work.rows))
            course.top_k = work.top_k
            parents = course.scores[np.asarray(work.rows)]  # [rows]
            children = np.minimum(outcome.logprobs, np.float32(0))  # [rows, k]
            course.scores = (parents[:, None] + children).reshape(-1)


def _same_level(one: Expand, other: Expand) -> bool:
    return one.rows == other.rows and one.top_k == other.top_k


def _next_work(session: SessionKey, course: _Course) -> Expand | None:
    """Returns the Expand that comes next if this round goes as the last one did."""
    level = len(course.widths)
    if course.scores is None or course.guess is not None or level >= len(course.last_widths):
        return None
    rows = best_first(course.scores)[: course.last_widths[level]]
    return Expand(session, [int(row) for row in rows], course.top_k)
