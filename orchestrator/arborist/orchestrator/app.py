"""The Ray Serve application: where a deployment's processes are, and how each one is started.

Ray places, restarts and rolls; it carries the HTTP API and nothing of a round. `build_app` is what
a Serve config file names: ``import_path: arborist.orchestrator.app:build_app`` with the sections of
our configuration as ``args``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from arborist.common.config import ArboristConfig, WorkerConfig, parse_config
from arborist.common.threads_config import thread_environment
from arborist.orchestrator.app_controller import ControllerReplica
from arborist.orchestrator.app_worker import WorkerReplica
from arborist.orchestrator.ray_config import forwarded_environment

# Calls that Serve may pass to one HTTP replica at a time: our own admission is what bounds them.
_MAX_HTTP_CALLS = 10_000
_MAX_START_ATTEMPTS = 3
_HEALTH_PERIOD_S = 2.0
_DRAIN_POLL_S = 0.1
# On top of the grace that running requests get: closing streams, flushing spans.
_STOP_MARGIN_S = 3.0


def build_app(args: ArboristConfig | Mapping[str, Any]) -> Application:
    """Builds the application of one controller, draft and target deployment.

    Args:
        args: The configuration, or its sections as plain values.

    Returns:
        What `ray.serve.run` takes.

    Raises:
        ConfigError: Unknown key, a value out of its range, or a model folder that does not exist.
    """
    config = args if isinstance(args, ArboristConfig) else parse_config({"args": args})
    config = located(config)
    workers = [_worker("target", "TargetWorker", config, config.target, config.ray.num_targets)]
    if config.ray.num_drafts:
        workers.append(_worker("draft", "DraftWorker", config, config.draft, config.ray.num_drafts))
    controller = serve.deployment(serve.ingress()(ControllerReplica)).options(
        name="Controller",
        num_replicas=config.ray.num_controllers,
        max_ongoing_requests=_MAX_HTTP_CALLS,
        # It computes nothing: one thread, and no GPU.
        ray_actor_options=_actor_options(config.ray.controller_num_cpus, "cpu", num_threads=1),
        **_common_options(config),
    )
    # The handles carry no calls: they tell Serve to stop the workers after the controller.
    return controller.bind(config, *workers)


def located(config: ArboristConfig) -> ArboristConfig:
    """Returns the configuration with absolute paths: a replica's working folder is Ray's.

    Raises:
        ConfigError: A model folder does not exist.
    """
    target = _absolute(config.target.resolved_model())
    draft = config.draft.model_copy(
        update={
            "model": _absolute(config.draft.resolved_model())
            if config.ray.num_drafts
            else config.draft.model,
            "target_model": _absolute(config.draft.resolved_target_model()),
            "name": config.draft.served_name(),
            "vocabulary_file": config.draft.vocabulary_file
            and config.draft.vocabulary_file.absolute(),
        }
    )
    trace_file, tree_file = config.telemetry.trace_file, config.speculation.tree_file
    keys_file = config.controller.api_keys_file
    return config.model_copy(
        update={
            # The name is decided before the embedded pair becomes a path like any other.
            "target": config.target.model_copy(
                update={"model": target, "name": config.target.served_name()}
            ),
            "draft": draft,
            "controller": config.controller.model_copy(
                update={"api_keys_file": keys_file and keys_file.absolute()}
            ),
            "telemetry": config.telemetry.model_copy(
                update={"trace_file": trace_file and trace_file.absolute()}
            ),
            "speculation": config.speculation.model_copy(
                update={"tree_file": tree_file and tree_file.absolute()}
            ),
        }
    )


def _worker(
    role: str, name: str, config: ArboristConfig, worker: WorkerConfig, num_replicas: int
) -> Application:
    return (
        serve.deployment(WorkerReplica)
        .options(
            name=name,
            num_replicas=num_replicas,
            ray_actor_options=_actor_options(
                config.ray.worker_num_cpus, worker.device, worker.num_threads
            ),
            **_common_options(config),
        )
        .bind(role, config)
    )


def _common_options(config: ArboristConfig) -> dict[str, Any]:
    return {
        "graceful_shutdown_wait_loop_s": _DRAIN_POLL_S,
        "graceful_shutdown_timeout_s": config.controller.stop_grace_s + _STOP_MARGIN_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "max_constructor_retry_count": _MAX_START_ATTEMPTS,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }


def _actor_options(num_cpus: float, device: str, num_threads: int) -> dict[str, Any]:
    # Ray sets OMP_NUM_THREADS to the CPUs it reserved unless it is given.
    variables = {**forwarded_environment(), **thread_environment(num_threads)}
    options: dict[str, Any] = {"num_cpus": num_cpus, "runtime_env": {"env_vars": variables}}
    if device != "cpu":
        options["num_gpus"] = 1
    return options


def _absolute(model: str) -> str:
    path = Path(model)
    return str(path.absolute()) if path.exists() else model
