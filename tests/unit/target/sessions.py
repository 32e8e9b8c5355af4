"""Ways to drive a target engine in tests, and what they are compared with."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from arborist.core.engine import (
    Prefill,
    PrefillResult,
    SessionKey,
    TargetOpen,
    TargetOutcome,
    TargetWork,
    Verify,
    VerifyResult,
)
from arborist.core.errors import ArboristError
from arborist.core.features import FeatureSpec
from arborist.core.logprobs import TokenLogprobs
from arborist.core.prefix import Prefix
from arborist.core.sampling import SamplingParams
from arborist.target.engine import HfTargetEngine

GREEDY = SamplingParams()
STATES = FeatureSpec()


@dataclass(frozen=True)
class TinyModel:
    """A small random model on disk."""

    folder: Path
    vocab_size: int

    def reference(self, device: str = "cpu") -> PreTrainedModel:
        """Loads it the way transformers does, with its own attention."""
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        )
        return model.to(device).eval().requires_grad_(False)

    def prompt(self, seed: int, length: int) -> list[int]:
        """Makes up token ids; 0 and 1 are special."""
        random = Random(seed)
        return [random.randrange(2, self.vocab_size) for _ in range(length)]


def run_one(engine: HfTargetEngine, work: TargetWork) -> TargetOutcome:
    """Runs a batch of one item."""
    (outcome,) = engine.run([work])
    return outcome


def prefilled(outcome: TargetOutcome) -> PrefillResult:
    """Insists on a prefill that went well."""
    assert isinstance(outcome, PrefillResult), outcome
    return outcome


def verified(outcome: TargetOutcome) -> VerifyResult:
    """Insists on a verification that went well."""
    assert isinstance(outcome, VerifyResult), outcome
    return outcome


def failed(outcome: TargetOutcome) -> ArboristError:
    """Insists on an error."""
    assert isinstance(outcome, ArboristError), outcome
    return outcome


class Decoder:
    """One session with the log that its controller would keep."""

    def __init__(
        self,
        engine: HfTargetEngine,
        prompt: list[int],
        name: str = "s",
        *,
        sampling: SamplingParams = GREEDY,
        feature_spec: FeatureSpec | None = STATES,
        max_length: int = 100,
        max_draft_tokens: int = 20,
        chunk: int = 1000,
        end_token_ids: tuple[int, ...] = (),
        num_logprobs: int | None = None,
        scope: str | None = None,
        json_schema: str | None = None,
    ) -> None:
        """Opens the session and runs what it could not take over of the prompt."""
        self.engine = engine
        self.num_logprobs = num_logprobs
        self.logprobs: list[TokenLogprobs] = []
        self.key: SessionKey = ("controller", name)
        self.features: list[Tensor] = []
        engine.open(
            self.key,
            TargetOpen(
                sampling,
                feature_spec,
                max_length,
                max_draft_tokens,
                len(prompt),
                end_token_ids,
                None if scope is None else Prefix.of(scope, prompt[:-1]),
                json_schema=json_schema,
            ),
        )
        self.num_reused = engine.num_reused(self.key)
        if self.num_reused and feature_spec is not None:
            self.features.append(engine.read_features(self.key, 0, self.num_reused))
        root = None
        for begin in range(self.num_reused, len(prompt), chunk):
            part = prompt[begin : begin + chunk]
            last = begin + chunk >= len(prompt)
            work = Prefill(self.key, begin, part, last, num_logprobs=num_logprobs)
            result = prefilled(run_one(engine, work))
            root = result.root
            if result.logprobs is not None:
                self.logprobs.append(result.logprobs)
            if result.features is not None:
                self.features.append(result.features)
        assert root is not None
        self.prompt_length = len(prompt)
        self.log = [*prompt, root]

    @property
    def output(self) -> list[int]:
        """What was generated."""
        return self.log[self.prompt_length :]

    def work(self, tokens: list[int], parents: list[int]) -> Verify:
        """Makes the command of a round."""
        return Verify(
            self.key,
            len(self.log),
            self.log[-1],
            tokens,
            parents,
            want_node_tokens=True,
            num_logprobs=self.num_logprobs,
        )

    def commit(self, work: Verify, outcome: TargetOutcome) -> VerifyResult:
        """Appends what a round gave."""
        result = verified(outcome)
        self.log += [work.tokens[node - 1] for node in result.accepted_nodes]
        self.log.append(result.bonus)
        self.logprobs += result.logprobs
        if result.features is not None:
            self.features.append(result.features)
        assert self.engine.kv_length(self.key) == len(self.log) - 1
        return result

    def round(self, tokens: list[int], parents: list[int]) -> VerifyResult:
        """Verifies one tree and commits."""
        work = self.work(tokens, parents)
        return self.commit(work, run_one(self.engine, work))

    def plain(self, length: int) -> list[int]:
        """Decodes without a tree until `length` tokens are generated."""
        while len(self.output) < length:
            self.round([], [])
        return self.output[:length]


def draft_tree(
    random: Random, num_nodes: int, vocab_size: int, truth: list[int]
) -> tuple[list[int], list[int]]:
    """Draws a tree that follows `truth` down some of its paths.

    Returns:
        Tokens and parent indices.
    """
    tokens: list[int] = []
    parents: list[int] = []
    true_depth = {0: 0}  # Nodes on the true path, by depth.
    taken: set[tuple[int, int]] = set()
    for _ in range(num_nodes):
        node = len(tokens) + 1
        parent = random.choice([random.randrange(node), max(true_depth)])
        token = random.randrange(vocab_size)
        depth = true_depth.get(parent)
        if depth is not None and depth < len(truth) and random.random() < 0.7:
            token = truth[depth]
        if (parent, token) in taken:
            continue
        taken.add((parent, token))
        tokens.append(token)
        parents.append(parent)
        if depth is not None and depth < len(truth) and token == truth[depth]:
            true_depth[node] = depth + 1
    return tokens, parents
