"""What a model says about itself, and which ones are refused."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.target.conftest import VOCAB_SIZE, MakeEngine, save
from tests.unit.target.conftest import settings as sizes
from tests.unit.target.sessions import Decoder, TinyModel
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from arborist.common.causal_model import load_model
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.core.sampling import SamplingParams, draw_tokens
from arborist.target.engine import load_target


def test_a_loaded_target_describes_itself(llama: TinyModel) -> None:
    """Sizes come from the config, counts and digests from the weights."""
    engine = load_target(
        llama.folder, device="cpu", dtype="float32", kv_capacity_tokens=500, name="tiny"
    )

    info = engine.info
    table = load_file(llama.folder / "model.safetensors")["model.embed_tokens.weight"]
    assert (info.name, info.dtype, info.vocab_size) == ("tiny", "float32", VOCAB_SIZE)
    assert (info.hidden_size, info.num_layers, info.context_length) == (32, 3, 128)
    assert info.eos_token_ids == (1,)
    assert info.num_parameters == llama.reference().num_parameters()
    assert info.embedding_digest == hashlib.sha256(table.numpy().tobytes()).hexdigest()
    assert engine.kv_capacity_tokens == 500
    assert Decoder(engine, llama.prompt(1, 5)).plain(3)


def test_any_changed_weight_changes_the_digest(llama: TinyModel, tmp_path: Path) -> None:
    """Two checkpoints have one digest only if they are equal; the embedding has its own."""
    copy = shutil.copytree(llama.folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})

    one, other = (
        load_model(folder, device="cpu", dtype="float32").info for folder in (llama.folder, copy)
    )

    assert one.digest != other.digest
    assert one.embedding_digest == other.embedding_digest
    assert other.name == "copy"


@pytest.mark.parametrize(("eos", "expected"), [([1, 5], (1, 5)), (7, (7,)), (None, (1,))])
def test_end_tokens_come_from_the_generation_config(
    llama: TinyModel, tmp_path: Path, eos: int | list[int] | None, expected: tuple[int, ...]
) -> None:
    """One id or several; without any, the model's config has the word."""
    copy = shutil.copytree(llama.folder, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))

    assert load_model(copy, device="cpu", dtype="float32").info.eos_token_ids == expected


def test_final_logits_are_capped_like_the_models_own(
    tmp_path: Path, make_engine: MakeEngine
) -> None:
    """Gemma 2 caps scores and logits and alternates windows; sampling sees the capped logits."""
    config = Gemma2Config(
        **sizes(
            sliding_window=8,
            query_pre_attn_scalar=8,
            hidden_activation="gelu",
            tie_word_embeddings=False,
            final_logit_softcapping=3.0,
        )
    )
    tiny = save(tmp_path / "gemma2", config)
    sampling = SamplingParams(temperature=0.7, seed=5)
    decoder = Decoder(make_engine(tiny), tiny.prompt(1, 14), sampling=sampling)

    output = decoder.plain(20)

    logits = tiny.reference()(torch.tensor([decoder.log])).logits[0]
    first = decoder.prompt_length
    positions = list(range(first, len(decoder.log)))
    expected, _ = draw_tokens(logits[first - 1 : -1], positions, sampling)
    assert output == expected
    assert len(set(output)) > 5


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("dtype", {"dtype": "float64"}),
        ("device", {"device": "tpu"}),
        ("device", {"device": "cuda:99"}),
        ("kv_capacity_tokens", {"kv_capacity_tokens": 0}),
        ("model", {"model_path": "no-such-org/no such model"}),
    ],
)
def test_what_cannot_be_loaded_is_named(
    llama: TinyModel, field: str, arguments: dict[str, object]
) -> None:
    """One line with field, value and limit."""
    settings: dict[str, object] = {
        "model_path": llama.folder,
        "device": "cpu",
        "dtype": "float32",
        "kv_capacity_tokens": 100,
    }

    with pytest.raises(InvalidArgumentError) as caught:
        load_target(**(settings | arguments))  # type: ignore[arg-type]

    assert caught.value.metadata["field"] == field
    assert "\n" not in caught.value.message


def test_weights_that_are_not_safetensors_are_refused(llama: TinyModel, tmp_path: Path) -> None:
    """A checkpoint of pickles is not read."""
    copy = shutil.copytree(llama.folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")

    with pytest.raises(MismatchError, match="safetensors"):
        load_model(copy, device="cpu", dtype="float32")


def test_a_missing_tensor_is_named(llama: TinyModel, tmp_path: Path) -> None:
    """A checkpoint with a gap is refused; transformers alone would fill it with random numbers."""
    copy = shutil.copytree(llama.folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(MismatchError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_model(copy, device="cpu", dtype="float32")


def test_rotary_embeddings_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    """Dynamic scaling would let a long session turn the positions of a short one."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    tiny = save(tmp_path / "dynamic", LlamaConfig(**sizes(rope_parameters=rope)))

    with pytest.raises(MismatchError, match="dynamic"):
        load_model(tiny.folder, device="cpu", dtype="float32")


def test_learned_positions_end_with_the_context(tmp_path: Path, make_engine: MakeEngine) -> None:
    """A tree that hangs over the end of a position table is verified up to the end."""
    tiny = save(
        tmp_path / "gpt2",
        GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=24,
            initializer_range=0.3,
            eos_token_id=1,
            bos_token_id=0,
        ),
    )
    engine = make_engine(tiny)
    prompt = tiny.prompt(1, 20)
    plain = Decoder(engine, prompt, max_length=24).plain(5)

    decoder = Decoder(engine, prompt, max_length=24)
    decoder.round([plain[1], plain[2], plain[3], 5, 6, 7], [0, 1, 2, 3, 4, 5])

    assert decoder.output[:4] == plain[:4]


def test_attention_that_differs_from_the_models_own_is_refused(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that packed attention gets wrong is found at load, not in its output."""
    from arborist.common import packed_attention as attention

    right = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *args: right(*args) * 1.1)

    with pytest.raises(MismatchError, match="not supported"):
        load_model(llama.folder, device="cpu", dtype="float32")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A config that no causal language model answers to is refused in one line."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes()))
    model.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))

    with pytest.raises(MismatchError) as caught:
        load_model(tmp_path / "m", device="cpu", dtype="float32")

    assert "\n" not in caught.value.message
