"""What a worker's engine takes and returns; servicers and in-process links share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

from arborist.core.errors import ArboristError
from arborist.core.features import FeatureSpec
from arborist.core.logprobs import TokenLogprobs
from arborist.core.noise_aim import NoiseAim
from arborist.core.pool import Pool
from arborist.core.prefix import Prefix
from arborist.core.sampling import SamplingParams
from arborist.core.tree import Level

SessionKey: TypeAlias = tuple[str, str]
"""(controller_id, session_id)."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker holds; see common.proto for the fields."""

    name: str
    digest: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    context_length: int
    num_parameters: int
    dtype: str
    eos_token_ids: tuple[int, ...] = ()
    embedding_digest: str = ""


@dataclass(frozen=True, slots=True)
class TargetOpen:
    """Reserves a session at the target.

    Attributes:
        sampling: How tokens are drawn.
        feature_spec: Features wanted by the draft; None = none.
        max_length: Longest committed sequence in tokens.
        max_draft_tokens: Most drafted nodes of one Verify.
        prompt_length: Tokens of the prompt: what is prefilled behind them is output. Penalties and
            min_tokens and a schema need it; otherwise it may be 0.
        end_token_ids: Tokens that end the output; min_tokens holds them back.
        prefix: What may be taken over from earlier sessions; None = the session shares nothing.
        json_schema: JSON schema that the output must fit, as text; None = free.
    """

    sampling: SamplingParams
    feature_spec: FeatureSpec | None
    max_length: int
    max_draft_tokens: int
    prompt_length: int = 0
    end_token_ids: tuple[int, ...] = ()
    prefix: Prefix | None = None
    json_schema: str | None = None


@dataclass(frozen=True, slots=True)
class Prefill:
    """Runs prompt tokens [begin, begin + len(tokens)) through the target.

    Attributes:
        num_logprobs: Most probable tokens listed with the root's log-probs, in [0, 20]; None = no
            log-probs.
    """

    session: SessionKey
    begin: int
    tokens: list[int]
    last: bool
    want_features: bool = True
    num_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """What a chunk of the prompt gave.

    Attributes:
        begin: Position of the first feature row.
        features: (rows, width) or None when not wanted; a torch tensor from an engine, opaque
            to the controller.
        root: The target's token after the prompt, only for the last chunk.
        logprobs: The root's; None when not wanted.
        margin: Gap between its two best perturbed logits; 0 for the other chunks.
    """

    begin: int
    features: Tensor | None
    root: int | None
    logprobs: TokenLogprobs | None = None
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Verify:
    """Verifies root + tree; KV length must be committed_length − 1.

    Attributes:
        num_logprobs: Most probable tokens listed per committed token's log-probs, in [0, 20];
            None = no log-probs.
    """

    session: SessionKey
    committed_length: int
    root: int
    tokens: list[int]
    parent_indices: list[int]
    want_features: bool = True
    want_node_tokens: bool = False
    num_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a round commits.

    Attributes:
        accepted_nodes: Accepted path, root excluded.
        bonus: Token after it.
        features: (1 + accepted, width), rows for root and accepted nodes; None when not wanted.
        node_tokens: The target's token at root and every node; empty when not wanted.
        min_margin: Smallest gap of the two best perturbed logits on the path.
        logprobs: Of the accepted tokens and the bonus, in this order; empty when not wanted.
    """

    accepted_nodes: tuple[int, ...]
    bonus: int
    features: Tensor | None
    node_tokens: list[int] = field(default_factory=list)
    min_margin: float = 0.0
    logprobs: list[TokenLogprobs] = field(default_factory=list)


TargetWork: TypeAlias = Prefill | Verify
TargetOutcome: TypeAlias = PrefillResult | VerifyResult | ArboristError


class TargetEngine(Protocol):
    """The target model and the KV of its sessions. Called from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """Returns what is loaded."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        ...

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns KV positions reserved by sessions."""
        ...

    @property
    def keeps_features(self) -> bool:
        """Returns whether every committed position's features can be read back."""
        ...

    def prepare(self, request: TargetOpen) -> None:
        """Does what may take long before `open`, in any thread: compiles a schema.

        Raises:
            InvalidArgumentError: The schema cannot be compiled.
        """
        ...

    def open(self, session: SessionKey, request: TargetOpen) -> int:
        """Reserves KV; opening an open session drops its old state.

        Returns:
            Positions reserved, in tokens.
        Raises:
            ResourceExhaustedError: It does not fit now.
            InvalidArgumentError: max_length over the context, unknown feature layers, or a schema
                that cannot be compiled.
        """
        ...

    def run(self, batch: Sequence[TargetWork]) -> list[TargetOutcome]:
        """Runs one forward over any mix of work, at most one item per session.

        Returns:
            One outcome per item, in order; an error concerns that item alone and leaves its
            session as it was.
        """
        ...

    def read_features(self, session: SessionKey, begin: int, end: int) -> Tensor:
        """Returns stored features of [begin, end), shape (end − begin, width)."""
        ...

    def release(self, session: SessionKey) -> None:
        """Frees everything of the session; unknown sessions are no error."""
        ...


@dataclass(frozen=True, slots=True)
class DraftOpen:
    """Reserves a session at the draft.

    Attributes:
        max_length: Longest committed sequence in tokens.
        aim: The target's noise, to rank children by (core.noise_aim); None = rank them by the
            draft's own probabilities alone, as for a greedy target.
        prefix: What may be taken over from earlier sessions, the successor of the last pair
            included; None = the session shares nothing.
    """

    max_length: int
    aim: NoiseAim | None = None
    prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Extend:
    """Appends true pairs (f_t, x_{t+1}) at draft positions begin, begin + 1, ...

    A language model gets committed tokens x_t alone, each at its own position t.

    Attributes:
        begin: Must equal the pairs held.
        tokens: x_{begin+1}, ...; for a language model x_begin, ...
        features: (len(tokens), width), finite; torch tensor for an engine, None for a language
            model.
        top_k: Children of the root wanted; 0 = no level wanted.
    """

    session: SessionKey
    begin: int
    tokens: list[int]
    features: Tensor | None
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Expand:
    """Expands nodes of the newest level.

    Attributes:
        rows: Candidates inside the newest level (row * top_k + rank), best first, distinct.
        top_k: Children per node.
    """

    session: SessionKey
    rows: list[int]
    top_k: int


@dataclass(frozen=True, slots=True)
class ExpandTree:
    """Grows levels 2, 3, ... of the tree whose level 1 the last Extend gave.

    Attributes:
        policy: Chooses every level's frontier; one of pool_policies.POOL_POLICY_NAMES.
        depth: Levels below the root, level 1 included, in [2, 16].
        top_k: Frontier width and children per node; the Extend's.
    """

    session: SessionKey
    policy: str
    depth: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Extended:
    """Answer to an Extend without level: pairs held now."""

    num_pairs: int


DraftWork: TypeAlias = Extend | Expand | ExpandTree
DraftOutcome: TypeAlias = Level | Pool | Extended | ArboristError


class DraftEngine(Protocol):
    """The draft and the KV of its sessions. Called from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """Returns what is loaded."""
        ...

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Returns the features the draft needs; None for a language model."""
        ...

    @property
    def feature_width(self) -> int:
        """Returns the width of a feature row; 0 for a language model."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """Returns all KV positions."""
        ...

    @property
    def kv_reserved_tokens(self) -> int:
        """Returns KV positions reserved by sessions."""
        ...

    def open(self, session: SessionKey, request: DraftOpen) -> int:
        """Reserves KV; opening an open session drops its old state.

        Returns:
            Positions reserved, in tokens.
        Raises:
            ResourceExhaustedError: It does not fit now.
        """
        ...

    def run(self, batch: Sequence[DraftWork]) -> list[DraftOutcome]:
        """Runs any mix of work, at most one item per session: one forward, more for an ExpandTree.

        Returns:
            One outcome per item, in order; an error concerns that item alone and leaves its
            session as it was.
        """
        ...

    def release(self, session: SessionKey) -> None:
        """Frees everything of the session; unknown sessions are no error."""
        ...
