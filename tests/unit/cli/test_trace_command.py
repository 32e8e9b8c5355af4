"""`arborist trace`: what a line says, where lines and drawings go, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from arborist.cli.main import main
from arborist.core.accept import accept
from arborist.core.tree import check_tree, node_depths

PAIR = Path(__file__).resolve().parents[2] / "golden" / "eagle2"
MODELS = ["--target", str(PAIR / "target"), "--draft", str(PAIR / "eagle_head")]
TREE = ["--depth", "3", "--top-k", "4", "--num-draft-tokens", "9"]
IDS = ["--prompt-ids", "1,2,3,4,5"]
SVG = "{http://www.w3.org/2000/svg}"
KEYS = [
    "id",
    "round_index",
    "prefix_len",
    "tokens",
    "parents",
    "depths",
    "scores",
    "expanded",
    "accepted_nodes",
    "bonus_token",
    "target_argmax",
]


def run(command: str, *arguments: str) -> int:
    """Runs a command in this process and returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([command, *arguments])
    return int(caught.value.code or 0)


def trace(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """Traces to stdout and returns the lines."""
    code = run("trace", *MODELS, *TREE, "--ignore-eos", *arguments)
    out, err = capsys.readouterr()
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def classes(svg: str) -> list[str]:
    """Returns the classes of the groups of a drawing."""
    groups = ElementTree.fromstring(svg).iter(f"{SVG}g")
    return [str(group.get("class")) for group in groups]


def test_every_line_is_one_round_of_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Per-node lists begin with the root, and the accepted path is where both models agree."""
    for index, line in enumerate(trace(capsys, *IDS, "--max-tokens", "20")):
        tokens, parents = line["tokens"], line["parents"]
        assert list(line) == KEYS
        assert (line["id"], line["round_index"]) == (0, index)
        assert (parents[0], line["scores"][0], line["accepted_nodes"][0]) == (-1, 0.0, 0)
        check_tree(tokens[1:], parents[1:], 9, 512)
        assert line["depths"] == node_depths(parents[1:])
        assert len(line["scores"]) == len(line["target_argmax"]) == len(tokens)
        assert all(
            score <= line["scores"][parent] <= 0
            for score, parent in zip(line["scores"][1:], parents[1:], strict=True)
        )
        assert [len(level) for level in line["expanded"]] == [4, 4]
        outcome = accept(tokens[1:], parents[1:], line["target_argmax"])
        assert [0, *outcome.accepted_nodes] == line["accepted_nodes"]
        assert outcome.bonus == line["bonus_token"]


def test_the_rounds_make_up_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Roots, accepted tokens and positions follow one another; the tokens are plain decoding's."""
    lines = trace(capsys, *IDS, "--max-tokens", "20")
    plain = [*MODELS, *IDS, "--max-tokens", "20", "--ignore-eos", "--speculation", "off"]
    run("generate", "--local", *plain, "--json")
    expected = json.loads(capsys.readouterr().out)["token_ids"]

    output = [lines[0]["tokens"][0]]
    assert lines[0]["prefix_len"] == 5
    for line in lines:
        assert line["tokens"][0] == output[-1]
        assert line["prefix_len"] == 5 + len(output) - 1
        output += [line["tokens"][node] for node in line["accepted_nodes"][1:]]
        output.append(line["bonus_token"])

    assert output[:20] == expected
    assert len(output) - (len(lines[-1]["accepted_nodes"]) - 1) <= 20


def test_each_prompt_of_a_file_keeps_its_id(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ids may be strings or numbers, or be missing; a prompt's rounds do not depend on others."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "trace.jsonl"
    prompts.write_text(
        '{"id": "a/1", "prompt_ids": [9, 8]}\n\n{"prompt_ids": [1, 2, 3, 4, 5]}\n'
        '{"id": 7, "prompt_ids": [9]}\n'
    )
    files = ["--prompts-file", str(prompts), "--out", str(out)]
    assert trace(capsys, *files, "--max-tokens", "8") == []
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    alone = trace(capsys, *IDS, "--max-tokens", "8")

    assert [*dict.fromkeys(line["id"] for line in lines)] == ["a/1", 1, 7]
    assert [{**line, "id": 0} for line in lines if line["id"] == 1] == alone


@pytest.mark.parametrize(
    ("arguments", "expanded"), [(["--depth", "1"], []), (["--depth", "2"], [[]])]
)
def test_a_shallow_tree_expands_little(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expanded: list[list[int]]
) -> None:
    """There is one list for each level from the second on."""
    for line in trace(capsys, *IDS, *arguments, "--max-tokens", "6"):
        assert max(line["depths"]) <= len(expanded) + 1
        assert [[] for _ in line["expanded"]] == expanded


def test_another_policy_gives_another_tree_and_the_same_tokens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A chain is one path; the target's tokens on it are those of any tree."""
    dynamic = trace(capsys, *IDS, "--max-tokens", "16")
    chain = trace(capsys, *IDS, "--max-tokens", "16", "--policy", "chain")

    assert all(line["parents"] == [-1, 0, 1, 2] for line in chain)
    assert chain[0]["tokens"][0] == dynamic[0]["tokens"][0]
    assert chain[0]["target_argmax"][0] == dynamic[0]["target_argmax"][0]


def test_a_prompt_that_ends_at_once_has_no_round(capsys: pytest.CaptureFixture[str]) -> None:
    """The prefill supplies the only token; the figures still come, on stderr."""
    code = run("trace", *MODELS, *IDS, "--max-tokens", "1")
    out, err = capsys.readouterr()

    assert (code, out) == (0, "")
    assert "1 prompts rounds=0" in err


def test_drawings_go_beside_the_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One file holds every round: all its nodes, the accepted path and the bonus token marked."""
    out = tmp_path / "trace.jsonl"
    trace(capsys, *IDS, "--max-tokens", "12", "--out", str(out), "--draw")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    drawn = classes((tmp_path / "trace.svg").read_text(encoding="utf-8"))

    assert drawn.count("round") == drawn.count("node bonus") == len(lines)
    accepted = sum(len(line["accepted_nodes"]) for line in lines)
    assert drawn.count("node accepted") == accepted
    nodes = sum(len(line["tokens"]) for line in lines)
    assert drawn.count("node drafted") == nodes - accepted


def test_a_folder_gets_a_drawing_for_each_round(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Names sort by prompt and round; a folder that is missing is made."""
    folder = tmp_path / "drawn" / "here"
    lines = trace(capsys, *IDS, "--max-tokens", "12", "--draw", str(folder))
    names = sorted(one.name for one in folder.iterdir())

    assert names == [f"0000-{index:04d}.svg" for index in range(len(lines))]
    for name in names:
        assert classes((folder / name).read_text(encoding="utf-8")).count("round") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MODELS], "exactly one of --prompt-ids, --prompts-file"),
        ([*MODELS, *IDS, "--prompts-file", "x"], "exactly one of --prompt-ids, --prompts-file"),
        ([*MODELS, "--prompt-ids", "1,x"], "--prompt-ids = not integers: must be integers"),
        ([*MODELS, "--prompt-ids", ","], "--prompt-ids = 0 tokens: must be at least 1 token"),
        ([*MODELS, "--prompt-ids", "1,512"], "prompt 0: token_ids[1] = 512: must be an id in"),
        ([*MODELS, "--prompt-ids", "-1"], "prompt 0: token_ids[0] = -1"),
        ([*MODELS, "--prompts-file", "none.jsonl"], "none.jsonl: must be a file that can be read"),
        ([*MODELS, *IDS, "--out", "none/trace.jsonl"], "--out = none/trace.jsonl: must be a file"),
        ([*MODELS, *IDS, "--draw", "none/x.svg"], "--draw = none/x.svg: must be a file NAME.svg"),
        ([*MODELS, *IDS, "x.svg"], "x.svg has no effect without --draw"),
        ([*MODELS, *IDS, "--draw", "--out", "x.svg"], "--draw would overwrite --out x.svg"),
        ([*MODELS, *IDS, "--policy", "best"], "speculation.policy = best: must be one of eagle2"),
        ([*MODELS, *IDS, "--depth", "17"], "speculation.depth = 17"),
        ([*MODELS, *IDS, "--max-tokens", "0"], "max_tokens = 0"),
        ([*MODELS, *IDS, "--dtype", "fp8"], "--dtype: must be one of fp32, bf16, fp16"),
        ([*MODELS[:2], *IDS], "--target needs its --draft"),
        ([*IDS, "--target", "/none", "--draft", "/none"], "/none: no such folder"),
    ],
)
def test_failures_are_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    """The line says what is wrong; nothing is printed to stdout, no traceback anywhere."""
    monkeypatch.chdir(tmp_path)
    code = run("trace", *arguments)
    out, err = capsys.readouterr()

    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert err.startswith("arborist: ")
    assert err.count("\n") == 1
