"""One configuration from file, environment and flags; whatever is wrong is one line."""

from hashlib import sha256
from pathlib import Path

import pytest

from arborist.common.config import ConfigError, load_config, parse_config


@pytest.fixture
def file(tmp_path: Path):
    """Writes a configuration file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "arborist.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_are_the_documented_ports() -> None:
    """Nothing given is the local setting of the design."""
    config = load_config()

    assert (config.controller.grpc_port, config.controller.http_port) == (9000, 8000)
    assert (config.draft.port, config.target.port) == (9101, 9102)
    metrics = [one.metrics_port for one in (config.controller, config.draft, config.target)]
    assert metrics == [9464, 9465, 9466]
    assert config.controller.grpc_host == config.target.host == "127.0.0.1"


def test_flags_win_over_the_environment_over_the_file(file, monkeypatch) -> None:
    """Each source overrides single keys of the one before it."""
    path = file("target: {port: 1, max_rows: 1, max_sessions: 1, kv_capacity_tokens: 100}")
    monkeypatch.setenv("ARBORIST_TARGET__MAX_ROWS", "2")
    monkeypatch.setenv("ARBORIST_TARGET__MAX_SESSIONS", "2")
    target = load_config(path, {"target.max_sessions": 3, "target.port": None}).target

    assert (target.port, target.max_rows, target.max_sessions) == (1, 2, 3)
    assert target.kv_capacity_tokens == 100


def test_building_a_configuration_reads_no_environment(monkeypatch) -> None:
    """Only load_config looks at the environment."""
    monkeypatch.setenv("ARBORIST_TARGET__PORT", "5")

    assert parse_config({"test": {}}).target.port == 9102


def test_lists_are_written_with_commas_outside_yaml(file, monkeypatch) -> None:
    """Addresses come as a YAML list or as one text."""
    path = file("controller: {target_addresses: ['a:1', 'b:2']}")
    monkeypatch.setenv("ARBORIST_CONTROLLER__DRAFT_ADDRESSES", "c:3, d:4")
    controller = load_config(path).controller

    assert controller.target_addresses == ("a:1", "b:2")
    assert controller.draft_addresses == ("c:3", "d:4")


def test_api_keys_are_kept_as_digests(monkeypatch) -> None:
    """Whatever is shown, logged or sent to other processes of it can open no door."""
    key, digest = "a-key-of-16-chars", f"sha256:{'0' * 64}"
    monkeypatch.setenv("ARBORIST_CONTROLLER__API_KEYS", f"{key}, {digest}")
    controller = load_config().controller

    assert controller.api_keys == (f"sha256:{sha256(key.encode()).hexdigest()}", digest)
    assert key not in repr(controller)


@pytest.mark.parametrize("keys", ["short-secret", ["short-secret"], ["schlüssel-schlüssel"], [17]])
def test_a_bad_api_key_is_not_repeated(keys: object) -> None:
    """The message says what a key must be, not what it was."""
    with pytest.raises(ConfigError, match=r"controller\.api_keys: .*must") as caught:
        parse_config({"test": {"controller": {"api_keys": keys}}})

    for part in ("secret", "schl", "17"):
        assert part not in caught.value.message


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_an_empty_list_of_keys_leaves_no_server_open(monkeypatch, text: str) -> None:
    """A secret that did not arrive is refused at start; only what was never given asks for none."""
    monkeypatch.setenv("ARBORIST_CONTROLLER__API_KEYS", text)

    with pytest.raises(ConfigError, match=r"environment: controller\.api_keys: .*at least 1"):
        load_config()


def test_a_configuration_that_asks_for_no_key_reads_as_it_was_written() -> None:
    """Ray Serve hands it on as plain sections."""
    plain = load_config().model_dump()

    assert parse_config({"args": plain}) == load_config()


def test_the_key_of_a_client_is_no_setting(monkeypatch) -> None:
    """A server started where a client's key is set starts as ever."""
    monkeypatch.setenv("ARBORIST_API_KEY", "a-key-of-16-chars")

    assert load_config() == parse_config({"test": {}})


def test_the_draft_belongs_to_the_target_of_the_same_file(file) -> None:
    """A target given once is also where the draft takes embedding and LM head from."""
    shared = load_config(file("target: {model: org/name, revision: r1}"))
    own = load_config(file("target: {model: org/name}\ndraft: {target_model: org/other}"))

    assert (shared.draft.target_model, shared.draft.target_revision) == ("org/name", "r1")
    assert own.draft.target_model == "org/other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: {prot: 1}", r"arborist.yaml: unknown key `target.prot`; did you mean `port`\?"),
        ("targets: {}", r"unknown key `targets`; did you mean `target`\?"),
        ("target: {port: 70000}", r"target.port = 70000: must be less than or equal to 65535"),
        ("target: {port: -1}", r"target.port = -1: must be greater than or equal to 0"),
        ("target: {device: gpu}", r"target.device = gpu: must match"),
        ("target: {dtype: fp32}", r"target.dtype = fp32: must be 'float32', 'bfloat16'"),
        ("draft: {kv_capacity_tokens: many}", r"draft.kv_capacity_tokens = many: must be a valid"),
        ("speculation: {depth: 17}", r"speculation.depth = 17: must be less than or equal to 16"),
        ("speculation: {max_top_k: 4}", r"top_k = 8: must be at most max_top_k = 4"),
        ("controller: {target_addresses: [a]}", r"controller.target_addresses: a: must be host:po"),
        ("controller: {draft_addresses: 'a:0'}", r"a:0: must be host:port"),
        ("- 1", r"must hold sections"),
        ("target: [}", r"arborist.yaml line 1: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(file, text: str, message: str) -> None:
    """The message names file, key, value and limit."""
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file(text))

    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ARBORIST_TARGET__PROT", "1", "environment: unknown key `target.prot`"),
        ("ARBORIST_TARGET__PORT", "x", "environment: target.port = x: "),
        ("ARBORIST_TARGETS__PORT", "1", "environment variable ARBORIST_TARGETS__PORT: no section"),
        ("ARBORIST_PORT", "1", "environment variable ARBORIST_PORT: no section"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(monkeypatch, name, value, message) -> None:
    """A typing mistake in a variable is an error, not a default."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=message):
        load_config()


def test_a_wrong_flag_is_not_blamed_on_the_file(file) -> None:
    """The message says where the value came from."""
    with pytest.raises(ConfigError, match=r"^command line: target.port = 99999"):
        load_config(file("target: {port: 1}"), {"target.port": 99999})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path and the flag to check are in the message."""
    with pytest.raises(ConfigError, match=r"nowhere.yaml does not exist: check --config"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    """A path that does not exist is refused before anything is loaded."""
    config = load_config(flags={"target.model": str(tmp_path / "none")})

    with pytest.raises(ConfigError, match=r"^target.model = .*none: no such folder; give"):
        config.target.resolved_model()
    with pytest.raises(ConfigError, match=r"^draft.target_model = .*none: no such folder"):
        config.draft.resolved_target_model()


def test_models_are_folders_or_hub_names(tmp_path: Path) -> None:
    """A folder is used as it is, anything else of the form owner/name is left to the hub."""
    folder = load_config(flags={"target.model": str(tmp_path)}).target
    hub = load_config(flags={"target.model": "org/tiny"}).target

    assert (folder.resolved_model(), folder.served_name()) == (str(tmp_path), tmp_path.name)
    assert (hub.resolved_model(), hub.served_name()) == ("org/tiny", "tiny")
    assert load_config().target.served_name() == "arborist-default"
    assert load_config().draft.served_name() == "arborist-default-head"
