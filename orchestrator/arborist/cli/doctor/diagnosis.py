"""From measurements to likely causes of a low tau; each cause needs a measurement that shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from arborist.cli.doctor.fit import describe_layers
from arborist.cli.doctor.layer_search import LayerChoice, Layers

LOW_TAU = 1.5
"""A head of the right target, rightly fed, accepts more than this on ordinary prompts."""
GOOD_AGREEMENT = 0.8
"""From here on other layers are not tried: none could be clearly better."""
# What has to be better, and by how much, before it is called a cause: beyond what chance does to
# ten prompts of some dozen tokens.
_TAU_GAIN, _TAU_RATIO = 0.25, 1.15
_AGREEMENT_GAIN, _AGREEMENT_RATIO = 0.1, 1.25
# Below this a head guesses, whatever it is fed.
_GUESSING = 0.2


class Cause(Enum):
    """Why little is accepted."""

    UNFIT = "the head does not fit the target"
    MISSING_PACKAGE = "a package is missing"
    CHAT_TEMPLATE = "the prompts lack the chat template"
    BOS = "the prompts lack the begin-of-sequence token"
    PAIRING = "features and tokens are paired with a shift"
    FEATURE_LAYER = "the head is fed the wrong layers"
    QUANTISED_TARGET = "the target is quantised"
    OTHER_TARGET = "the head belongs to another target, or was hardly trained"
    UNEXPLAINED = "no cause found"


@dataclass(frozen=True, slots=True)
class Finding:
    """One likely cause.

    Attributes:
        cause: What is wrong.
        evidence: The measurement that shows it.
        advice: What to do.
    """

    cause: Cause
    evidence: str
    advice: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tau of the same prompts, as given and changed."""

    as_given: float
    changed: float

    @property
    def is_better(self) -> bool:
        """Returns whether the change gains more than chance would."""
        gain = self.changed - self.as_given
        return gain >= _TAU_GAIN and self.changed >= _TAU_RATIO * self.as_given


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured; None or empty = it could not be, or was not needed.

    Attributes:
        tau: Over all prompts as given.
        with_template: With the chat template around prompts given as text.
        with_bos: With the begin-of-sequence token before prompts that lack it.
        agreement: Share of the target's tokens that are the head's first choice, by shift of the
            pairing.
        asked_layers: What the head asks to be fed; None = the state after the final norm.
        best_layers: The best of other layers, on the first passages.
        agreement_as_asked: On the same passages, with what the head asks for.
        num_layers: Of the target.
        quantisation: How the target was quantised; None = nothing shows that it was.
    """

    tau: float | None
    with_template: Comparison | None = None
    with_bos: Comparison | None = None
    agreement: dict[int, float] = field(default_factory=dict)
    asked_layers: Layers | None = None
    best_layers: LayerChoice | None = None
    agreement_as_asked: float | None = None
    num_layers: int = 0
    quantisation: str | None = None

    @property
    def is_low(self) -> bool:
        """Returns whether tau is low."""
        return self.tau is not None and self.tau < LOW_TAU


def best_shift(agreement: dict[int, float]) -> int:
    """Returns the shift of the pairing that suits best; 0 unless another is clearly better."""
    best = max(agreement, key=lambda shift: agreement[shift], default=0)
    return best if best and _is_clear(agreement[best], agreement.get(0, 0.0)) else 0


def diagnose(measured: Measurements) -> list[Finding]:
    """Returns what is wrong, most likely first; empty = nothing.

    Args:
        measured: Of a head that fits its target.
    """
    found = [*_in_the_prompts(measured), *_in_what_is_fed(measured)]
    if found or not measured.is_low:
        return found
    return [_otherwise(measured)]


def _in_the_prompts(measured: Measurements) -> list[Finding]:
    found: list[Finding] = []
    template, bos = measured.with_template, measured.with_bos
    if template is not None and template.is_better:
        found.append(
            Finding(
                Cause.CHAT_TEMPLATE,
                f"tau {template.as_given:.2f} as given, {template.changed:.2f} with the template",
                "send messages, which the server renders, or render the prompts before",
            )
        )
    if bos is not None and bos.is_better:
        found.append(
            Finding(
                Cause.BOS,
                f"tau {bos.as_given:.2f} as given, {bos.changed:.2f} with it",
                "let the target's tokenizer add it, or put its id first",
            )
        )
    return found


def _in_what_is_fed(measured: Measurements) -> list[Finding]:
    shift = best_shift(measured.agreement)
    if shift:
        evidence = ", ".join(
            f"{measured.agreement[one]:.0%} at shift {one:+d}" for one in (0, shift)
        )
        return [
            Finding(
                Cause.PAIRING,
                f"first choices right: {evidence}",
                "train the head on (feature of t, token of t + 1), or correct its export",
            )
        ]
    best, asked = measured.best_layers, measured.agreement_as_asked
    if best is None or asked is None or not _is_clear(best.agreement, asked):
        return []
    fed = describe_layers(measured.asked_layers, measured.num_layers)
    better = describe_layers(best.layers, measured.num_layers)
    return [
        Finding(
            Cause.FEATURE_LAYER,
            f"first choices right: {asked:.0%} with {fed}, {best.agreement:.0%} with {better}",
            _layer_advice(measured.asked_layers, best.layers),
        )
    ]


def _layer_advice(asked: Layers | None, best: Layers | None) -> str:
    if asked is None or best is None:
        return "an EAGLE-1/2 head is always fed the final norm, an EAGLE-3 head never: train it so"
    return f"set feature_layer_ids in the head's config.json to {list(best)}"


def _otherwise(measured: Measurements) -> Finding:
    right = max(
        [
            *measured.agreement.values(),
            measured.best_layers.agreement if measured.best_layers else 0,
        ]
    )
    seen = f"tau {measured.tau:.2f}, first choices right at best {right:.0%} whatever it is fed"
    if measured.quantisation is not None:
        return Finding(
            Cause.QUANTISED_TARGET,
            f"{measured.quantisation}; {seen}",
            "serve the target in the precision the head was trained with, or train it on this one",
        )
    if right < _GUESSING and measured.agreement:
        return Finding(
            Cause.OTHER_TARGET,
            seen,
            "check that head and target were published for each other, or train the head longer",
        )
    return Finding(
        Cause.UNEXPLAINED,
        seen,
        "try prompts like those it was trained on (--prompts), then look at `arborist trace`",
    )


def _is_clear(better: float, than: float) -> bool:
    return better - than >= _AGREEMENT_GAIN and better >= _AGREEMENT_RATIO * than
