from arborist.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TargetServiceConnectRequest(_message.Message):
    __slots__ = ("attach", "commands")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    attach: _common_pb2.Attach
    commands: TargetCommands
    def __init__(self, attach: _Optional[_Union[_common_pb2.Attach, _Mapping]] = ..., commands: _Optional[_Union[TargetCommands, _Mapping]] = ...) -> None: ...

class TargetCommands(_message.Message):
    __slots__ = ("commands",)
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[TargetCommand]
    def __init__(self, commands: _Optional[_Iterable[_Union[TargetCommand, _Mapping]]] = ...) -> None: ...

class TargetCommand(_message.Message):
    __slots__ = ("command_id", "session_id", "stamp", "traceparent", "open", "prefill", "verify", "read_features", "release")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    READ_FEATURES_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    session_id: str
    stamp: _common_pb2.Stamp
    traceparent: str
    open: TargetOpen
    prefill: Prefill
    verify: Verify
    read_features: ReadFeatures
    release: TargetRelease
    def __init__(self, command_id: _Optional[int] = ..., session_id: _Optional[str] = ..., stamp: _Optional[_Union[_common_pb2.Stamp, _Mapping]] = ..., traceparent: _Optional[str] = ..., open: _Optional[_Union[TargetOpen, _Mapping]] = ..., prefill: _Optional[_Union[Prefill, _Mapping]] = ..., verify: _Optional[_Union[Verify, _Mapping]] = ..., read_features: _Optional[_Union[ReadFeatures, _Mapping]] = ..., release: _Optional[_Union[TargetRelease, _Mapping]] = ...) -> None: ...

class TargetOpen(_message.Message):
    __slots__ = ("epoch", "feature_spec", "sampling", "grammar", "max_length", "max_draft_tokens", "prompt_length", "end_token_ids", "prefix")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SPEC_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    feature_spec: _common_pb2.FeatureSpec
    sampling: _common_pb2.SamplingParams
    grammar: _common_pb2.Grammar
    max_length: int
    max_draft_tokens: int
    prompt_length: int
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    prefix: _common_pb2.Prefix
    def __init__(self, epoch: _Optional[int] = ..., feature_spec: _Optional[_Union[_common_pb2.FeatureSpec, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., grammar: _Optional[_Union[_common_pb2.Grammar, _Mapping]] = ..., max_length: _Optional[int] = ..., max_draft_tokens: _Optional[int] = ..., prompt_length: _Optional[int] = ..., end_token_ids: _Optional[_Iterable[int]] = ..., prefix: _Optional[_Union[_common_pb2.Prefix, _Mapping]] = ...) -> None: ...

class Prefill(_message.Message):
    __slots__ = ("begin", "tokens", "last", "want_features", "want_logprobs", "num_logprobs")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    WANT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    WANT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    begin: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    last: bool
    want_features: bool
    want_logprobs: bool
    num_logprobs: int
    def __init__(self, begin: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., last: _Optional[bool] = ..., want_features: _Optional[bool] = ..., want_logprobs: _Optional[bool] = ..., num_logprobs: _Optional[int] = ...) -> None: ...

class Verify(_message.Message):
    __slots__ = ("base", "root", "tokens", "parent_indices", "want_features", "want_node_tokens", "num_logprobs", "want_logprobs")
    BASE_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARENT_INDICES_FIELD_NUMBER: _ClassVar[int]
    WANT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    WANT_NODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    WANT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    base: _common_pb2.Base
    root: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    parent_indices: _containers.RepeatedScalarFieldContainer[int]
    want_features: bool
    want_node_tokens: bool
    num_logprobs: int
    want_logprobs: bool
    def __init__(self, base: _Optional[_Union[_common_pb2.Base, _Mapping]] = ..., root: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., parent_indices: _Optional[_Iterable[int]] = ..., want_features: _Optional[bool] = ..., want_node_tokens: _Optional[bool] = ..., num_logprobs: _Optional[int] = ..., want_logprobs: _Optional[bool] = ...) -> None: ...

class ReadFeatures(_message.Message):
    __slots__ = ("begin", "end")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    begin: int
    end: int
    def __init__(self, begin: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class TargetRelease(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetServiceConnectResponse(_message.Message):
    __slots__ = ("attached", "results")
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    attached: _common_pb2.Attached
    results: TargetResults
    def __init__(self, attached: _Optional[_Union[_common_pb2.Attached, _Mapping]] = ..., results: _Optional[_Union[TargetResults, _Mapping]] = ...) -> None: ...

class TargetResults(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[TargetResult]
    def __init__(self, results: _Optional[_Iterable[_Union[TargetResult, _Mapping]]] = ...) -> None: ...

class TargetResult(_message.Message):
    __slots__ = ("command_id", "queue_ms", "compute_ms", "more", "opened", "prefill", "verify", "features", "released", "error")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    queue_ms: float
    compute_ms: float
    more: bool
    opened: TargetOpened
    prefill: PrefillResult
    verify: VerifyResult
    features: ReadFeaturesResult
    released: TargetReleased
    error: _common_pb2.Error
    def __init__(self, command_id: _Optional[int] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., more: _Optional[bool] = ..., opened: _Optional[_Union[TargetOpened, _Mapping]] = ..., prefill: _Optional[_Union[PrefillResult, _Mapping]] = ..., verify: _Optional[_Union[VerifyResult, _Mapping]] = ..., features: _Optional[_Union[ReadFeaturesResult, _Mapping]] = ..., released: _Optional[_Union[TargetReleased, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...

class TargetOpened(_message.Message):
    __slots__ = ("reserved_tokens", "reused_tokens")
    RESERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    reserved_tokens: int
    reused_tokens: int
    def __init__(self, reserved_tokens: _Optional[int] = ..., reused_tokens: _Optional[int] = ...) -> None: ...

class PrefillResult(_message.Message):
    __slots__ = ("begin", "features", "root", "root_logprobs")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ROOT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    begin: int
    features: _common_pb2.Tensor
    root: int
    root_logprobs: TokenLogprobs
    def __init__(self, begin: _Optional[int] = ..., features: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., root: _Optional[int] = ..., root_logprobs: _Optional[_Union[TokenLogprobs, _Mapping]] = ...) -> None: ...

class VerifyResult(_message.Message):
    __slots__ = ("accepted_nodes", "bonus", "features", "node_tokens", "logprobs", "min_margin")
    ACCEPTED_NODES_FIELD_NUMBER: _ClassVar[int]
    BONUS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MIN_MARGIN_FIELD_NUMBER: _ClassVar[int]
    accepted_nodes: _containers.RepeatedScalarFieldContainer[int]
    bonus: int
    features: _common_pb2.Tensor
    node_tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    min_margin: float
    def __init__(self, accepted_nodes: _Optional[_Iterable[int]] = ..., bonus: _Optional[int] = ..., features: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., node_tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., min_margin: _Optional[float] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("token_ids", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: bytes
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[bytes] = ...) -> None: ...

class ReadFeaturesResult(_message.Message):
    __slots__ = ("begin", "features")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    begin: int
    features: _common_pb2.Tensor
    def __init__(self, begin: _Optional[int] = ..., features: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ...) -> None: ...

class TargetReleased(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetServiceGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetServiceGetInfoResponse(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: _common_pb2.WorkerInfo
    def __init__(self, info: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ...) -> None: ...

class TargetServiceDrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetServiceDrainResponse(_message.Message):
    __slots__ = ("num_sessions",)
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    num_sessions: int
    def __init__(self, num_sessions: _Optional[int] = ...) -> None: ...

class TargetServiceFindPrefixRequest(_message.Message):
    __slots__ = ("prefix",)
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: _common_pb2.Prefix
    def __init__(self, prefix: _Optional[_Union[_common_pb2.Prefix, _Mapping]] = ...) -> None: ...

class TargetServiceFindPrefixResponse(_message.Message):
    __slots__ = ("known_tokens",)
    KNOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    known_tokens: int
    def __init__(self, known_tokens: _Optional[int] = ...) -> None: ...
