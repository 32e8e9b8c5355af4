"""Logit processors that depend on a session's tokens or ids, applied to every node of a tree.

Order (DESIGN §2): grammar mask, logit_bias, repetition_penalty, presence and frequency_penalty,
min_tokens; temperature, top_k, top_p and min_p follow in `sampling`. Each node is processed along
its own path, prompt and committed tokens included, so that a token is what plain decoding draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from arborist.core.errors import InvalidArgumentError
from arborist.core.grammar import Grammar, Matcher, mask_logits
from arborist.core.sampling import SamplingParams
from arborist.core.token_history import TokenCounts, TokenHistory


class LogitProcessors:
    """The processors of one session, and the tokens they look at."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_length: int,
        end_token_ids: Sequence[int],
        matcher: Matcher | None = None,
    ) -> None:
        """Starts before the prompt.

        Args:
            params: Of the session.
            prompt_length: Tokens of the prompt; 0 = not known.
            end_token_ids: Tokens that min_tokens holds back.
            matcher: Grammar of the output, at its start, where it stays; None = none.
        Raises:
            InvalidArgumentError: The prompt's length is not known, and it matters.
        """
        if prompt_length < 1 and (params.penalized or params.min_tokens or matcher is not None):
            raise InvalidArgumentError(
                "prompt_length", prompt_length, "at least 1 with penalties, min_tokens or a grammar"
            )
        self._params = params
        self._prompt_length = prompt_length
        self._end_token_ids = list(end_token_ids)
        self._history = TokenHistory(prompt_length) if params.penalized else None
        self._grammar = None if matcher is None else Grammar(matcher, prompt_length)

    @property
    def num_tokens(self) -> int | None:
        """Returns the tokens appended; None where nothing looks at them."""
        counted = self._history if self._history is not None else self._grammar
        return None if counted is None else len(counted)

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens whose KV is committed: of the prompt, or a root and what was accepted."""
        if self._history is not None:
            self._history.append(tokens)
        if self._grammar is not None:
            self._grammar.append(tokens)

    def apply(
        self, logits: Tensor, paths: Sequence[Sequence[int]], positions: Sequence[int]
    ) -> Tensor:
        """Returns processed logits.

        Args:
            logits: float, shape (rows, vocab); raw logits of the target, left as they are.
            paths: Per row the tokens behind those appended, the row's own last.
            positions: Absolute index of the token drawn at each row.
        Returns:
            float32, shape (rows, vocab); the logits themselves when nothing applies any more.
        Raises:
            InvalidArgumentError: The grammar came to a limit; fewer rows may do.
            SessionFailedError: The grammar forbids what is appended.
        """
        params = self._params
        early = self._early_rows(positions)
        if not (params.logit_bias or params.penalized or early) and self._grammar is None:
            return logits
        scores = logits.to(torch.float32, copy=True)  # [R, V]
        if self._grammar is not None:
            # First of all: no bias lifts a token it forbids.
            mask_logits(scores, self._grammar.masks(paths))
            early = going_on(scores, early, self._end_token_ids)
        if params.logit_bias:
            add_bias(scores, params.logit_bias)
        if self._history is not None:
            penalize(scores, self._history.counts(paths), params)
        if early:
            hold_back(scores, early, self._end_token_ids)
        return scores

    def _early_rows(self, positions: Sequence[int]) -> list[int]:
        """Returns the rows at which no end token may be drawn."""
        end = self._prompt_length + self._params.min_tokens
        if not self._end_token_ids or min(positions) >= end:
            return []
        return [row for row, position in enumerate(positions) if position < end]


def make_processors(
    params: SamplingParams,
    prompt_length: int,
    end_token_ids: Sequence[int],
    matcher: Matcher | None = None,
) -> LogitProcessors | None:
    """Returns a session's processors; None when all of them are off and cost nothing."""
    if matcher is None and not (params.logit_bias or params.penalized or params.min_tokens):
        return None
    return LogitProcessors(params, prompt_length, end_token_ids, matcher)


def add_bias(scores: Tensor, bias: Sequence[tuple[int, float]]) -> None:
    """Adds a bias to the logits of some tokens, in place.

    Args:
        scores: float32, shape (rows, vocab).
        bias: Distinct token ids with what is added.
    """
    ids = torch.tensor([token for token, _ in bias], device=scores.device)  # [B]
    values = torch.tensor([value for _, value in bias], dtype=scores.dtype, device=scores.device)
    scores[:, ids] += values


def penalize(scores: Tensor, counts: TokenCounts, params: SamplingParams) -> None:
    """Applies repetition, then presence and frequency penalty, in place.

    Repetition as transformers does it (once per distinct token of prompt and output), the others as
    OpenAI describes them (output only).

    Args:
        scores: float32, shape (rows, vocab).
        counts: Of the same rows.
        params: The penalties.
    """
    device = scores.device
    ids, number = counts.token_ids, counts.num_output
    if params.repetition_penalty == 1.0:
        # The others look at the output alone, and prompts are long.
        ids, number = ids[number > 0], number[number > 0]
    columns = torch.from_numpy(ids).to(device)  # [T]
    rows = torch.from_numpy(counts.path_rows).to(device)  # [P]
    path_ids = torch.from_numpy(counts.path_token_ids).to(device)  # [P]
    on_paths = scores[rows, path_ids]  # [P]; raw, before the history's change them
    chosen = scores.index_select(1, columns)  # [R, T]
    _penalize_chosen(chosen, torch.from_numpy(number).to(device), params)
    scores.index_copy_(1, columns, chosen)
    _penalize_chosen(on_paths, torch.from_numpy(counts.path_num_output).to(device), params)
    scores[rows, path_ids] = on_paths


def _penalize_chosen(chosen: Tensor, number: Tensor, params: SamplingParams) -> None:
    """Applies all penalties to logits of tokens that were seen, in place.

    Args:
        chosen: float32, shape (…, N).
        number: float32, shape (N,); occurrences in the output.
        params: The penalties.
    """
    if params.repetition_penalty != 1.0:
        penalty = params.repetition_penalty
        chosen.copy_(torch.where(chosen < 0, chosen * penalty, chosen / penalty))
    if params.presence_penalty or params.frequency_penalty:
        chosen -= (number > 0) * params.presence_penalty
        chosen -= number * params.frequency_penalty


def going_on(scores: Tensor, rows: Sequence[int], end_token_ids: Sequence[int]) -> list[int]:
    """Returns the rows at which something else than the output's end may come.

    Where a grammar has come to its end only end tokens are left, and min_tokens must not take them.

    Args:
        scores: float32, shape (rows, vocab), masked.
        rows: Rows to look at.
        end_token_ids: Tokens that end the output.
    """
    if not rows:
        return []
    at = torch.tensor(rows, device=scores.device)
    left = scores[at].isfinite()  # [r, V]
    left[:, torch.tensor(end_token_ids, device=scores.device)] = False
    return [row for row, more in zip(rows, left.any(dim=-1).tolist(), strict=True) if more]


def hold_back(scores: Tensor, rows: Sequence[int], token_ids: Sequence[int]) -> None:
    """Excludes tokens at some rows, in place.

    Args:
        scores: float32, shape (rows, vocab).
        rows: Rows concerned.
        token_ids: Tokens that may not be drawn there.
    """
    at = torch.tensor(rows, device=scores.device)[:, None]  # [r, 1]
    ids = torch.tensor(token_ids, device=scores.device)  # [E]
    scores[at, ids] = -math.inf
