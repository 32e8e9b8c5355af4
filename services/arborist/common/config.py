"""Configuration: one YAML file, the environment (``ARBORIST_…``) and flags, in rising precedence.

The only place that reads ``ARBORIST_…`` variables. Nested fields are joined by two underscores:
``ARBORIST_TARGET__DTYPE=bfloat16`` sets ``target.dtype``. Unknown keys are refused by name.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from arborist.common.api_key import known_by_digest, split_keys
from arborist.common.default_pair import default_pair_directory
from arborist.common.vocabulary_file import read_vocabulary_file
from arborist.core.errors import ArboristError, ErrorCode
from arborist.core.policy_settings import (
    DEFAULT_MIN_FRONTIER_LOGPROB,
    LOWEST_FRONTIER_LOGPROB,
    DraftCalls,
    PolicyName,
)
from arborist.core.schema_text import MAX_SCHEMA_BYTES
from arborist.core.shape import MAX_DEPTH, MAX_NUM_DRAFT_TOKENS, MAX_TOP_K, TreeShape

ENV_PREFIX = "ARBORIST_"
API_KEY_VARIABLE = "ARBORIST_API_KEY"
"""A client's key, for commands that ask a server; no part of the configuration."""

DEFAULT_MODEL_NAME = "arborist-default"

DtypeName = Literal["float32", "bfloat16", "float16"]
TraceDetail = Literal["level", "round"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["human", "json"]
FeatureRetention = Literal["all", "last_n", "off"]

# What pays with the embedded pair on two CPU cores; on a GPU begin with the paper's 6/10/60.
_SHAPE = TreeShape(depth=3, top_k=8, num_draft_tokens=15)
_MAX_PORT = 65_535
# -1 switches an exposition off, 0 takes any free port.
Port = Annotated[int, Field(ge=0, le=_MAX_PORT)]
MetricsPort = Annotated[int, Field(ge=-1, le=_MAX_PORT)]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda:[0-9]{1,2})$")]
# In the environment and on the command line a list is written with commas.
Addresses = Annotated[tuple[str, ...], NoDecode]
ApiKeys = Annotated[tuple[str, ...], NoDecode]


class ConfigError(ArboristError):
    """The configuration cannot be used; the one-line message names key, value and limit."""

    code = ErrorCode.INVALID_ARGUMENT
    reason = "INVALID_CONFIG"


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class WorkerConfig(Section):
    """What draft and target workers have in common."""

    model: str | None = Field(
        default=None, description="Folder or hub name; unset = the embedded pair."
    )
    revision: str | None = Field(default=None, description="Revision of a hub model.")
    name: str | None = Field(
        default=None,
        min_length=1,
        description="Name it goes by; unset = last part of the model's folder or hub name.",
    )
    device: Device = Field(default="cpu", description="cpu, or cuda:N.")
    dtype: DtypeName = Field(
        default="float32", description="Element type of weights and arithmetic."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to bind.")
    advertise_host: str | None = Field(
        default=None,
        description="Address that controllers reach this worker at; unset = host, or the "
        "node's own address when host is 0.0.0.0 or ::.",
    )
    kv_capacity_tokens: int = Field(
        default=16_384, ge=16, le=1 << 31, description="KV positions of all sessions, in tokens."
    )
    prefix_cache_tokens: int = Field(
        default=4096,
        ge=0,
        le=1 << 31,
        description="KV positions kept for sessions that begin like earlier ones, such as the next "
        "turn of a chat; memory of its own, beside kv_capacity_tokens. In tokens; 0 = off.",
    )
    max_rows: int = Field(
        default=64, ge=1, le=4096, description="Most rows (sessions) of one forward."
    )
    max_sessions: int = Field(
        default=256, ge=1, le=65_536, description="Most sessions open at a time."
    )
    gather_share: float = Field(
        default=0.5,
        ge=0,
        le=4,
        description="Longest wait of a forward for sessions that were just answered, as a share of "
        "a forward's fixed time, which the worker learns; 0 = forwards wait for nobody.",
    )
    reattach_grace_s: float = Field(
        default=5.0, ge=0, le=600, description="Seconds that sessions outlive a lost stream."
    )
    num_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Compute threads on CPU; 0 = every core of this process.",
    )

    def resolved_model(self) -> str:
        """Returns the model's folder or hub name.

        Raises:
            ConfigError: A folder is named that does not exist, or there is no embedded pair.
        """
        return _resolve_model(self.model, *_MODEL_FIELDS[type(self)])

    def served_name(self) -> str:
        """Returns the name it goes by; for a target the name clients ask for."""
        if self.name is not None:
            return self.name
        if self.model is None:
            return _DEFAULT_NAMES[type(self)]
        return self.model.rstrip("/").rpartition("/")[2] or _DEFAULT_NAMES[type(self)]


class TargetWorkerConfig(WorkerConfig):
    """The target worker: the model being served."""

    port: Port = Field(default=9102, description="gRPC port; 0 = any.")
    metrics_port: MetricsPort = Field(
        default=9466, description="Prometheus port; 0 = any, -1 = off."
    )
    feature_retention: FeatureRetention = Field(
        default="all", description="Features kept beside the KV for a draft that comes back."
    )
    feature_retention_tokens: int = Field(
        default=1024, ge=1, le=1 << 20, description="Newest positions kept by last_n, in tokens."
    )
    grammar_compile_s: float = Field(
        default=0.5,
        gt=0,
        le=10,
        description="Processor time that compiling a JSON schema may take, in seconds.",
    )
    grammar_compile_bytes: int = Field(
        default=256 << 20,
        ge=1 << 20,
        le=1 << 34,
        description="Memory that compiling a JSON schema may take, in bytes.",
    )


class DraftWorkerConfig(WorkerConfig):
    """The draft worker: whatever proposes, an EAGLE head unless said."""

    target_model: str | None = Field(
        default=None,
        description="Target whose embedding and LM head, or whose tokens, are used; "
        "unset = target.model.",
    )
    target_revision: str | None = Field(default=None, description="Revision of a hub target_model.")
    vocabulary_file: Path | None = Field(
        default=None,
        description="Draft these tokens only: JSON list of ids, most frequent first (FR-Spec).",
    )
    vocabulary_size: int | None = Field(
        default=None, ge=1, description="Take so many ids of vocabulary_file; unset = all."
    )
    num_threads: int = Field(
        default=1,
        ge=0,
        le=1024,
        description="Compute threads on CPU; 0 = every core of this process. One layer gains "
        "little from a second thread, and on two cores loses more by waiting for it.",
    )
    run_ahead: bool = Field(
        default=False,
        description="Compute the next level while the newest one travels to the controller: for "
        "workers on machines of their own; where they share cores it only gets in the way.",
    )
    port: Port = Field(default=9101, description="gRPC port; 0 = any.")
    metrics_port: MetricsPort = Field(
        default=9465, description="Prometheus port; 0 = any, -1 = off."
    )

    def token_ids(self) -> list[int] | None:
        """Returns the ids to draft; None = the whole vocabulary.

        Raises:
            InvalidArgumentError: vocabulary_file is no list of ids, or too short.
        """
        if self.vocabulary_file is None:
            return None
        return read_vocabulary_file(self.vocabulary_file, self.vocabulary_size)

    def resolved_target_model(self) -> str:
        """Returns the folder or hub name of the target the draft belongs to.

        Raises:
            ConfigError: A folder is named that does not exist, or there is no embedded pair.
        """
        return _resolve_model(self.target_model, "draft.target_model", "target")


class SpeculationConfig(Section):
    """Speculation unless a request says otherwise, and how far a request may go."""

    enabled: bool = Field(default=True, description="Draft at all.")
    policy: PolicyName = Field(default="eagle2", description="How the tree is made.")
    tree_file: Path | None = Field(
        default=None,
        description="Tree of eagle1_static: JSON list of paths; unset = EAGLE-1's 25 nodes.",
    )
    min_frontier_logprob: float = Field(
        default=DEFAULT_MIN_FRONTIER_LOGPROB,
        ge=LOWEST_FRONTIER_LOGPROB,
        le=0,
        description="dynamic_depth stops when its frontier's log-probability is lower.",
    )
    adaptive: bool = Field(
        default=True,
        description="Trees of eagle2 follow the load, up to depth and num_draft_tokens: smaller "
        "where rows cost more than they bring, the root alone on a full server.",
    )
    draft_calls: DraftCalls = Field(
        default="tree",
        description="tree = one trip to the draft a round, with policies that it can follow by "
        "itself; level = a command per level.",
    )
    noise_aware: bool = Field(
        default=True,
        description="Tell the draft the noise that the target samples with, so that it drafts what "
        "will be drawn; temperature 0 has none.",
    )
    depth: int = Field(
        default=_SHAPE.depth, ge=1, le=MAX_DEPTH, description="Levels below the root."
    )
    top_k: int = Field(
        default=_SHAPE.top_k,
        ge=1,
        le=MAX_TOP_K,
        description="Frontier width and children per node.",
    )
    num_draft_tokens: int = Field(
        default=_SHAPE.num_draft_tokens,
        ge=1,
        le=MAX_NUM_DRAFT_TOKENS,
        description="Drafted nodes verified per round, root excluded.",
    )
    max_depth: int = Field(
        default=MAX_DEPTH, ge=1, le=MAX_DEPTH, description="Largest depth of a request."
    )
    max_top_k: int = Field(
        default=MAX_TOP_K, ge=1, le=MAX_TOP_K, description="Largest top_k of a request."
    )
    max_num_draft_tokens: int = Field(
        default=MAX_NUM_DRAFT_TOKENS,
        ge=1,
        le=MAX_NUM_DRAFT_TOKENS,
        description="Largest num_draft_tokens of a request.",
    )

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> SpeculationConfig:
        for name in ("depth", "top_k", "num_draft_tokens"):
            value, limit = getattr(self, name), getattr(self, f"max_{name}")
            if value > limit:
                raise ValueError(f"{name} = {value}: must be at most max_{name} = {limit}")
        return self

    def shape(self) -> TreeShape:
        """Returns the default tree."""
        return TreeShape(self.depth, self.top_k, self.num_draft_tokens)


class ControllerConfig(Section):
    """The controller: public API, sessions, deadlines."""

    grpc_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address of the gRPC API."
    )
    grpc_port: Port = Field(default=9000, description="Port of the gRPC API; 0 = any.")
    http_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address of the HTTP API."
    )
    http_port: Port = Field(default=8000, description="Port of the HTTP API; 0 = any.")
    metrics_port: MetricsPort = Field(
        default=9464, description="Prometheus port; 0 = any, -1 = off."
    )
    target_addresses: Addresses = Field(default=(), description="Fixed target workers, host:port.")
    draft_addresses: Addresses = Field(default=(), description="Fixed draft workers, host:port.")
    max_sessions: int = Field(
        default=64, ge=1, le=65_536, description="Most requests decoded at a time."
    )
    max_queued_requests: int = Field(
        default=256,
        ge=0,
        le=65_536,
        description="Most requests waiting; more are RESOURCE_EXHAUSTED.",
    )
    max_requests_per_key: int = Field(
        default=0,
        ge=0,
        le=65_536,
        description="Most requests of one client, running and waiting together; 0 = no bound. A "
        "client is the name of its API key; where none are configured its `authorization` or "
        "`x-api-key`, else its address.",
    )
    api_keys: ApiKeys = Field(
        default=(),
        description="Keys that clients may send, or their sha256:HEX; only digests are kept. With "
        "these or api_keys_file every request needs a key, but for health and metrics.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File of further keys: NAME sha256:HEX [EXPIRES] a line, as `arborist "
        "create-key` writes it; read again within seconds when it changes.",
    )
    prefill_chunk_tokens: int = Field(
        default=256, ge=1, le=65_536, description="Prompt tokens of one prefill command."
    )
    draft_deadline_floor_ms: int = Field(
        default=250,
        ge=1,
        le=600_000,
        description="Least deadline of a draft command, in milliseconds.",
    )
    target_deadline_floor_ms: int = Field(
        default=1000,
        ge=1,
        le=600_000,
        description="Least deadline of a target command, in milliseconds.",
    )
    prefill_deadline_ms_per_token: float = Field(
        default=50.0,
        gt=0,
        le=60_000,
        description="Added to the target's floor per prefilled token, in milliseconds.",
    )
    max_prompt_tokens: int = Field(default=131_072, ge=1, le=1 << 24, description="Longest prompt.")
    max_max_tokens: int = Field(
        default=131_072, ge=1, le=1 << 24, description="Largest max_tokens."
    )
    default_max_tokens: int = Field(
        default=256, ge=1, le=1 << 24, description="max_tokens when unset."
    )
    max_stop_strings: int = Field(
        default=4, ge=0, le=64, description="Most stop strings of a request."
    )
    max_stop_bytes: int = Field(
        default=64, ge=1, le=4096, description="Longest stop string, in UTF-8 bytes."
    )
    max_n: int = Field(
        default=4, ge=1, le=128, description="Largest n: outputs of one prompt of an HTTP request."
    )
    max_prompts: int = Field(
        default=32, ge=1, le=1024, description="Most prompts of one HTTP request."
    )
    max_request_bytes: int = Field(
        default=1 << 20,
        ge=1 << 14,
        le=1 << 28,
        description="Longest HTTP body or public gRPC message, in bytes; more is not read.",
    )
    max_metadata_bytes: int = Field(
        default=8192,
        ge=1024,
        le=1 << 20,
        description="Longest HTTP headers or gRPC metadata of a request, names and values, in "
        "bytes.",
    )
    client_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="Seconds for an HTTP body to arrive, and for a client to take each part of "
        "its answer; after that the request is ended.",
    )
    max_schema_bytes: int = Field(
        default=MAX_SCHEMA_BYTES,
        ge=1,
        le=MAX_SCHEMA_BYTES,
        description="Longest JSON schema, in UTF-8 bytes.",
    )
    max_schema_depth: int = Field(
        default=64, ge=1, le=100, description="Deepest nesting of a JSON schema, in brackets."
    )
    stop_grace_s: float = Field(
        default=5.0,
        ge=0,
        le=600,
        description="Seconds that running requests get when the server stops.",
    )
    status_period_s: float = Field(
        default=10.0, gt=0, le=3600, description="Seconds between status lines in the log."
    )

    @field_validator("target_addresses", "draft_addresses", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return (
            [one.strip() for one in value.split(",") if one.strip()]
            if isinstance(value, str)
            else value
        )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _keep_digests(cls, value: object) -> object:
        """Keeps what identifies a key; no message repeats one."""
        if isinstance(value, str):
            value = split_keys(value)
            if not value:  # A secret that did not arrive must not leave the server open.
                raise ValueError("has no key: must have at least 1, or be left out to ask for none")
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
            raise ValueError("must be a list of texts")
        return tuple(known_by_digest(one) for one in value)

    @field_validator("target_addresses", "draft_addresses")
    @classmethod
    def _have_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 1 <= int(port) <= _MAX_PORT:
                raise ValueError(f"{address}: must be host:port with a port in [1, {_MAX_PORT}]")
        return value


class TelemetryConfig(Section):
    """Traces and logs. Where traces go is said by the standard ``OTEL_…`` variables."""

    service_name: str | None = Field(
        default=None, description="service.name; unset = OTEL_SERVICE_NAME, or arborist-<role>."
    )
    trace_file: Path | None = Field(
        default=None, description="JSON lines of spans are appended here."
    )
    trace_detail: TraceDetail = Field(
        default="level", description="level = a span per draft level; round = levels as attributes."
    )
    text_in_spans: bool = Field(default=False, description="Put prompt and output text into spans.")
    max_queue_spans: int = Field(
        default=65_536,
        ge=1,
        le=1 << 24,
        description="Spans waiting for export; more are counted, dropped.",
    )
    log_level: LogLevel = Field(default="info", description="Least severe log line written.")
    log_format: LogFormat = Field(
        default="human", description="human, or json: one object per line."
    )


class RayConfig(Section):
    """Placement by Ray Serve; without meaning for bare processes."""

    address: str | None = Field(
        default=None, description="Cluster to join; unset = RAY_ADDRESS, or a local one of our own."
    )
    namespace: str = Field(
        default="arborist", min_length=1, description="Namespace of the directory."
    )
    app_name: str = Field(
        default="arborist", min_length=1, description="Name of the Serve application."
    )
    route_prefix: str = Field(
        default="/", pattern=r"^/", description="Where Serve mounts the HTTP API."
    )
    num_cpus: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Logical CPUs of a local Ray; unset = what it finds.",
    )
    object_store_memory_bytes: int = Field(
        default=100 << 20,
        ge=80 << 20,
        le=1 << 40,
        description="Object store of a local Ray, in bytes.",
    )
    num_controllers: int = Field(default=1, ge=1, le=1024, description="Controller replicas.")
    num_drafts: int = Field(default=1, ge=0, le=1024, description="Draft worker replicas.")
    num_targets: int = Field(default=1, ge=1, le=1024, description="Target worker replicas.")
    controller_num_cpus: float = Field(
        default=0.1, ge=0, le=1024, description="Logical CPUs reserved per controller."
    )
    worker_num_cpus: float = Field(
        default=0.1,
        ge=0,
        le=1024,
        description="Logical CPUs reserved per worker; a cuda device adds a GPU.",
    )
    lease_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Seconds after which a silent worker leaves the directory.",
    )
    renew_period_s: float = Field(
        default=1.0,
        gt=0,
        le=600,
        description="Seconds between a worker's renewals and a controller's reads.",
    )
    ready_timeout_s: float = Field(
        default=300.0, gt=0, le=86_400, description="Seconds until everything must be ready."
    )


_MODEL_FIELDS: dict[type[WorkerConfig], tuple[str, str]] = {
    TargetWorkerConfig: ("target.model", "target"),
    DraftWorkerConfig: ("draft.model", "head"),
}
_DEFAULT_NAMES: dict[type[WorkerConfig], str] = {
    TargetWorkerConfig: DEFAULT_MODEL_NAME,
    DraftWorkerConfig: f"{DEFAULT_MODEL_NAME}-head",
}


class ArboristConfig(BaseSettings):
    """Everything that can be set. Built by `load_config`; direct use reads no environment."""

    model_config = SettingsConfigDict(
        extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    target: TargetWorkerConfig = TargetWorkerConfig()
    draft: DraftWorkerConfig = DraftWorkerConfig()
    controller: ControllerConfig = ControllerConfig()
    speculation: SpeculationConfig = SpeculationConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    ray: RayConfig = RayConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Takes only what the constructor is given: `load_config` merges the sources."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _share_target_with_draft(cls, values: object) -> object:
        """A draft belongs to the target of the same file unless it names another."""
        if not isinstance(values, dict):
            return values
        target, draft = values.get("target"), values.get("draft", {})
        if isinstance(target, dict) and isinstance(draft, dict) and "target_model" not in draft:
            shared = {
                f"target_{name}": target[name] for name in ("model", "revision") if name in target
            }
            return {**values, "draft": {**shared, **draft}}
        return values


def load_config(
    path: Path | None = None, flags: Mapping[str, object] | None = None
) -> ArboristConfig:
    """Reads the configuration: defaults, then the file, then the environment, then flags.

    Args:
        path: YAML file; None = none.
        flags: Dotted key → value, such as ``{"target.port": 9102}``; None values are left out.

    Returns:
        The configuration, every value checked.

    Raises:
        ConfigError: Unreadable file, unknown key, or a value out of its range.
    """
    layers = {
        "environment": _read_environment(),
        "command line": _nest(flags or {}),
    }
    if path is not None:
        layers = {str(path): _read_yaml(path), **layers}
    return parse_config(layers)


def parse_config(layers: Mapping[str, Mapping[str, object]]) -> ArboristConfig:
    """Checks values that were read already, such as the ``args`` of a Serve config file.

    Args:
        layers: Where values come from → section → key → value; later layers win.

    Raises:
        ConfigError: Unknown key, or a value out of its range.
    """
    values: dict[str, object] = {}
    for layer in layers.values():
        _merge(values, layer)
    try:
        return ArboristConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error, layers)) from None


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist: check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"config file {path}{line}: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path}: must hold sections such as `target:`")
    return values


def _read_environment() -> dict[str, object]:
    sections = {name.lower() for name in ArboristConfig.model_fields}
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX) and name != API_KEY_VARIABLE:
            section = name[len(ENV_PREFIX) :].lower().partition("__")[0]
            if section not in sections:
                raise ConfigError(
                    f"environment variable {name}: no section `{section}`{_hint(section, sections)}"
                )
    try:
        return dict(EnvSettingsSource(ArboristConfig)())
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from None


def _nest(flags: Mapping[str, object]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in flags.items():
        if value is not None:
            section, _, name = key.partition(".")
            _merge(values, {section: {name: value}})
    return values


def _merge(into: dict[str, object], values: Mapping[str, object]) -> None:
    for key, value in values.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _one_line(error: ValidationError, layers: Mapping[str, Mapping[str, object]]) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    sources = [name for name, layer in layers.items() if _holds(layer, path)]
    where = f"{sources[-1]}: " if sources else ""
    if first["type"] == "extra_forbidden":
        return f"{where}unknown key `{key}`{_hint(path[-1], _siblings(path))}"
    message = first["msg"].removeprefix("Value error, ")
    limit = message.replace("Input should be", "must be", 1)
    if first["type"] == "string_pattern_mismatch":
        limit = f"must match {first['ctx']['pattern']}"
    if first["type"] == "value_error":
        return f"{where}{key}: {limit}"
    return f"{where}{key} = {first['input']}: {limit}"


def _holds(layer: object, path: list[str]) -> bool:
    """Says whether a layer set the key; positions inside a list belong to the list."""
    for part in path[:2]:
        if not isinstance(layer, Mapping) or part not in layer:
            return False
        layer = layer[part]
    return True


def _siblings(path: list[str]) -> set[str]:
    if len(path) == 1:
        return set(ArboristConfig.model_fields)
    field = ArboristConfig.model_fields.get(path[0])
    section = field.annotation if field else None
    if isinstance(section, type) and issubclass(section, BaseModel):
        return set(section.model_fields)
    return set()


def _hint(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(known))}"


def _resolve_model(model: str | None, field: str, part: str) -> str:
    if model is None:
        try:
            return str(default_pair_directory() / part)
        except FileNotFoundError as error:
            raise ConfigError(f"{field}: {error}") from None
    path = Path(model).expanduser()
    if path.exists():
        return str(path)
    # A hub name is `owner/name`; whatever looks like a path must exist.
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise ConfigError(
            f"{field} = {model}: no such folder; give a folder with config.json and "
            "*.safetensors, or a hub name"
        )
    return model
