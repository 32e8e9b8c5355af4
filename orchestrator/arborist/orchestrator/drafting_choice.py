"""Whether sessions draft: all of them or none, chosen for every level of load."""

from __future__ import annotations

from arborist.orchestrator.load_level import LoadLevel
from arborist.orchestrator.savings import Savings

# Rounds of every witness after a change to drafting, or away from it, until times count again:
# drafts catch up, and sessions come to share forwards anew. Plain rounds are short.
_SETTLING_ROUNDS = {True: 4, False: 8}
# Then so many rounds of every witness, and so many in all, are its trial.
_TRIAL_ROUNDS_OF_EACH = {True: 6, False: 16}
_FEWEST_TRIAL_ROUNDS = 24
# A trial that is not had in so many times its rounds, since drafts fail, is given up.
_MOST_TRIAL_ROUNDS = 3
# Rounds of every witness at a level from which on its choice is remembered, and until drafts are
# asked again where it is to draft: they have much to catch up with, which a lull does not pay.
_DWELL_ROUNDS = 16
# Drafting, or not, is taken up when it promises so many times the present tokens per time,
_CLEARLY_BETTER = 1.1
# kept after a trial when it did not promise so many times what the way before it does,
_BETTER_AFTER_ALL = 0.95
# and tried when it promises so many times, once the time that this may lose is saved up. Of plain
# decoding, which costs little to try, less is asked while only tables speak of it at this load.
_WORTH_A_TRIAL = 0.75
_WORTH_A_FIRST_PLAIN_TRIAL = 0.4
_FIRST_SAVINGS_MS = 500.0
# A trial is expected to lose this share of its time at least; each that led to nothing makes the
# next one so many times as dear.
_LEAST_LOSS = 0.1
_BACKOFF = 2.0
_MOST_BACKOFF = 16.0


class DraftingChoice:
    """What sessions do at present, what they shall do at each level, and trials of the other way.

    All sessions draft, or none does: forwards and event loops are shared, so that what drafting
    costs can only be seen while all do.
    """

    def __init__(self) -> None:
        """Starts with drafting, which is a guess."""
        self.drafts = True
        """Whether sessions draft at present."""
        self._level = 0
        self._witnesses = 1
        self._rounds_at_level = 0
        self._chosen: dict[int, bool] = {}
        self._on_trial = False
        self._rounds_to_settle = 0
        self._rounds_of_trial = 0
        self._rounds_to_give_up = 0
        self._savings = Savings(_FIRST_SAVINGS_MS)
        self._backoffs: dict[int, float] = {}
        self._change_costs_ms: dict[int, float] = {}
        self._changed_at = 0  # Level of the last change, and what it cost.
        self._change_cost_ms = 0.0
        self._spent_ms = 0.0  # For the present trial,
        self._trial_ms = 0.0  # which took so long, to settle included.

    @property
    def rests(self) -> bool:
        """Returns whether sessions that begin need no draft: none is wanted at this level."""
        return not self._chosen.get(self._level, self.drafts)

    @property
    def is_settled(self) -> bool:
        """Returns whether neither a change nor a trial goes on."""
        trial = self._rounds_of_trial > 0 and self._rounds_to_give_up > 0
        return self._rounds_to_settle == 0 and not trial

    @property
    def is_calm(self) -> bool:
        """Returns whether nothing is being found out, of a level just come to either.

        A few rounds tell then whether that shall change.
        """
        return self._rounds_to_settle == 0 and not self._on_trial and self._dwells

    def move_to(self, level: LoadLevel) -> None:
        """Takes up what was chosen at another level of load; where nothing was, all goes on.

        Going over to the root alone costs nothing and is done at once.

        Args:
            level: The other one.
        """
        if self._on_trial:
            self._savings.owe(max(0.0, self._change_cost_ms - self._spent_ms))
            self._undo()
        if self._dwells:
            self._chosen.setdefault(self._level, self.drafts)
        self._level, self._witnesses = level.value, level.witnesses
        self._rounds_at_level = 0
        if self.drafts and self.rests:
            self._turn(on_trial=False)

    def begin_alone(self) -> None:
        """Takes a session that begins with no other beside it.

        Where sessions are to draft it does so from its first round on, for nobody has anything to
        catch up with.
        """
        if not (self.drafts or self.rests or self._on_trial):
            self._turn(on_trial=False)
            self._rounds_to_settle = 0

    def consider(
        self, gain: float, round_ms: float, *, present_is_known: bool, other_is_known: bool
    ) -> None:
        """Goes over to the other way, to stay or to try it, or stays.

        Args:
            gain: What the other way promises, over what the present one does.
            round_ms: How long a round of the other way takes.
            present_is_known: Whether the present way was seen at this level.
            other_is_known: Whether the other way was seen at this level.
        """
        if not self.is_settled:
            return
        if self._on_trial:
            self._judge(gain)
            return
        if not self.drafts and not self._dwells:
            return
        if self.rests == self.drafts:  # A lull, as it seemed, that went on.
            self._turn(on_trial=False)
            return
        clearly_better = gain > _CLEARLY_BETTER
        first_plain = self.drafts and not other_is_known
        worth = _WORTH_A_FIRST_PLAIN_TRIAL if first_plain else _WORTH_A_TRIAL
        if gain < worth or not (present_is_known or clearly_better):
            return
        other = not self.drafts
        rounds = _SETTLING_ROUNDS[other] + self._trial_rounds(drafted=other) / self._witnesses
        lost_ms = max(_LEAST_LOSS, 1.0 - gain) * rounds * round_ms * self._backoff
        lost_ms += self._change_costs_ms.get(self._level, 0.0)
        # A draft's catching up is never free where it was tried before.
        free = clearly_better and self._backoff == 1.0 and (self.drafts or not other_is_known)
        if free or self._savings.spend(lost_ms):
            self._turn(on_trial=True)
            self._spent_ms = 0.0 if free else lost_ms

    def observe(self, actual_ms: float, usual_ms: float, *, drafted: bool) -> bool:
        """Takes the time of a witness's round.

        Args:
            actual_ms: The whole round.
            usual_ms: What such a round usually takes at this load.
            drafted: Whether it had a draft.
        Returns:
            Whether its time tells what rounds like it cost at this level.
        """
        # Witnesses' rounds pass at the same time.
        passed_share = 1.0 if self.is_calm else 1.0 / self._witnesses
        self._savings.add(passed_share * actual_ms)
        self._trial_ms += passed_share * actual_ms
        self._rounds_at_level += 1
        if self._rounds_to_settle > 0:
            self._rounds_to_settle -= 1
            if drafted and self.drafts:
                # Catching up takes what it takes; the next trial of as many is to pay for it.
                self._change_cost_ms += passed_share * max(0.0, actual_ms - usual_ms)
                self._change_costs_ms[self._changed_at] = self._change_cost_ms
            return False
        self._rounds_to_give_up = max(0, self._rounds_to_give_up - 1)
        if drafted != self.drafts:
            return False  # A draft that is gone: the others' forwards made its time.
        self._rounds_of_trial = max(0, self._rounds_of_trial - 1)
        return True

    def _trial_rounds(self, *, drafted: bool) -> int:
        """Returns the rounds of all witnesses that make a trial, without those to settle."""
        return max(_FEWEST_TRIAL_ROUNDS, _TRIAL_ROUNDS_OF_EACH[drafted] * self._witnesses)

    @property
    def _backoff(self) -> float:
        """Returns how many times as dear a trial here is, for the fruitless ones before it."""
        return self._backoffs.get(self._level, 1.0)

    @property
    def _dwells(self) -> bool:
        return self._rounds_at_level >= _DWELL_ROUNDS * self._witnesses

    def _judge(self, gain: float) -> None:
        """Ends a trial; what was seen in it decides."""
        decoded_ms = max(0.0, self._trial_ms - self._change_cost_ms)
        lost_ms = self._change_cost_ms + decoded_ms * max(0.0, 1.0 - 1.0 / gain)
        self._savings.owe(max(0.0, lost_ms - self._spent_ms))
        if self._rounds_of_trial > 0:
            self._undo()
        elif gain <= _BETTER_AFTER_ALL:
            self._on_trial = False
            self._backoffs[self._level] = 1.0
        else:
            self._backoffs[self._level] = min(_BACKOFF * self._backoff, _MOST_BACKOFF)
            self._turn(on_trial=False)
        self._chosen[self._level] = self.drafts

    def _undo(self) -> None:
        """Ends a trial that has told nothing: the load changed, or drafts failed."""
        self._backoffs[self._level] = max(self._backoff, _BACKOFF)
        self._turn(on_trial=False)

    def _turn(self, *, on_trial: bool) -> None:
        self.drafts = not self.drafts
        self._on_trial = on_trial
        self._changed_at = self._level
        self._rounds_to_settle = _SETTLING_ROUNDS[self.drafts] * self._witnesses
        self._change_cost_ms = self._trial_ms = 0.0
        self._rounds_of_trial = 0
        if on_trial:
            self._rounds_of_trial = self._trial_rounds(drafted=self.drafts)
            self._rounds_to_give_up = _MOST_TRIAL_ROUNDS * self._rounds_of_trial
