"""A causal language model, behind one call: packed rows in, states and logits out.

The target is one, and so is a draft that is a language model of its own.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from arborist.common.few_rows import use_few_rows
from arborist.common.float_dtypes import FLOAT_DTYPES
from arborist.common.kv_layout import FeatureLayout, KvLayout
from arborist.common.lean_norm import use_lean_norms
from arborist.common.mask_check import CHECKED_ATTENTION, register_checked_attention
from arborist.common.model_files import ModelFiles, tensor_digest
from arborist.common.packed_attention import (
    ATTENTION,
    BATCH_ARGUMENT,
    PackedBatch,
    Segment,
    register_attention,
)
from arborist.common.quantization import quantization_method
from arborist.core.engine import ModelInfo
from arborist.core.errors import ArboristError, InvalidArgumentError, MismatchError
from arborist.core.features import FeatureSpec

# Rotary embeddings that depend on the longest sequence of a batch: packing would let sessions
# change each other's positions.
_UNPACKABLE_ROPE = ("dynamic", "longrope")

_PROBE_TOKENS = 6
# Relative distance of a row's state between our attention and the model's own, by element type.
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}


class CausalModel:
    """A decoder-only causal language model that runs packed batches.

    Attributes:
        info: What is loaded.
        kv_layout: What one position of KV holds.
        device: Where the weights lie.
        dtype: Their element type.
    """

    def __init__(self, model: PreTrainedModel, info: ModelInfo) -> None:
        """Wires a loaded model for packed batches and checks that it gives the same states.

        Args:
            model: Causal language model in evaluation mode with its own eager attention.
            info: What is loaded.
        Raises:
            MismatchError: The model cannot run packed batches.
        """
        _refuse_unpackable(model)
        self.info = info
        self.device = model.device
        self.dtype = model.dtype
        self._model = model
        self._decoder = model.get_decoder()
        self._layers = _decoder_layers(self._decoder, info.num_layers)
        self._watched: set[int] = set()
        self._decoder.register_forward_hook(_keep_last_hidden, with_kwargs=True)
        tokens = _probe_tokens(info)
        expected = self._own_states(tokens)
        if model.device.type == "cpu":
            use_few_rows(model)
            use_lean_norms(model)
        model.set_attn_implementation(CHECKED_ATTENTION)
        self.kv_layout = self._probe(tokens, expected)
        model.set_attn_implementation(ATTENTION)

    @property
    def config(self) -> PretrainedConfig:
        """Returns the configuration of the language model, without a vision part's."""
        return self._model.config.get_text_config()

    @property
    def final_softcap(self) -> float | None:
        """Returns the bound that the logits are bent to, as in Gemma 2; None = none."""
        cap = getattr(self.config, "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    def feature_layout(self, spec: FeatureSpec) -> FeatureLayout:
        """Returns what one position keeps as features, and watches the layers for it.

        Raises:
            InvalidArgumentError: Unknown layers or dtype.
        """
        dtype = self.dtype if spec.dtype is None else FLOAT_DTYPES.get(spec.dtype)
        if dtype is None:
            raise InvalidArgumentError(
                "feature_spec.dtype", spec.dtype, f"one of {list(FLOAT_DTYPES)}"
            )
        if spec.layer_ids is None:
            return FeatureLayout(self.info.hidden_size, dtype)
        for layer in spec.layer_ids:
            if not 0 <= layer < self.info.num_layers:
                raise InvalidArgumentError(
                    "feature_spec.layer_ids", layer, f"in [0, {self.info.num_layers})"
                )
        if not spec.layer_ids:
            raise InvalidArgumentError("feature_spec.layer_ids", "empty", "at least one layer")
        for layer in set(spec.layer_ids) - self._watched:
            self._layers[layer].register_forward_pre_hook(_KeepInput(layer), with_kwargs=True)
            self._watched.add(layer)
        return FeatureLayout(self.info.hidden_size * len(spec.layer_ids), dtype)

    @torch.inference_mode()
    def forward(
        self, batch: PackedBatch, tokens: list[int], positions: list[int], logit_rows: list[int]
    ) -> Tensor:
        """Runs all rows once; the batch brings back the states.

        Args:
            batch: Sessions of the rows.
            tokens: Token id of each row.
            positions: Position of each row.
            logit_rows: Rows whose logits are wanted, ascending.
        Returns:
            (len(logit_rows), vocab_size), as the model gives them.
        """
        limit = self.info.context_length - 1
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([tokens], device=self.device),  # [1, R]
            # Nodes past the context can never be committed, but a position table ends there.
            "position_ids": torch.tensor([[min(p, limit) for p in positions]], device=self.device),
            "use_cache": False,
            BATCH_ARGUMENT: batch,
        }
        if not logit_rows:
            self._decoder(**arguments)
            return torch.empty((0, self.info.vocab_size), device=self.device)
        keep = 0 if len(logit_rows) == len(tokens) else torch.tensor(logit_rows, device=self.device)
        output = self._model(**arguments, logits_to_keep=keep)
        logits: Tensor = output.logits[0]
        return logits

    @torch.inference_mode()
    def _own_states(self, tokens: list[int]) -> Tensor:
        """Returns the states the model gives with its own modules and attention, (rows, hidden)."""
        batch = PackedBatch([])
        ids = torch.tensor([tokens], device=self.device)
        self._decoder(input_ids=ids, use_cache=False, **{BATCH_ARGUMENT: batch})
        return batch.hidden

    def _probe(self, tokens: list[int], expected: Tensor) -> KvLayout:
        """Learns the KV layout and checks that packed attention gives the expected states."""
        name = type(self._model).__name__
        recorder = _LayoutRecorder()
        batch = PackedBatch([Segment(recorder, 0, len(tokens), None)])
        self.forward(batch, tokens, list(range(len(tokens))), [len(tokens) - 1])
        layout = recorder.layout(self.info.num_layers, name)
        # In half precision rounding may send a row of a mixture to another expert: there the median
        # counts, since wrong attention is wrong in every row but the first.
        distances = (batch.hidden - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
        error = distances.max() if self.dtype == torch.float32 else distances.median()
        if not error <= _PROBE_TOLERANCE[self.dtype]:
            raise MismatchError(
                f"{name} gives other states with packed attention than with its own "
                f"(relative distance {error:.2g}): its attention is not supported"
            )
        return layout


class _LayoutRecorder:
    """Stands in for KV during the probe and notes what each layer writes."""

    def __init__(self) -> None:
        self._planes: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Notes the shapes; there is nothing before the rows."""
        if layer in self._planes:
            raise MismatchError(f"layer {layer} attends twice, which is not supported")
        self._planes[layer] = (
            (keys.shape[0], keys.shape[2]),
            (values.shape[0], values.shape[2]),
        )
        return keys, values

    def layout(self, num_layers: int, name: str) -> KvLayout:
        """Returns what was noted.

        Raises:
            MismatchError: Some layer keeps its state elsewhere.
        """
        if sorted(self._planes) != list(range(num_layers)):
            raise MismatchError(
                f"{name} uses the attention interface in {len(self._planes)} of {num_layers} "
                "layers: must be all of them"
            )
        return KvLayout(
            tuple(plane for layer in range(num_layers) for plane in self._planes[layer])
        )


@dataclass(frozen=True, slots=True)
class _KeepInput:
    """Hook that notes the input of one decoder layer in the batch."""

    layer: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        kwargs[BATCH_ARGUMENT].layer_inputs[self.layer] = hidden[0]


def _keep_last_hidden(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    kwargs[BATCH_ARGUMENT].last_hidden = output.last_hidden_state[0]


def load_model(
    source: str | Path,
    *,
    device: str,
    dtype: str,
    revision: str | None = None,
    name: str | None = None,
) -> CausalModel:
    """Loads a causal language model from safetensors.

    Args:
        source: Folder or hub name.
        device: "cpu" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16"; weights are cast.
        revision: Branch, tag or commit of a hub name.
        name: Served name; None = the last part of `source`.
    Returns:
        The model, checked.
    Raises:
        InvalidArgumentError: No such model, device or dtype.
        MismatchError: The model cannot be served.
    """
    files = ModelFiles(source, revision)
    method = quantization_method(files.config, files.source)
    model = load_causal_lm(files, device=device, dtype=dtype, revision=revision)
    digest = files.digest()
    register_attention()
    register_checked_attention()
    info = _model_info(model, files, digest, dtype, name or Path(source).name)
    try:
        return CausalModel(model, info)
    except ArboristError:
        raise
    except Exception as error:
        if method is None:
            raise
        raise MismatchError(
            f"{files.source} is quantised with {method} and does not run on {model.device} in "
            f"{dtype}: {_first_line(error)}"
        ) from error


def load_causal_lm(
    files: ModelFiles, *, device: str, dtype: str, revision: str | None = None
) -> PreTrainedModel:
    """Loads a causal language model as transformers has it, every tensor from the files.

    Args:
        files: Of the model.
        device: "cpu" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16"; weights are cast.
        revision: Branch, tag or commit of a hub name.
    Returns:
        The model in evaluation mode, frozen, with its own eager attention.
    Raises:
        InvalidArgumentError: No such device or dtype.
        MismatchError: It cannot be loaded, or a tensor is missing.
    """
    if dtype not in FLOAT_DTYPES:
        raise InvalidArgumentError("dtype", dtype, f"one of {', '.join(FLOAT_DTYPES)}")
    place = _device(device)
    method = quantization_method(files.config, files.source)
    return _read_model(files, revision, place, FLOAT_DTYPES[dtype], method)


def _read_model(
    files: ModelFiles,
    revision: str | None,
    place: torch.device,
    dtype: torch.dtype,
    method: str | None,
) -> PreTrainedModel:
    # Quantised weights are laid out for the device while they are loaded; not all can move later.
    loads_there = method is not None and place.type != "cpu"
    where = {"device_map": {"": str(place)}} if loads_there else {}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            files.source,
            revision=revision or "main",
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **where,
        )
    except Exception as error:
        # Quantisers raise what they like, NameError included, when a package is missing.
        how = "" if method is None else f", quantised with {method},"
        raise MismatchError(
            f"cannot load {files.source}{how} as a causal language model: {_first_line(error)}"
        ) from error
    # transformers fills what is missing with random numbers and says so in a warning.
    if missing := sorted(report["missing_keys"]):
        raise MismatchError(
            f"tensor {missing[0]} is missing from {files.source}"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            metadata={"tensor": missing[0]},
        )
    if model.dtype != dtype:
        stored = str(model.dtype).removeprefix("torch.")
        raise MismatchError(
            f"{files.source} is quantised with {method} and keeps its other weights in {stored}: "
            f"dtype must be {stored}"
        )
    if not loads_there:
        model.to(place)
    model.eval().requires_grad_(False)
    return model


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _device(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    count = torch.cuda.device_count()
    if place.type == "cuda" and (place.index or 0) < count:
        return torch.device("cuda", place.index or 0)
    if place.type == "cpu":
        return place
    raise InvalidArgumentError("device", device, f"cpu or cuda:N, N < {count}")


def _model_info(
    model: PreTrainedModel, files: ModelFiles, digest: str, dtype: str, name: str
) -> ModelInfo:
    config = model.config.get_text_config()
    try:
        embedding_digest = tensor_digest(files.read(files.embedding_name())[0])
    except MismatchError:
        embedding_digest = ""  # No table of the usual name: nothing to compare a head with.
    return ModelInfo(
        name=name,
        digest=digest,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        context_length=config.max_position_embeddings,
        num_parameters=model.num_parameters(),
        dtype=dtype,
        eos_token_ids=_eos_token_ids(model.generation_config, config.eos_token_id),
        embedding_digest=embedding_digest,
    )


def _eos_token_ids(
    generation: GenerationConfig | None, fallback: int | list[int] | None
) -> tuple[int, ...]:
    eos = generation.eos_token_id if generation is not None else None
    eos = fallback if eos is None else eos
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


def _refuse_unpackable(model: PreTrainedModel) -> None:
    name = type(model).__name__
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    kinds = {one.get("rope_type") for one in nested}
    for kind in _UNPACKABLE_ROPE:
        if kind in kinds:
            raise MismatchError(f"{name} uses {kind} rotary embeddings, which is not supported")
    if not getattr(model, "_supports_attention_backend", False):
        raise MismatchError(f"{name} does not use transformers' attention interface")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise MismatchError(f"{name} has no logits_to_keep")


def _probe_tokens(info: ModelInfo) -> list[int]:
    return [(7 * i + 1) % info.vocab_size for i in range(min(_PROBE_TOKENS, info.context_length))]


def _decoder_layers(decoder: nn.Module, num_layers: int) -> nn.ModuleList:
    for child in decoder.children():
        if isinstance(child, nn.ModuleList) and len(child) == num_layers:
            return child
    raise MismatchError(f"{type(decoder).__name__} has no list of {num_layers} decoder layers")
