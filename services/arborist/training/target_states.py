"""What a head learns from its target: the states of a sequence, as they are served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from arborist.common.causal_model import CausalModel, load_model
from arborist.common.packed_attention import PackedBatch, Segment
from arborist.core.errors import MismatchError
from arborist.core.features import FeatureSpec
from arborist.draft.target_vocabulary import TargetVocabulary, load_target_vocabulary

_PROBE_TOKENS = 8
# Relative distance of logits from the product that the draft worker takes, by element type.
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


@dataclass(frozen=True)
class SequenceStates:
    """A sequence as the target sees it, in the element type it is remembered in.

    ``features`` are what the head is fed, [T, W]; ``finals`` the states after the final norm, from
    which the target's distribution follows, [T, H]; the same tensor for an EAGLE-1/2 head.
    """

    features: Tensor
    finals: Tensor

    @property
    def num_bytes(self) -> int:
        """Size of both."""
        parts = [self.features] if self.features is self.finals else [self.features, self.finals]
        return sum(part.numel() * part.element_size() for part in parts)


class StateSource(Protocol):
    """Where the trainer gets states from."""

    embedding: Tensor  # [V, H] fp32
    readout: TargetReadout

    def states(self, token_ids: Sequence[int]) -> SequenceStates:
        """States of one sequence."""
        ...


@dataclass(frozen=True)
class TargetReadout:
    """The target's distribution from its final states: LM head [V, H], and a cap on the logits."""

    lm_head: Tensor
    softcap: float | None = None

    def logits(self, finals: Tensor) -> Tensor:
        """Logits [N, V] in fp32 of states [N, H]."""
        logits = F.linear(finals.to(self.lm_head.dtype), self.lm_head).float()
        if self.softcap is None:
            return logits
        return self.softcap * torch.tanh(logits / self.softcap)


class TargetStates:
    """A target of any family that can be served, read through the code that serves it."""

    def __init__(self, model: CausalModel, vocabulary: TargetVocabulary, dtype: torch.dtype):
        """Take a loaded target; `load` does the loading.

        Args:
            model: on its device.
            vocabulary: its embedding and LM head as a draft worker reads them.
            dtype: of the LM head in products.
        """
        self.model = model
        self.vocabulary = vocabulary
        self.embedding = vocabulary.embed_tokens.to(model.device, torch.float32)
        lm_head = vocabulary.lm_head.to(model.device, dtype)
        self.readout = TargetReadout(lm_head, model.final_softcap)
        self._layers: tuple[int, ...] | None = None
        # Packed products of few rows keep buffers: one forward at a time.
        self._lock = Lock()

    @classmethod
    def load(cls, source: str | Path, *, device: str, dtype: str, head_dtype: str) -> TargetStates:
        """Load a target from safetensors.

        Args:
            source: folder or hub name.
            device: cpu or cuda:N.
            dtype: of the target: float32, bfloat16 or float16.
            head_dtype: fp32, or bf16 for products in half precision.
        Raises:
            InvalidArgumentError: no such model or device.
            MismatchError: it cannot be served, or its logits are no product with its LM head.
        """
        vocabulary = load_target_vocabulary(source)
        model = load_model(source, device=device, dtype=dtype)
        products = torch.bfloat16 if head_dtype == "bf16" else torch.float32
        states = cls(model, vocabulary, products)
        states._check_readout(str(source))
        return states

    def watch(self, layer_ids: tuple[int, ...] | None) -> None:
        """Choose the features: inputs of these layers, or the state after the final norm."""
        self._layers = layer_ids
        self.model.feature_layout(FeatureSpec(layer_ids))

    def states(self, token_ids: Sequence[int]) -> SequenceStates:
        """States of one sequence alone, so that they do not depend on what is trained beside it."""
        batch = self._forward(list(map(int, token_ids)))[0]
        # Copied out of inference mode: the gradient's tape may keep them.
        finals = batch.hidden.to(torch.bfloat16, copy=True)
        if self._layers is None:
            return SequenceStates(finals, finals)
        inputs = [batch.layer_inputs[layer] for layer in self._layers]
        return SequenceStates(torch.cat(inputs, -1).to(torch.bfloat16, copy=True), finals)

    def _forward(self, tokens: list[int], logits: bool = False) -> tuple[PackedBatch, Tensor]:
        batch = PackedBatch([Segment(_NoMemory(), 0, len(tokens), None)])
        wanted = list(range(len(tokens))) if logits else []
        with self._lock:
            out = self.model.forward(batch, tokens, list(range(len(tokens))), wanted)
        return batch, out

    def _check_readout(self, source: str) -> None:
        info = self.model.info
        tokens = [(5 * i + 2) % info.vocab_size for i in range(_PROBE_TOKENS)]
        batch, expected = self._forward(tokens, logits=True)
        found = self.readout.logits(batch.hidden)
        error = float((found - expected.float()).norm() / expected.float().norm())
        dtypes = (self.model.dtype, self.readout.lm_head.dtype)
        tolerance = max(_PROBE_TOLERANCE[dtype] for dtype in dtypes)
        if not error <= tolerance:
            raise MismatchError(
                f"{source}: its logits are not its final state times its LM head (relative "
                f"distance {error:.2g}): a head that borrows the LM head cannot be trained for it"
            )


class _NoMemory:
    """Stands where KV would be: a sequence is run once, from its beginning."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' own keys and values: there are none before them."""
        return keys, values
