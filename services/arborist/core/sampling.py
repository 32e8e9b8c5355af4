"""Gumbel-max sampling: the output is a function of prompt, parameters and seed alone.

At each node the token is argmax_v(processed_logit[v] + g(seed, position, v)) with
g = −log(−log U) (DESIGN §2). That draws exactly from softmax(processed_logit), so a drafted child
is accepted iff it is that token: EAGLE's rule with point-mass proposals, without any draft
probability. Temperature 0 drops g.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from arborist.core.errors import InvalidArgumentError

# Below it, logits divided by it leave the numbers that are told apart.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 100.0
MAX_LOGIT_BIASES = 300
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 2.0
# The wire carries it in 32 bits.
MAX_MIN_TOKENS = (1 << 31) - 1

# SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit constants: torch has no unsigned
# arithmetic, but two's complement multiplication and addition wrap alike on CPU and CUDA.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn.

    Attributes:
        temperature: 0 = greedy, else in [1e-6, 100].
        top_k: Keep the most probable tokens; 0 = all.
        top_p: Nucleus mass in (0, 1].
        min_p: Minimum probability relative to the best token, in [0, 1]; 0 = off.
        seed: Seed of the noise, 64 bits unsigned.
        logit_bias: Token ids, ascending, with what is added to their logits, each in [−100, 100].
        repetition_penalty: Divides positive logits of tokens seen in prompt or output, multiplies
            negative ones; in [0.01, 2], 1 = off.
        presence_penalty: Subtracted once from logits of tokens in the output; in [−2, 2].
        frequency_penalty: Subtracted per occurrence in the output; in [−2, 2].
        min_tokens: Tokens of output before which no end token may come.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        # Comparisons with NaN are false.
        if self.temperature != 0.0 and not (MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE):
            limit = f"0 or a number in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}]"
            raise InvalidArgumentError("temperature", self.temperature, limit)
        if self.top_k < 0:
            raise InvalidArgumentError("top_k", self.top_k, "0 (off) or a positive integer")
        if not (math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise InvalidArgumentError("top_p", self.top_p, "a number in (0, 1]")
        if not (math.isfinite(self.min_p) and 0.0 <= self.min_p <= 1.0):
            raise InvalidArgumentError("min_p", self.min_p, "a number in [0, 1]")
        if not 0 <= self.seed <= _MASK_64:
            raise InvalidArgumentError("seed", self.seed, "an unsigned 64-bit integer")
        self._check_bias()
        least, most = MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY
        if not least <= self.repetition_penalty <= most:
            raise InvalidArgumentError(
                "repetition_penalty", self.repetition_penalty, f"a number in [{least:g}, {most:g}]"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MAX_PENALTY <= (value := getattr(self, name)) <= MAX_PENALTY:
                limit = f"a number in [{-MAX_PENALTY:g}, {MAX_PENALTY:g}]"
                raise InvalidArgumentError(name, value, limit)
        if not 0 <= self.min_tokens <= MAX_MIN_TOKENS:
            raise InvalidArgumentError("min_tokens", self.min_tokens, f"in [0, {MAX_MIN_TOKENS}]")

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidArgumentError(
                "logit_bias", f"{len(self.logit_bias)} ids", f"at most {MAX_LOGIT_BIASES} ids"
            )
        previous = -1
        for token, value in self.logit_bias:
            if token <= previous:
                raise InvalidArgumentError("logit_bias", token, "ids >= 0, ascending")
            previous = token
            if not -MAX_BIAS <= value <= MAX_BIAS:
                limit = f"a number in [{-MAX_BIAS:g}, {MAX_BIAS:g}]"
                raise InvalidArgumentError(f"logit_bias[{token}]", value, limit)

    @property
    def penalized(self) -> bool:
        """Returns whether a penalty is on, so that the session's tokens must be counted."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def greedy(self) -> bool:
        """Returns whether no noise is used."""
        return self.temperature == 0.0


def gumbel_noise(seed: int, position: int, vocab_size: int, device: torch.device) -> Tensor:
    """Returns the noise of every token id at one position.

    Args:
        seed: 64 bits, unsigned.
        position: Absolute index of the token drawn (prompt starts at 0); nodes of one depth
            share it.
        vocab_size: Number of token ids.
        device: Where to compute; the integer hash is the same everywhere.
    Returns:
        float64, shape (vocab_size,), standard Gumbel.
    """
    return _noise_rows(seed, [position], vocab_size, device)[0]


def token_noise(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """Returns the noise of some token ids at one position; see `gumbel_noise`.

    Args:
        seed: 64 bits, unsigned.
        position: Absolute index of the token drawn.
        token_ids: int64, of any shape; the target's ids.
    Returns:
        float64, same shape and device.
    """
    return _gumbel((token_ids + 1) * _GOLDEN + _position_key(seed, position))


def _noise_rows(seed: int, positions: list[int], vocab_size: int, device: torch.device) -> Tensor:
    keys = [_position_key(seed, position) for position in positions]
    key_rows = torch.tensor(keys, dtype=torch.int64, device=device)[:, None]  # [P, 1]
    counter = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=device)  # [V]
    return _gumbel(counter * _GOLDEN + key_rows)


def _position_key(seed: int, position: int) -> int:
    """Returns a position's key of the hash, as a signed 64-bit integer."""
    key = _mix_int((seed + (position + 1) * (_GOLDEN & _MASK_64)) & _MASK_64)
    return key - (1 << 64) if key >> 63 else key


def _gumbel(counter: Tensor) -> Tensor:
    bits = _mix_tensor(counter)
    uniform = (_shift_right(bits, 11).to(torch.float64) + 0.5) * 2.0**-53  # in (0, 1)
    return uniform.log_().neg_().log_().neg_()


def process_logits(logits: Tensor, params: SamplingParams) -> Tensor:
    """Applies temperature, top_k, top_p, min_p in the order of HF `generate`.

    Args:
        logits: float, shape (rows, vocab); raw logits of the target.
        params: Not greedy.
    Returns:
        float32, shape (rows, vocab); excluded tokens are −inf.
    """
    scores = logits.float() / params.temperature  # [R, V]
    vocab_size = scores.shape[-1]
    if 0 < params.top_k < vocab_size:
        cut = scores.topk(params.top_k, dim=-1).values[:, -1:]  # [R, 1]
        scores = scores.masked_fill(scores < cut, -math.inf)
    if params.top_p < 1.0:
        ascending, order = scores.sort(dim=-1)  # [R, V]
        mass = ascending.softmax(dim=-1).cumsum(dim=-1)
        drop = mass <= 1.0 - params.top_p
        drop[:, -1] = False
        scores = scores.masked_fill(drop.scatter(-1, order, drop), -math.inf)
    if params.min_p > 0.0:
        probs = scores.softmax(dim=-1)
        floor = params.min_p * probs.amax(dim=-1, keepdim=True)
        scores = scores.masked_fill(probs < floor, -math.inf)
    return scores


def draw_tokens(
    logits: Tensor, positions: list[int], params: SamplingParams
) -> tuple[list[int], list[float]]:
    """Returns the target's token at every node.

    Args:
        logits: float, shape (rows, vocab); logits after each node, through `LogitProcessors` where
            a session has some.
        positions: Absolute index of the token drawn at each row.
        params: Sampling parameters of the session.
    Returns:
        Token ids, the smallest of equally good ones, and per row the gap between the two best
        perturbed logits: a gap under 1e-4 in fp32 is a numeric tie (DESIGN §2).
    Raises:
        ValueError: A row holds NaN or no finite logit.
    """
    if params.greedy:
        scores = logits.float()  # [R, V]
    else:
        scores = process_logits(logits, params).double()
        distinct = sorted(set(positions))
        noise = _noise_rows(params.seed, distinct, logits.shape[-1], logits.device)  # [P, V]
        row_of = {position: row for row, position in enumerate(distinct)}
        scores = scores + noise[[row_of[position] for position in positions]]  # [R, V]
    best = scores.topk(2, dim=-1)  # [R, 2]
    values, tokens = best.values.tolist(), best.indices[:, 0].tolist()
    for row, (high, low) in enumerate(values):
        if not math.isfinite(high):
            raise ValueError("logits are not finite")
        if high == low:
            # Half precision often gives equal logits. topk names any of them, argmax the first, as
            # transformers' `generate` does: the choice must not depend on how many rows there are.
            tokens[row] = int(scores[row].argmax())
    return tokens, [high - low for high, low in values]


def choice_seed(seed: int, choice: int) -> int:
    """Returns the seed of choice `choice` of n: H(seed, i), with choice 0 = the seed itself."""
    return seed if choice == 0 else _mix_int((seed ^ _mix_int(choice)) & _MASK_64)


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * (_MIX_1 & _MASK_64)) & _MASK_64
    value = ((value ^ (value >> 27)) * (_MIX_2 & _MASK_64)) & _MASK_64
    return value ^ (value >> 31)


def _mix_tensor(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask makes the shift logical.
    return (value >> bits) & ((1 << (64 - bits)) - 1)
