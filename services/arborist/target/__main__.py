"""The target worker as a process: `python -m arborist.target`, or `arborist serve-target`.

What loads torch or gRPC is imported late: their variables are set before, see threads_config.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from arborist.common.busy_clock import BusyClock
from arborist.common.config import ArboristConfig, TargetWorkerConfig, load_config
from arborist.common.threads_config import apply_thread_environment
from arborist.common.worker_main import run_main

if TYPE_CHECKING:
    from arborist.common.running_worker import RunningWorker
    from arborist.common.server import RpcServer


class TargetRole:
    """What makes a worker a target worker."""

    name = "target"
    service_name = "arborist.v1.TargetService"

    def settings(self, config: ArboristConfig) -> TargetWorkerConfig:
        """Returns the section `target`."""
        return config.target

    def load(self, config: ArboristConfig) -> Any:
        """Loads the model; blocks."""
        from arborist.target.engine import load_target
        from arborist.target.grammar_compiler import GrammarLimits

        settings = config.target
        retention = settings.feature_retention
        return load_target(
            settings.resolved_model(),
            device=settings.device,
            dtype=settings.dtype,
            kv_capacity_tokens=settings.kv_capacity_tokens,
            feature_retention=(
                settings.feature_retention_tokens if retention == "last_n" else retention
            ),
            prefix_cache_tokens=settings.prefix_cache_tokens,
            revision=settings.revision,
            name=settings.served_name(),
            grammar_limits=GrammarLimits(
                settings.grammar_compile_s, settings.grammar_compile_bytes
            ),
        )

    def rehearse(self, engine: Any, rows: int, clock: BusyClock) -> float | None:
        """Runs a forward of so many rows; returns its milliseconds."""
        from arborist.target.rehearsal import rehearse

        return rehearse(engine, rows, clock)

    def shell(self, engine: Any, **parts: Any) -> Any:
        """Returns the shell around the engine."""
        from arborist.target.servicer import target_worker

        return target_worker(engine, **parts)

    def add_servicer(self, engine: Any, worker: Any, server: RpcServer) -> None:
        """Adds TargetService."""
        from arborist.target.servicer import TargetServicer

        servicer = TargetServicer(worker, partial(server.set_serving, False))
        servicer.add_to(server.grpc_server)


async def start_worker(config: ArboristConfig) -> RunningWorker:
    """Starts a target worker inside the running loop; see `running_worker.start_worker`."""
    from arborist.common import running_worker

    return await running_worker.start_worker(TargetRole(), config)


def run(config: ArboristConfig) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    from arborist.common.running_worker import run_worker

    run_worker(TargetRole(), config)


def main() -> None:
    """Serves what the environment says."""
    run_main(_run_configured)


def _run_configured() -> None:
    config = load_config(None, {})
    apply_thread_environment(config.target.num_threads)
    run(config)


if __name__ == "__main__":
    main()
