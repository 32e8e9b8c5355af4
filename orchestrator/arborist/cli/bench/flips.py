"""Where outputs leave plain decoding's, and how close the target's choice was there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from arborist.cli.bench.output import Output, first_difference

TIE = 1e-4
"""A smaller gap of the two best logits in fp32 is a numeric tie (DESIGN §2)."""

Place: TypeAlias = tuple[int, int]
"""Prompt and position, both from 0."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Gap between the target's two best logits after one prefix.

    Attributes:
        own: As plain decoding computes it, in the benchmark's dtype; None = not known.
        fp32: The same in fp32; None = not known.
    """

    own: float | None = None
    fp32: float | None = None


@dataclass(frozen=True, slots=True)
class Flip:
    """The first difference of an output from plain decoding's.

    Attributes:
        prompt: Index among the prompts that were decoded.
        position: Index in the output.
        token: The output's token there; None = it had ended.
        plain_token: Plain decoding's token there; None = it had ended.
    """

    prompt: int
    position: int
    token: int | None
    plain_token: int | None

    @property
    def place(self) -> Place:
        """Returns where it is."""
        return (self.prompt, self.position)


def find_flips(outputs: Sequence[Output], plain: Sequence[Output]) -> list[Flip]:
    """Compares outputs with plain decoding's, prompt by prompt.

    Returns:
        At most one flip per output: behind it the output continues another text.
    """
    flips: list[Flip] = []
    for prompt, (output, reference) in enumerate(zip(outputs, plain, strict=True)):
        at = first_difference(output.token_ids, reference.token_ids)
        if at is not None:
            flips.append(
                Flip(prompt, at, _token(output.token_ids, at), _token(reference.token_ids, at))
            )
    return flips


def flip_figures(
    outputs: Sequence[Output], plain: Sequence[Output], margins: Mapping[Place, Margin]
) -> dict[str, Any]:
    """Returns what schema arborist.bench/1 says of a mode's flips.

    Args:
        outputs: Of the mode, by prompt.
        plain: Of plain decoding, by prompt.
        margins: How close the target's choice was, by place.
    """
    flips = find_flips(outputs, plain)
    found = {flip.prompt: flip.position for flip in flips}
    # Only tokens up to a flip were decoded from the same text as plain's.
    compared = sum(
        found[prompt] + 1 if prompt in found else len(reference.token_ids)
        for prompt, reference in enumerate(plain)
    )
    rate = round(1000 * len(flips) / compared, 3) if compared else 0.0
    return {
        "outputs_equal_to_plain": len(outputs) - len(flips),
        "flips_per_1000_tokens": rate,
        "flips": {
            "per_1000_tokens": rate,
            "compared_tokens": compared,
            "ties": sum(_is_tie(margins.get(flip.place, Margin())) for flip in flips),
            "list": [
                asdict(flip) | _margin_json(margins.get(flip.place, Margin())) for flip in flips
            ],
        },
    }


def flips_line(mode: str, figures: Mapping[str, Any]) -> str:
    """Returns one line about a mode's flips; empty when it has none.

    Args:
        mode: Its name.
        figures: What `flip_figures` gave for it.
    """
    flips = figures["flips"]
    if not flips["list"]:
        return ""
    text = (
        f"{mode}: {len(flips['list'])} flips in {flips['compared_tokens']} tokens, "
        f"{flips['per_1000_tokens']:.2f} per 1,000, {flips['ties']} ties in fp32"
    )
    for key, name in (("margin", "margin"), ("margin_fp32", "in fp32")):
        known = [flip[key] for flip in flips["list"] if flip[key] is not None]
        if known:
            text += f", {name} at most {max(known):.3g}"
    return text


def _token(tokens: Sequence[int], at: int) -> int | None:
    return tokens[at] if at < len(tokens) else None


def _is_tie(margin: Margin) -> bool:
    return margin.fp32 is not None and margin.fp32 < TIE


def _margin_json(margin: Margin) -> dict[str, float | None]:
    return {"margin": _rounded(margin.own), "margin_fp32": _rounded(margin.fp32)}


def _rounded(margin: float | None) -> float | None:
    return None if margin is None else round(margin, 6)
