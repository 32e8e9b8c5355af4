from arborist.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DraftServiceConnectRequest(_message.Message):
    __slots__ = ("attach", "commands")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    attach: _common_pb2.Attach
    commands: DraftCommands
    def __init__(self, attach: _Optional[_Union[_common_pb2.Attach, _Mapping]] = ..., commands: _Optional[_Union[DraftCommands, _Mapping]] = ...) -> None: ...

class DraftCommands(_message.Message):
    __slots__ = ("commands",)
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[DraftCommand]
    def __init__(self, commands: _Optional[_Iterable[_Union[DraftCommand, _Mapping]]] = ...) -> None: ...

class DraftCommand(_message.Message):
    __slots__ = ("command_id", "session_id", "stamp", "traceparent", "open", "extend", "expand", "release", "expand_tree")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    EXTEND_FIELD_NUMBER: _ClassVar[int]
    EXPAND_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    EXPAND_TREE_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    session_id: str
    stamp: _common_pb2.Stamp
    traceparent: str
    open: DraftOpen
    extend: Extend
    expand: Expand
    release: DraftRelease
    expand_tree: ExpandTree
    def __init__(self, command_id: _Optional[int] = ..., session_id: _Optional[str] = ..., stamp: _Optional[_Union[_common_pb2.Stamp, _Mapping]] = ..., traceparent: _Optional[str] = ..., open: _Optional[_Union[DraftOpen, _Mapping]] = ..., extend: _Optional[_Union[Extend, _Mapping]] = ..., expand: _Optional[_Union[Expand, _Mapping]] = ..., release: _Optional[_Union[DraftRelease, _Mapping]] = ..., expand_tree: _Optional[_Union[ExpandTree, _Mapping]] = ...) -> None: ...

class DraftOpen(_message.Message):
    __slots__ = ("epoch", "noise_seed", "max_length", "noise_temperature", "prefix")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NOISE_SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NOISE_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    noise_seed: int
    max_length: int
    noise_temperature: float
    prefix: _common_pb2.Prefix
    def __init__(self, epoch: _Optional[int] = ..., noise_seed: _Optional[int] = ..., max_length: _Optional[int] = ..., noise_temperature: _Optional[float] = ..., prefix: _Optional[_Union[_common_pb2.Prefix, _Mapping]] = ...) -> None: ...

class Extend(_message.Message):
    __slots__ = ("begin", "tokens", "features", "want_level", "top_k", "base")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    WANT_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    begin: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    features: _common_pb2.Tensor
    want_level: bool
    top_k: int
    base: _common_pb2.Base
    def __init__(self, begin: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., features: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., want_level: _Optional[bool] = ..., top_k: _Optional[int] = ..., base: _Optional[_Union[_common_pb2.Base, _Mapping]] = ...) -> None: ...

class Expand(_message.Message):
    __slots__ = ("rows", "top_k")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    top_k: int
    def __init__(self, rows: _Optional[_Iterable[int]] = ..., top_k: _Optional[int] = ...) -> None: ...

class ExpandTree(_message.Message):
    __slots__ = ("policy", "depth", "top_k", "level_span_ids")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    LEVEL_SPAN_IDS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    depth: int
    top_k: int
    level_span_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, policy: _Optional[str] = ..., depth: _Optional[int] = ..., top_k: _Optional[int] = ..., level_span_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DraftRelease(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DraftServiceConnectResponse(_message.Message):
    __slots__ = ("attached", "results")
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    attached: _common_pb2.Attached
    results: DraftResults
    def __init__(self, attached: _Optional[_Union[_common_pb2.Attached, _Mapping]] = ..., results: _Optional[_Union[DraftResults, _Mapping]] = ...) -> None: ...

class DraftResults(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[DraftResult]
    def __init__(self, results: _Optional[_Iterable[_Union[DraftResult, _Mapping]]] = ...) -> None: ...

class DraftResult(_message.Message):
    __slots__ = ("command_id", "queue_ms", "compute_ms", "opened", "level", "extended", "released", "error", "pool")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    queue_ms: float
    compute_ms: float
    opened: DraftOpened
    level: Level
    extended: Extended
    released: DraftReleased
    error: _common_pb2.Error
    pool: Pool
    def __init__(self, command_id: _Optional[int] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., opened: _Optional[_Union[DraftOpened, _Mapping]] = ..., level: _Optional[_Union[Level, _Mapping]] = ..., extended: _Optional[_Union[Extended, _Mapping]] = ..., released: _Optional[_Union[DraftReleased, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., pool: _Optional[_Union[Pool, _Mapping]] = ...) -> None: ...

class DraftOpened(_message.Message):
    __slots__ = ("reserved_tokens", "reused_pairs")
    RESERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REUSED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    reserved_tokens: int
    reused_pairs: int
    def __init__(self, reserved_tokens: _Optional[int] = ..., reused_pairs: _Optional[int] = ...) -> None: ...

class Extended(_message.Message):
    __slots__ = ("num_pairs",)
    NUM_PAIRS_FIELD_NUMBER: _ClassVar[int]
    num_pairs: int
    def __init__(self, num_pairs: _Optional[int] = ...) -> None: ...

class Level(_message.Message):
    __slots__ = ("num_rows", "top_k", "tokens", "logprobs")
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    num_rows: int
    top_k: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: bytes
    def __init__(self, num_rows: _Optional[int] = ..., top_k: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[bytes] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("tokens", "parents", "scores", "top_k", "level_rows", "rows", "logprobs", "level_compute_ms")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    LEVEL_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    parents: _containers.RepeatedScalarFieldContainer[int]
    scores: bytes
    top_k: int
    level_rows: _containers.RepeatedScalarFieldContainer[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    logprobs: bytes
    level_compute_ms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., parents: _Optional[_Iterable[int]] = ..., scores: _Optional[bytes] = ..., top_k: _Optional[int] = ..., level_rows: _Optional[_Iterable[int]] = ..., rows: _Optional[_Iterable[int]] = ..., logprobs: _Optional[bytes] = ..., level_compute_ms: _Optional[_Iterable[float]] = ...) -> None: ...

class DraftReleased(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DraftServiceGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DraftServiceGetInfoResponse(_message.Message):
    __slots__ = ("info", "feature_spec", "feature_width")
    INFO_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SPEC_FIELD_NUMBER: _ClassVar[int]
    FEATURE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    info: _common_pb2.WorkerInfo
    feature_spec: _common_pb2.FeatureSpec
    feature_width: int
    def __init__(self, info: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ..., feature_spec: _Optional[_Union[_common_pb2.FeatureSpec, _Mapping]] = ..., feature_width: _Optional[int] = ...) -> None: ...

class DraftServiceDrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DraftServiceDrainResponse(_message.Message):
    __slots__ = ("num_sessions",)
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    num_sessions: int
    def __init__(self, num_sessions: _Optional[int] = ...) -> None: ...
