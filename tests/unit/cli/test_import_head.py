"""`arborist import-head` as people meet it."""

import json
import re
from pathlib import Path

import pytest
import torch
from tests.unit.draft.published_heads import FORMATS, Target

from arborist.cli.main import main

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs the command; returns exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["import-head", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("pair", ["eagle2", "eagle3"])
def test_a_trained_head_is_converted_and_tried(
    pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report ends with a greedy run whose tokens are the target's own."""
    code, out, err = run(
        capsys, GOLDEN / pair / "eagle_head", tmp_path / "out", "--target", GOLDEN / pair / "target"
    )

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"format: {'EAGLE-1/2' if pair == 'eagle2' else 'EAGLE-3'}"
    assert lines[-2].startswith("greedy check: 32 tokens, same without the head, tau ")
    assert lines[-1] == f"wrote {tmp_path / 'out'}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("name", ["official_eagle3", "vllm_wrapper_mapped", "speculators_eagle3"])
def test_other_formats_are_tried_too(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random head drafts nonsense and changes no token; when nothing is accepted that is said."""
    target = Target()
    head, model = FORMATS[name](target).write(tmp_path / "h"), target.write(tmp_path / "t")
    capsys.readouterr()

    code, out, err = run(capsys, head, tmp_path / "out", "--target", model, "--max-tokens", 12)

    assert (code, err) == (0, "")
    assert "12 tokens, same without the head" in out
    # With few tokens to choose from, some of the nonsense is accepted.
    tau = float(re.findall(r"tau ([\d.]+)", out)[0])
    assert ("hardly anything was accepted" in out) == (tau < 1.2)


def test_a_refusal_is_one_line_that_names_the_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is said, and nothing is written."""
    target = Target()
    head = FORMATS["official_eagle3"](target).write(tmp_path / "head")
    state = torch.load(head / "pytorch_model.bin", weights_only=True)
    del state["midlayer.hidden_norm.weight"]
    torch.save(state, head / "pytorch_model.bin")
    model = target.write(tmp_path / "target")
    capsys.readouterr()

    code, out, err = run(capsys, head, tmp_path / "out", "--target", model)

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "midlayer.hidden_norm.weight is missing" in err
    assert not (tmp_path / "out").exists()


def test_the_check_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With no tokens the target's decoder is not loaded."""
    pair = GOLDEN / "eagle3"
    target = tmp_path / "target"
    target.mkdir()
    config = json.loads((pair / "target" / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuch"]}))
    (target / "model.safetensors").symlink_to(pair / "target" / "model.safetensors")

    code, out, _ = run(
        capsys, pair / "eagle_head", tmp_path / "out", "--target", target, "--max-tokens", 0
    )

    assert code == 0
    assert "greedy check" not in out
