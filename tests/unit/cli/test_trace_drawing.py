"""Rounds as SVG: where nodes stand and what is written on them."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.unit.api.tokenizers import byte_level_tokenizer

from arborist.cli.trace.drawing import draw_rounds
from arborist.cli.trace.token_labels import TokenLabels
from arborist.cli.trace.traced_round import TracedRound
from arborist.cli.trace.tree_layout import node_rows

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """Returns what is written in a drawing."""
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_leaves_have_rows_of_their_own_and_parents_the_middle() -> None:
    """Children of one node stand together, in their order."""
    #          0
    #     1       2      parents first, level by level
    #   3   5     4
    rows = node_rows([-1, 0, 0, 1, 2, 1])

    assert [rows[node] for node in (3, 5, 4)] == [0, 1, 2]
    assert rows[1] == 0.5
    assert rows[2] == 2
    assert rows[0] == 1.25


def test_boxes_say_token_and_probability() -> None:
    """Whatever a token or an id holds, the drawing stays well-formed."""
    tokenizer = byte_level_tokenizer()
    a, b, newline = (tokenizer.encode(one)[0] for one in ("<", "&", "\n"))
    traced = TracedRound(
        id='<&">',
        round_index=3,
        prefix_len=8,
        tokens=[a, b],
        parents=[-1, 0],
        depths=[0, 1],
        scores=[0.0, -0.6931],
        expanded=[],
        accepted_nodes=[0, 1],
        bonus_token=newline,
        target_argmax=[b, newline],
    )

    written = texts(draw_rounds([traced], TokenLabels(tokenizer).label))

    assert written == [
        'prompt <&">, round 3: 1 of 1 accepted, root at position 8',
        "<",
        "&",
        "0.500",
        "⏎",
    ]


def test_no_rounds_are_an_empty_drawing() -> None:
    """It is still a document."""
    assert texts(draw_rounds([], str)) == []


def test_a_token_without_text_goes_by_its_id() -> None:
    """So does every token of a model without tokenizer."""
    assert TokenLabels(None).label(17) == "17"


def test_labels_are_short_and_printable() -> None:
    """Spaces are seen, broken UTF-8 and control characters are replaced."""

    class Spelling:
        def decode(self, token_ids: list[int]) -> str:
            return [" a b", "\x00\x1b", "x" * 15, ""][token_ids[0]]

    labels = TokenLabels(Spelling())  # type: ignore[arg-type]

    assert [labels.label(token) for token in range(4)] == [
        "·a·b",
        "\ufffd\ufffd",
        "x" * 13 + "…",
        "3",
    ]
