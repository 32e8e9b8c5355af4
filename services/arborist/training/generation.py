"""Batched greedy decoding of a target, to learn from what it really says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class DecodeBatch:
    """Sequences decoded together: keys and values in place, finished rows dropped.

    Prompts are padded on the left. The loop of `generate` copies the whole cache at every token and
    repeats it for grouped queries; here it is written in place and read as it is.
    """

    def __init__(
        self, model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        """Prefill all prompts.

        Args:
            model: in evaluation mode.
            prompts: token ids, each non-empty.
            max_new_tokens: room kept for outputs.
        """
        self._model = model
        longest = max(map(len, prompts))
        ids = torch.zeros((len(prompts), longest), dtype=torch.int64)  # [B, T]
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        self._positions = mask.sum(1)  # [B], of the next token
        self._hidden = (1 - mask).bool()  # [B, T], padding
        cache = DynamicCache(config=model.config)
        output = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
        ).last_hidden_state
        self.next_tokens = model.lm_head(output[:, -1]).argmax(-1)  # [B]
        self._length = longest
        self._keys = [self._roomy(layer.keys, max_new_tokens) for layer in cache.layers]
        self._values = [self._roomy(layer.values, max_new_tokens) for layer in cache.layers]
        self._hidden = F.pad(self._hidden, (0, max_new_tokens))

    def step(self) -> None:
        """Feed ``next_tokens`` and choose the ones after them."""
        model = self._model.model
        hidden = model.embed_tokens(self.next_tokens)[:, None]  # [B, 1, H]
        cos, sin = model.rotary_emb(hidden, self._positions[:, None])
        count = self._length + 1
        bias = torch.zeros(self._hidden[:, :count].shape, device=hidden.device, dtype=hidden.dtype)
        bias = bias.masked_fill(self._hidden[:, :count], float("-inf"))[:, None, None]  # [B,1,1,n]
        for index, layer in enumerate(model.layers):
            hidden = self._layer(index, layer, hidden, cos, sin, bias)
        self.next_tokens = self._model.lm_head(model.norm(hidden[:, 0])).argmax(-1)
        self._positions = self._positions + 1
        self._length = count

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row that is not named."""
        index = torch.tensor(rows, device=self.next_tokens.device)
        self.next_tokens = self.next_tokens[index]
        self._positions = self._positions[index]
        self._hidden = self._hidden[index]
        self._keys = [keys[index] for keys in self._keys]
        self._values = [values[index] for values in self._values]

    def _layer(
        self,
        index: int,
        layer: torch.nn.Module,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
    ) -> Tensor:
        attention, count = layer.get_submodule("self_attn"), self._length + 1
        normed = layer.get_submodule("input_layernorm")(hidden)
        shape = (hidden.shape[0], 1, -1, self._keys[index].shape[-1])
        query, key, value = (
            attention.get_submodule(name)(normed).view(shape).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )  # [B, heads, 1, hd]
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        self._keys[index][:, :, self._length] = key[:, :, 0]
        self._values[index][:, :, self._length] = value[:, :, 0]
        keys, values = self._keys[index][:, :, :count], self._values[index][:, :, :count]
        groups = query.shape[1] // keys.shape[1]
        grouped = query.view(hidden.shape[0], keys.shape[1], groups, -1)  # [B, kv, g, hd]
        scores = grouped @ keys.transpose(-1, -2) * shape[-1] ** -0.5 + bias  # [B, kv, g, n]
        mixed = (scores.softmax(-1) @ values).reshape(hidden.shape[0], 1, -1)
        hidden = hidden + attention.get_submodule("o_proj")(mixed)
        normed = layer.get_submodule("post_attention_layernorm")(hidden)
        output: Tensor = hidden + layer.get_submodule("mlp")(normed)
        return output

    @staticmethod
    def _roomy(states: Tensor, room: int) -> Tensor:
        return F.pad(states, (0, 0, 0, room))


@torch.no_grad()
def greedy_outputs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 64,
) -> Iterator[tuple[int, list[int]]]:
    """Decode greedily; prompts of similar length share a batch.

    Args:
        model: causal LM of any family, in evaluation mode; a plain Llama is decoded by our own
            loop, every other one by `generate`.
        prompts: token ids, each non-empty.
        max_new_tokens: limit of an output, at least 1.
        batch_size: prompts decoded together.
    Yields:
        (index of the prompt, output ids with the end token when it came), in any order.
    """
    ends = end_token_ids(model)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        chosen = [prompts[index] for index in indices]
        if isinstance(model, LlamaForCausalLM):
            outputs = _decode(model, chosen, max_new_tokens, ends)
        else:
            outputs = _generate(model, chosen, max_new_tokens, ends)
        yield from zip(indices, outputs, strict=True)


def end_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """Ids that end an output: those of the generation config, else of the config."""
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = model.config.get_text_config().eos_token_id
    if found is None:
        return frozenset()
    return frozenset(found if isinstance(found, list) else [found])


def _decode(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: frozenset[int],
) -> list[list[int]]:
    batch = DecodeBatch(model, prompts, max_new_tokens)
    outputs: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for number in range(max_new_tokens):
        if number:
            batch.step()
        for row, token in zip(rows, batch.next_tokens.tolist(), strict=True):
            if not outputs[row] or outputs[row][-1] not in ends:
                outputs[row].append(token)
        live = [i for i, row in enumerate(rows) if outputs[row][-1] not in ends]
        if not live:
            break
        if len(live) < 0.8 * len(rows):
            batch.keep(live)
            rows = [rows[i] for i in live]
    return outputs


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: frozenset[int],
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.int64)  # [B, T]
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    # A checkpoint's own sampling settings, and none at all, both mean greedy here.
    settings = GenerationConfig(
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
    )
    whole = model.generate(
        ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
    )
    outputs = []
    for row in whole[:, longest:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        outputs.append(row[: end + 1])
    return outputs
