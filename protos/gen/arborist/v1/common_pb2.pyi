from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_INT32: _ClassVar[Dtype]
    DTYPE_INT64: _ClassVar[Dtype]

class StreamLane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_LANE_UNSPECIFIED: _ClassVar[StreamLane]
    STREAM_LANE_ROUND: _ClassVar[StreamLane]
    STREAM_LANE_BULK: _ClassVar[StreamLane]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_INT32: Dtype
DTYPE_INT64: Dtype
STREAM_LANE_UNSPECIFIED: StreamLane
STREAM_LANE_ROUND: StreamLane
STREAM_LANE_BULK: StreamLane

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("epoch", "tree_id", "step")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TREE_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    tree_id: int
    step: int
    def __init__(self, epoch: _Optional[int] = ..., tree_id: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class Base(_message.Message):
    __slots__ = ("committed_length", "speculative")
    COMMITTED_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPECULATIVE_FIELD_NUMBER: _ClassVar[int]
    committed_length: int
    speculative: SpeculativeBase
    def __init__(self, committed_length: _Optional[int] = ..., speculative: _Optional[_Union[SpeculativeBase, _Mapping]] = ...) -> None: ...

class SpeculativeBase(_message.Message):
    __slots__ = ("tree_id", "node", "bonus")
    TREE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BONUS_FIELD_NUMBER: _ClassVar[int]
    tree_id: int
    node: int
    bonus: int
    def __init__(self, tree_id: _Optional[int] = ..., node: _Optional[int] = ..., bonus: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "retry_after_ms")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("protocol_version", "controller_id", "lane", "target_digest", "draft_digest")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_ID_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    TARGET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DRAFT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    controller_id: str
    lane: StreamLane
    target_digest: str
    draft_digest: str
    def __init__(self, protocol_version: _Optional[int] = ..., controller_id: _Optional[str] = ..., lane: _Optional[_Union[StreamLane, str]] = ..., target_digest: _Optional[str] = ..., draft_digest: _Optional[str] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("worker_id", "protocol_version")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    protocol_version: int
    def __init__(self, worker_id: _Optional[str] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class Prefix(_message.Message):
    __slots__ = ("scope", "tokens")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    scope: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, scope: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class FeatureSpec(_message.Message):
    __slots__ = ("final_norm", "layers", "dtype")
    FINAL_NORM_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    final_norm: FinalNormFeatures
    layers: LayerFeatures
    dtype: Dtype
    def __init__(self, final_norm: _Optional[_Union[FinalNormFeatures, _Mapping]] = ..., layers: _Optional[_Union[LayerFeatures, _Mapping]] = ..., dtype: _Optional[_Union[Dtype, str]] = ...) -> None: ...

class FinalNormFeatures(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LayerFeatures(_message.Message):
    __slots__ = ("layer_ids",)
    LAYER_IDS_FIELD_NUMBER: _ClassVar[int]
    layer_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "seed", "logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    logit_bias: _containers.ScalarMap[int, float]
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., min_tokens: _Optional[int] = ...) -> None: ...

class Grammar(_message.Message):
    __slots__ = ("json_schema",)
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    def __init__(self, json_schema: _Optional[str] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "digest", "vocab_size", "hidden_size", "num_layers", "context_length", "num_parameters", "dtype", "eos_token_ids", "embedding_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    context_length: int
    num_parameters: int
    dtype: Dtype
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    embedding_digest: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., vocab_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., context_length: _Optional[int] = ..., num_parameters: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., embedding_digest: _Optional[str] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker_id", "version", "device", "model", "kv_capacity_tokens", "kv_reserved_tokens", "num_sessions", "num_queued_rows", "draining", "row_costs", "session_ms", "keeps_features")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_RESERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ROW_COSTS_FIELD_NUMBER: _ClassVar[int]
    SESSION_MS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FEATURES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    version: str
    device: str
    model: ModelInfo
    kv_capacity_tokens: int
    kv_reserved_tokens: int
    num_sessions: int
    num_queued_rows: int
    draining: bool
    row_costs: _containers.RepeatedCompositeFieldContainer[RowCost]
    session_ms: float
    keeps_features: bool
    def __init__(self, worker_id: _Optional[str] = ..., version: _Optional[str] = ..., device: _Optional[str] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., kv_capacity_tokens: _Optional[int] = ..., kv_reserved_tokens: _Optional[int] = ..., num_sessions: _Optional[int] = ..., num_queued_rows: _Optional[int] = ..., draining: _Optional[bool] = ..., row_costs: _Optional[_Iterable[_Union[RowCost, _Mapping]]] = ..., session_ms: _Optional[float] = ..., keeps_features: _Optional[bool] = ...) -> None: ...

class RowCost(_message.Message):
    __slots__ = ("rows", "ms")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    rows: float
    ms: float
    def __init__(self, rows: _Optional[float] = ..., ms: _Optional[float] = ...) -> None: ...
