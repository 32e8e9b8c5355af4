"""What the wiring decides before Ray is asked for anything."""

from pathlib import Path

import pytest
import ray

from arborist.common.config import ArboristConfig, ConfigError, parse_config
from arborist.core.errors import MismatchError, UnavailableError
from arborist.orchestrator import app_worker
from arborist.orchestrator.app import build_app, located
from arborist.orchestrator.app_cluster import RayCluster
from arborist.orchestrator.app_membership import reachable_address
from arborist.orchestrator.app_worker import WorkerReplica
from tests.ray.conftest import PAIR


def pair(**ray: object) -> ArboristConfig:
    """The golden pair, by paths."""
    return parse_config(
        {
            "test": {
                "target": {"model": str(PAIR / "target")},
                "draft": {"model": str(PAIR / "eagle_head")},
                "ray": ray,
            }
        }
    )


def test_paths_become_absolute_and_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica works in Ray's folder, not in the one the command was given in."""
    monkeypatch.chdir(PAIR)
    values = {"target": {"model": "./target"}, "draft": {"model": "./eagle_head"}}
    config = located(parse_config({"test": {**values, "telemetry": {"trace_file": "t.jsonl"}}}))

    assert config.target.model == str(PAIR / "target")
    assert config.draft.target_model == config.target.model
    assert (config.target.name, config.draft.name) == ("target", "eagle_head")
    assert config.telemetry.trace_file == PAIR / "t.jsonl"


def test_serve_takes_plain_sections_as_arguments() -> None:
    """A Serve config file names `build_app` with our sections as args; nonsense is refused."""
    build_app(pair().model_dump())

    with pytest.raises(ConfigError, match=r"unknown key `target.prot`"):
        build_app({"target": {"prot": 1}})


def test_a_model_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """No process is asked for."""
    with pytest.raises(ConfigError, match="no such folder"):
        build_app({"target": {"model": str(tmp_path / "none")}})


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    """The message names the address and the way out."""
    config = pair(address="127.0.0.1:1").model_copy()
    controller = config.controller.model_copy(update={"http_port": 0, "grpc_port": 0})
    cluster = RayCluster(config.model_copy(update={"controller": controller}), show_logs=False)

    with pytest.raises(
        UnavailableError, match=r"no Ray cluster answers at 127.0.0.1:1 .*: check RAY"
    ):
        cluster.start()
    cluster.stop()


@pytest.mark.parametrize(
    ("bound", "advertised", "expected"),
    [
        ("127.0.0.1:9102", None, "127.0.0.1:9102"),
        ("0.0.0.0:9102", None, "10.1.2.3:9102"),
        ("[::]:9102", None, "10.1.2.3:9102"),
        ("0.0.0.0:9102", "worker-0.workers", "worker-0.workers:9102"),
    ],
)
def test_a_wildcard_is_advertised_as_the_node(
    monkeypatch: pytest.MonkeyPatch, bound: str, advertised: str | None, expected: str
) -> None:
    """Others cannot connect to a wildcard."""
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.2.3")

    assert reachable_address(bound, advertised) == expected


class FakeDirectory:
    """Keeps what is reported."""

    def __init__(self, namespace: str, lease_s: float) -> None:
        self.failures: dict[str, str] = {}

    async def report_failure(self, role: str, message: str) -> None:
        """Keeps a failure."""
        self.failures[role] = message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MismatchError("head tensor fc.weight has shape [1]"), "head tensor fc.weight has shape"),
        (TypeError("two\nlines"), "internal error (TypeError: two lines)"),
    ],
)
async def test_why_a_worker_does_not_start_is_reported(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    """Whoever waits for the deployment learns it from the directory, in one line."""
    directory = FakeDirectory("", 0)

    class FakeModule:
        @staticmethod
        async def start_worker(config: ArboristConfig) -> None:
            raise error

    monkeypatch.setattr(app_worker, "RayDirectory", lambda *_: directory)
    monkeypatch.setattr(app_worker, "import_module", lambda _: FakeModule)
    monkeypatch.setattr(app_worker, "configure_logging", lambda *_: None)
    replica = WorkerReplica.__new__(WorkerReplica)

    with pytest.raises(type(error)):
        await replica.__init__("draft", pair())  # type: ignore[misc]
    await replica.__del__()
    assert directory.failures["draft"].startswith(message)
