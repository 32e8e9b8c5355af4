"""`arborist doctor` finds planted faults by measuring, and finds nothing where nothing is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.cli.doctor.memorised_head import (
    GOLDEN,
    MAX_TOKENS,
    RIGHT,
    TARGET,
    write_memorised_head,
)

from arborist.cli.doctor.diagnosis import (
    Cause,
    Comparison,
    Finding,
    Measurements,
    diagnose,
)
from arborist.cli.doctor.examination import examine
from arborist.cli.doctor.layer_search import LayerChoice, Layers
from arborist.cli.doctor.patient import Patient
from arborist.cli.doctor.prompts import QUESTIONS, DoctorPrompt, read_prompts
from arborist.cli.doctor.quantisation import quantisation_of
from arborist.cli.main import main
from arborist.common.config import load_config
from arborist.common.model_files import ModelFiles
from arborist.core.engine import DraftOutcome, DraftWork, Extend, SessionKey
from arborist.core.errors import InvalidArgumentError
from arborist.orchestrator.api.incoming import ChatTurn

PROMPTS = ((7, 9, 300, 12, 5), (100, 200, 17, 33, 2))
BOS = 1


class LetterTokenizer:
    """One id a letter; a conversation is wrapped in ids of its own."""

    has_chat_template = True

    def encode(self, text: str) -> list[int]:
        """Ids of the letters."""
        return [100 + ord(one) for one in text]

    def render_chat(self, turns: Sequence[ChatTurn]) -> list[int]:
        """The letters between two marks."""
        return [BOS, 40, 41, *self.encode(turns[0].content), 42, 43]


class LeansOnBos:
    """A draft that sees nothing in sequences that do not begin with the usual token."""

    def __init__(self, draft: Any) -> None:
        self._draft = draft
        self._blind: set[SessionKey] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draft, name)

    def run(self, batch: Sequence[DraftWork]) -> list[DraftOutcome]:
        """Zeroes the features of such sequences; a pair's token is the one after its feature's."""
        return self._draft.run([self._seen(work) for work in batch])

    def _seen(self, work: DraftWork) -> DraftWork:
        if not isinstance(work, Extend) or work.features is None:
            return work
        if work.begin == 0:
            begins = work.tokens[0] in [one[0] for one in PROMPTS]
            (self._blind.discard if begins else self._blind.add)(work.session)
        if work.session not in self._blind:
            return work
        return dataclasses.replace(work, features=torch.zeros_like(work.features))


def examined(
    head: Path,
    prompts: Sequence[DoctorPrompt],
    *,
    tokenizer: Any = None,
    around: Callable[[Any], Any] = lambda draft: draft,
) -> tuple[Measurements, list[Finding]]:
    """Measures a head of the golden target, something around it perhaps, and diagnoses it."""
    flags = {"target.model": str(TARGET), "draft.model": str(head)}
    patient = Patient.load(load_config(None, flags))
    patient = dataclasses.replace(patient, tokenizer=tokenizer, draft=around(patient.draft))
    measured = examine(patient, prompts, MAX_TOKENS)
    return measured, diagnose(measured)


def as_ids(prompts: Sequence[Sequence[int]]) -> list[DoctorPrompt]:
    """Prompts given as token ids."""
    return [DoctorPrompt(token_ids=tuple(one)) for one in prompts]


def causes(findings: Sequence[Finding]) -> list[Cause]:
    """What was found, without words."""
    return [one.cause for one in findings]


def test_a_head_that_is_fed_rightly_is_fine(tmp_path: Path) -> None:
    """Every first choice is right and no alternative is called better."""
    measured, findings = examined(write_memorised_head(tmp_path, PROMPTS), as_ids(PROMPTS))

    assert findings == []
    assert measured.agreement[0] == 1.0
    assert not measured.is_low


@pytest.mark.parametrize(
    ("taught", "said"),
    [(RIGHT, (3, 5, 6)), (RIGHT, (0, 1, 7)), ((1, 3, 6), (0, 2, 5)), ((1, 3, 6), (1, 3, 4))],
    ids=["outputs", "not the official choice", "inputs", "one layer"],
)
def test_wrong_feature_layers_are_found_and_the_right_ones_named(
    taught: Layers, said: Layers, tmp_path: Path
) -> None:
    """Outputs taken for inputs or the other way round, another choice, and one layer mistaken."""
    head = write_memorised_head(tmp_path, PROMPTS, layers=taught, said=said)

    measured, findings = examined(head, as_ids(PROMPTS))

    assert measured.is_low
    assert causes(findings) == [Cause.FEATURE_LAYER]
    assert findings[0].advice.endswith(str(list(taught)))


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_pairing_shifted_by_one_is_found(shift: int, tmp_path: Path) -> None:
    """A head that was taught another pairing than EAGLE's is right at that shift alone."""
    head = write_memorised_head(tmp_path, PROMPTS, shift=shift)

    measured, findings = examined(head, as_ids(PROMPTS))

    assert measured.is_low
    assert causes(findings) == [Cause.PAIRING]
    assert f"100% at shift {shift:+d}" in findings[0].evidence


def test_prompts_without_the_chat_template_are_found(tmp_path: Path) -> None:
    """A head taught on conversations drafts badly after bare text, and well once it is rendered."""
    tokenizer = LetterTokenizer()
    texts = ["tell me", "how so"]
    rendered = [tokenizer.render_chat([ChatTurn("user", one)]) for one in texts]
    head = write_memorised_head(tmp_path, rendered)

    _, bare = examined(head, [DoctorPrompt(text=one) for one in texts], tokenizer=tokenizer)
    turns = [DoctorPrompt(turns=(ChatTurn("user", one),)) for one in texts]
    _, chat = examined(head, turns, tokenizer=tokenizer)

    assert causes(bare)[0] is Cause.CHAT_TEMPLATE
    assert chat == []


def test_prompts_without_the_first_token_are_found(tmp_path: Path) -> None:
    """Likewise for the begin-of-sequence token that the target's config names."""
    head = write_memorised_head(tmp_path, [(BOS, *one) for one in PROMPTS])
    prompts = as_ids(PROMPTS)

    _, findings = examined(head, prompts, around=LeansOnBos)
    _, mended = examined(head, as_ids([(BOS, *one) for one in PROMPTS]), around=LeansOnBos)

    assert causes(findings)[0] is Cause.BOS
    assert mended == []


def test_a_head_that_guesses_is_called_another_targets(tmp_path: Path) -> None:
    """It is wrong with every pairing and every layer."""
    head = write_memorised_head(tmp_path, PROMPTS)
    tensors = load_file(head / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(tensors["lm_head.weight"].shape)
    save_file(tensors, head / "model.safetensors")

    measured, findings = examined(head, as_ids(PROMPTS))

    assert causes(findings) == [Cause.OTHER_TARGET]
    assert measured.best_layers is not None


def test_a_quantised_target_is_a_cause_only_where_tau_is_low() -> None:
    """Quantised targets that are drafted well are no fault."""
    seen = Measurements(tau=1.2, agreement={-1: 0.2, 0: 0.4, 1: 0.1}, quantisation="4 bits")

    assert causes(diagnose(seen)) == [Cause.QUANTISED_TARGET]
    assert diagnose(dataclasses.replace(seen, tau=2.5)) == []
    assert causes(diagnose(dataclasses.replace(seen, quantisation=None))) == [Cause.UNEXPLAINED]


def test_small_differences_are_no_causes() -> None:
    """What ten prompts show by chance is not called a fault."""
    measured = Measurements(
        tau=2.97,
        with_template=Comparison(2.97, 3.13),
        with_bos=Comparison(2.97, 3.1),
        agreement={-1: 0.6, 0: 0.55, 1: 0.2},
        asked_layers=(2, 4, 5),
        best_layers=LayerChoice((2, 4, 6), 0.6),
        agreement_as_asked=0.55,
        num_layers=8,
    )

    assert diagnose(measured) == []


@pytest.mark.parametrize(("bits", "width"), [(4, 128), (8, 2048)])
def test_quantised_weights_show_in_their_numbers(bits: int, width: int, tmp_path: Path) -> None:
    """A checkpoint written back in full precision after quantising gives itself away."""
    weight = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    half = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(-1, keepdim=True) / half

    def found(matrix: torch.Tensor, **config: object) -> str | None:
        save_file(
            {"model.layers.0.self_attn.q_proj.weight": matrix}, tmp_path / "model.safetensors"
        )
        (tmp_path / "config.json").write_text(json.dumps(config))
        return quantisation_of(ModelFiles(tmp_path))

    assert f"{bits} bits" in (found((weight / scale).round() * scale) or "")
    assert found(weight) is None
    assert found(weight.bfloat16()) is None
    assert "gptq" in (found(weight, quantization_config={"quant_method": "gptq", "bits": 4}) or "")


def test_prompts_are_read_in_three_forms(tmp_path: Path) -> None:
    """Text, messages and token ids, one object a line."""
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "Once"},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"prompt_ids": [1, 2]},
    ]
    path.write_text("\n".join(json.dumps(one) for one in lines))

    assert read_prompts(path) == [
        DoctorPrompt(text="Once"),
        DoctorPrompt(turns=(ChatTurn("user", "Hi"),)),
        DoctorPrompt(token_ids=(1, 2)),
    ]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"prompt_ids": ["a"]}', '{"prompt": ""}', ""])
def test_other_lines_are_refused_by_number(line: str, tmp_path: Path) -> None:
    """The file and the line are named."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"\n{line}\n")

    with pytest.raises(InvalidArgumentError, match=r"prompts\.jsonl:2" if line else "at least one"):
        read_prompts(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs the command; returns exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_the_embedded_pair_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table ends with a verdict in one line, and the exit code is 0."""
    prompts = tmp_path / "prompts.jsonl"
    messages = [{"messages": [{"role": "user", "content": one}]} for one in QUESTIONS[:3]]
    prompts.write_text("\n".join(json.dumps(one) for one in messages))

    code, out, _ = run(capsys, "--prompts", prompts, "--max-tokens", 24)

    assert code == 0
    assert out.splitlines()[-1].startswith("fine: ")
    for shown in ("torch", "digests", "tau", "first choices right"):
        assert shown in out


def test_json_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the cause, what was measured, and exit code 1."""
    head = write_memorised_head(tmp_path / "head", PROMPTS, shift=1)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt_ids": one}) for one in PROMPTS))
    capsys.readouterr()

    pair = ("--target", TARGET, "--draft", head, "--prompts", prompts)
    code, out, _ = run(capsys, *pair, "--max-tokens", MAX_TOKENS, "--json")

    said = json.loads(out)
    assert code == 1
    assert not said["ok"]
    assert [one["cause"] for one in said["findings"]] == ["pairing"]
    assert said["measured"]["agreement"]["1"] == 1.0
    assert said["versions"]["torch"] == torch.__version__
    assert said["fit"]["num_tensors"] == len(load_file(head / "model.safetensors"))


def test_a_head_that_does_not_fit_is_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tensor that tells is named; nothing is measured."""
    other = GOLDEN.parent / "eagle2" / "eagle_head"

    code, out, err = run(capsys, "--target", TARGET, "--draft", other)

    assert (code, err) == (1, "")
    verdict = out.splitlines()[-1]
    assert verdict.startswith("wrong: the head does not fit the target: ")
    assert "embed_tokens.weight" in verdict


def test_a_target_without_tokenizer_needs_token_ids(capsys: pytest.CaptureFixture[str]) -> None:
    """Our own prompts are text: what to give instead is said."""
    code, _, err = run(capsys, "--target", TARGET, "--draft", GOLDEN / "eagle_head")

    assert code == 2
    assert "prompt_ids" in err


@pytest.mark.parametrize("flags", [("--target", "x"), ("--dtype", "int8")])
def test_flags_that_mean_nothing_are_refused(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A target without its head, and an unknown element type."""
    code, _, err = run(capsys, *flags)

    assert code == 2
    assert flags[0] in err


def test_a_language_model_is_no_patient() -> None:
    """What is examined is how a head is fed; another kind of draft is refused by name."""
    flags = {"target.model": str(TARGET), "draft.model": str(TARGET)}

    with pytest.raises(InvalidArgumentError, match="an EAGLE head, not a language model"):
        Patient.load(load_config(None, flags))
