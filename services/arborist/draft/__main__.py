"""The draft worker as a process: `python -m arborist.draft`, or `arborist serve-draft`.

What loads torch or gRPC is imported late: their variables are set before, see threads_config.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from arborist.common.busy_clock import BusyClock
from arborist.common.config import ArboristConfig, DraftWorkerConfig, load_config
from arborist.common.threads_config import apply_thread_environment
from arborist.common.worker_main import run_main

if TYPE_CHECKING:
    from arborist.common.running_worker import RunningWorker
    from arborist.common.server import RpcServer


class DraftRole:
    """What makes a worker a draft worker."""

    name = "draft"
    service_name = "arborist.v1.DraftService"

    def settings(self, config: ArboristConfig) -> DraftWorkerConfig:
        """Returns the section `draft`."""
        return config.draft

    def load(self, config: ArboristConfig) -> Any:
        """Loads the model; blocks."""
        from arborist.draft.any_draft import load_any_draft
        from arborist.draft.run_ahead import RunAheadDraft

        settings = config.draft
        engine = load_any_draft(
            settings.resolved_model(),
            settings.resolved_target_model(),
            device=settings.device,
            dtype=settings.dtype,
            kv_capacity_tokens=settings.kv_capacity_tokens,
            revision=settings.revision,
            target_revision=settings.target_revision,
            name=settings.served_name(),
            token_ids=settings.token_ids(),
        )
        if settings.prefix_cache_tokens:
            engine.share_prefixes(settings.prefix_cache_tokens)
        return RunAheadDraft(engine) if settings.run_ahead else engine

    def rehearse(self, engine: Any, rows: int, clock: BusyClock) -> float | None:
        """Runs a forward of so many rows; returns its milliseconds."""
        from arborist.draft.rehearsal import rehearse

        return rehearse(engine, rows, clock)

    def shell(self, engine: Any, **parts: Any) -> Any:
        """Returns the shell around the engine."""
        from arborist.draft.servicer import draft_worker

        return draft_worker(engine, **parts)

    def add_servicer(self, engine: Any, worker: Any, server: RpcServer) -> None:
        """Adds DraftService."""
        from arborist.draft.servicer import DraftServicer

        servicer = DraftServicer(
            worker,
            engine.feature_spec,
            engine.feature_width,
            partial(server.set_serving, False),
        )
        servicer.add_to(server.grpc_server)


async def start_worker(config: ArboristConfig) -> RunningWorker:
    """Starts a draft worker inside the running loop; see `running_worker.start_worker`."""
    from arborist.common import running_worker

    return await running_worker.start_worker(DraftRole(), config)


def run(config: ArboristConfig) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    from arborist.common.running_worker import run_worker

    run_worker(DraftRole(), config)


def main() -> None:
    """Serves what the environment says."""
    run_main(_run_configured)


def _run_configured() -> None:
    config = load_config(None, {})
    apply_thread_environment(config.draft.num_threads)
    run(config)


if __name__ == "__main__":
    main()
