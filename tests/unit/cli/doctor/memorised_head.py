"""A head that knows some outputs of a target by heart, and nothing else: what it is fed decides.

Its attention and MLP are zero, so its state is `fc` of one feature row; its own LM head is solved
for so that each row of the chosen features says the token it was taught. Fed with other layers, it
says the next id instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from arborist.draft.checkpoint import write_head
from arborist.draft.eagle3_head import Eagle3Head, FusionConfig
from arborist.draft.head import HeadConfig

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "eagle3"
TARGET = GOLDEN / "target"
TARGET_HIDDEN, VOCAB = 64, 512
HIDDEN = 3 * TARGET_HIDDEN
"""So wide that `fc` loses nothing."""
MAX_TOKENS = 24
RIGHT = (2, 4, 5)
"""The official choice for eight layers."""


def write_memorised_head(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    *,
    layers: tuple[int, ...] = RIGHT,
    said: tuple[int, ...] | None = None,
    shift: int = 0,
) -> Path:
    """Writes an EAGLE-3 head that was taught the target's greedy outputs.

    Args:
        folder: Where to.
        prompts: Whose outputs.
        layers: What it was taught on.
        said: What its config says instead; None = the same.
        shift: 0 = feature f_t was taught x_{t+2}, as it should be; s = x_{t+2+s}.
    """
    torch.manual_seed(3)
    config = HeadConfig(
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=VOCAB,
        max_position_embeddings=512,
    )
    head = Eagle3Head(config, FusionConfig(TARGET_HIDDEN))
    with torch.no_grad():
        head.midlayer.self_attn.o_proj.weight.zero_()
        head.midlayer.mlp.down_proj.weight.zero_()
        rows, tokens = _lessons(prompts, layers, shift)
        if said is not None:
            others, _ = _lessons(prompts, said, shift)
            rows, tokens = torch.cat((rows, others)), torch.cat((tokens, (tokens + 1) % VOCAB))
        states = head.readout(head.fuse(rows))  # [R, H]
        wanted = torch.nn.functional.one_hot(tokens, VOCAB).float()
        lm_head = torch.linalg.lstsq(states.double(), wanted.double(), driver="gelsd").solution.T
    tensors = {
        **head.state_dict(),
        "lm_head.weight": 20 * lm_head.float(),
        "embed_tokens.weight": torch.randn(VOCAB, HIDDEN),
    }
    fields = {
        "hidden_size": HIDDEN,
        "target_hidden_size": TARGET_HIDDEN,
        "intermediate_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "feature_layer_ids": list(said or layers),
    }
    write_head(folder, {name: one.clone() for name, one in tensors.items()}, fields)
    return folder


def _lessons(
    prompts: Sequence[Sequence[int]], layers: tuple[int, ...], shift: int
) -> tuple[Tensor, Tensor]:
    """Returns features (R, 3H) and the token each is taught, over the outputs of all prompts."""
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    rows: list[Tensor] = []
    tokens: list[int] = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([list(prompt)]), max_new_tokens=MAX_TOKENS, do_sample=False
        )
        states = model(ids, output_hidden_states=True).hidden_states
        fed = torch.cat([states[layer][0] for layer in layers], -1)  # [T, 3H]
        for place in range(len(prompt) - 1 - shift, ids.shape[1] - 2 - shift):
            rows.append(fed[place])
            tokens.append(int(ids[0, place + 2 + shift]))
    return torch.stack(rows), torch.tensor(tokens)
