"""Quantised checkpoints run or are refused in one line that names the method."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.target.conftest import save, settings
from tests.unit.target.sessions import Decoder, TinyModel
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from arborist.common.causal_model import load_model
from arborist.core.errors import MismatchError
from arborist.target.engine import load_target


class ByteLinear(nn.Module):
    """A linear layer of bytes, one scale a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        shape = linear.weight.shape
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros((shape[0], 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies with what the bytes stand for."""
        weight = self.get_buffer("weight") * self.get_buffer("scale")
        return nn.functional.linear(x, weight.to(x.dtype))


class ByteConfig(QuantizationConfigMixin):  # type: ignore[misc]  # is untyped
    """Settings of the method `bytes`, of which there are none."""

    def __init__(self, quant_method: str = "bytes", **_: Any) -> None:
        self.quant_method = quant_method


class ByteQuantizer(HfQuantizer):  # type: ignore[misc]  # is untyped
    """Loads checkpoints of the method `bytes`."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if name.endswith("_proj"):
                    setattr(parent, name, ByteLinear(child))

    def is_serializable(self) -> bool:
        """Returns False: it never writes."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Returns False: it only reads."""
        return False


@pytest.fixture
def method_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the method known to transformers, as an installed package would."""
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "bytes", ByteQuantizer)
    monkeypatch.setitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "bytes", ByteConfig)


@pytest.fixture
def plain(tmp_path: Path) -> TinyModel:
    """A model that is not quantised, in a folder of its own."""
    return save(tmp_path / "model", LlamaConfig(**settings()))


def declare(model: TinyModel, config: dict[str, Any]) -> Path:
    """Says in config.json that a checkpoint is quantised."""
    file = model.folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))
    return model.folder


def round_to_bytes(folder: Path) -> None:
    """Replaces projections by bytes and scales."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[name.replace("weight", "scale")] = scale
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path, dtype: str = "float32") -> str:
    """Returns the one line with which a checkpoint is refused."""
    with pytest.raises(MismatchError) as caught:
        load_model(folder, device="cpu", dtype=dtype)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_transformers_loads_is_served(plain: TinyModel, method_bytes: None) -> None:
    """Layers of another class keep their own product; trees give what plain decoding gives."""
    round_to_bytes(declare(plain, {"quant_method": "bytes"}))
    engine = load_target(plain.folder, device="cpu", dtype="float32", kv_capacity_tokens=500)
    truth = Decoder(engine, plain.prompt(1, 9), "plain").plain(20)

    decoder = Decoder(engine, plain.prompt(1, 9))
    decoder.round([truth[1], 7, truth[2]], [0, 0, 1])

    expected = plain.reference()(torch.tensor([decoder.log[:-1]])).logits[0, 8:].argmax(-1)
    assert decoder.output == truth[:4] == expected.tolist()


def test_other_weights_keep_the_dtype_they_have(
    plain: TinyModel, method_bytes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the quantiser does not cast, the only dtype that works is named."""
    round_to_bytes(declare(plain, {"quant_method": "bytes"}))
    tensors = load_file(plain.folder / "model.safetensors")
    halves = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(halves, plain.folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(ByteQuantizer, "get_new_dtype", lambda *_: torch.bfloat16)

    assert "dtype must be bfloat16" in refusal(plain.folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quant_method": "vptq"}, "quantised with vptq"),
        ({"quant_method": "nonsense"}, "nonsense, which transformers does not know"),
        ({"bits": 4}, "which transformers does not know"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "bitsandbytes in 8 bits and llm_int8_threshold 6",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    plain: TinyModel, config: dict[str, Any], reason: str
) -> None:
    """A package is missing, the method is unknown or unsaid, or rows would change each other."""
    assert reason in refusal(declare(plain, config))


def test_a_quantised_model_that_fails_to_run_is_refused_by_name(
    plain: TinyModel, method_bytes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a quantised layer raises in the first forward, the method is named."""
    round_to_bytes(declare(plain, {"quant_method": "bytes"}))

    def fail(self: ByteLinear, x: Tensor) -> Tensor:
        raise NotImplementedError("no kernel\nfor this device")

    monkeypatch.setattr(ByteLinear, "forward", fail)

    message = refusal(plain.folder)
    assert "quantised with bytes and does not run on cpu in float32: no kernel" in message
