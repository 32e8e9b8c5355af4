"""Shape of a new head: one layer as wide as the target's states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from arborist.core.errors import InvalidArgumentError
from arborist.draft.head import HeadConfig


@dataclass(frozen=True)
class HeadShape:
    """What a user asked of the head's layer; None = as the target has it."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    intermediate_size: int | None = None


def head_config_of(config: PretrainedConfig, shape: HeadShape | None = None) -> HeadConfig:
    """A one-layer head as wide as the target's states, whatever the width of its layers.

    Of a target with the usual proportions it is one more layer; of one with thin layers (too few
    heads to fill its states) it gets the proportions of a usual layer, since it has no second one.

    Args:
        config: of the target; of one with a vision part, the text model's counts.
        shape: what differs from that.
    Raises:
        InvalidArgumentError: heads that do not divide, or a size below 1.
    """
    text, asked = config.get_text_config(), shape or HeadShape()
    hidden = int(text.hidden_size)
    own_heads = int(text.num_attention_heads)
    head_dim = int(getattr(text, "head_dim", None) or hidden // own_heads)
    num_heads = max(own_heads, hidden // head_dim)
    is_thin = num_heads > own_heads
    usual_width = -(-hidden * 8 // 3 // 128) * 128
    num_kv_heads = int(getattr(text, "num_key_value_heads", None) or own_heads)
    width = usual_width if is_thin else int(getattr(text, "intermediate_size", usual_width))
    if asked.num_heads is not None:
        num_heads, head_dim = asked.num_heads, _divided("heads", hidden, asked.num_heads)
        num_kv_heads = num_heads if num_heads % num_kv_heads else num_kv_heads
    if is_thin:
        num_kv_heads = max(1, num_heads // 3)
    if asked.num_kv_heads is not None:
        num_kv_heads = asked.num_kv_heads
        _divided("kv-heads", num_heads, num_kv_heads)
    if asked.intermediate_size is not None:
        width = asked.intermediate_size
    try:
        return HeadConfig(
            hidden_size=hidden,
            intermediate_size=width,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=int(text.vocab_size),
            rms_norm_eps=float(getattr(text, "rms_norm_eps", 1e-5)),
            rope_theta=_rope_theta(text),
            max_position_embeddings=int(text.max_position_embeddings),
        )
    except ValueError as error:
        field, _, rest = str(error).partition(" = ")
        value, _, limit = rest.partition(": must be ")
        raise InvalidArgumentError(field, value, limit) from None


def _divided(name: str, whole: int, parts: int) -> int:
    if parts < 1 or whole % parts:
        raise InvalidArgumentError(name, parts, f"at least 1 and a divisor of {whole}")
    return whole // parts


def _rope_theta(text: PretrainedConfig) -> float:
    rope: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    # A family with two tables names one for each kind of layer: the global one reaches further.
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta") or getattr(text, "rope_theta", None) or 10000.0)
