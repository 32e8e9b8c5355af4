"""Worker processes of a benchmark: one target, and a draft of every kind that a mode asks."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from arborist.cli.bench.draft_kinds import DraftKind
from arborist.cli.worker_process import WorkerProcess
from arborist.core.errors import UnavailableError
from arborist.orchestrator.directory import FixedDirectory
from arborist.orchestrator.links import WorkerPool
from arborist.orchestrator.worker_pool import GrpcWorkerPool, SessionWorkers

if TYPE_CHECKING:
    from arborist.cli.bench.contest import BenchSettings

_START_S = 120.0
_STOP_S = 10.0


class BenchWorkers:
    """Starts workers when a mode first asks for them; idle ones sleep and cost the others nothing.

    Every kind of draft is reached by a pool of its own, so that no session gets another's.
    """

    def __init__(
        self, settings: BenchSettings, trace_file: Path | None, stack: AsyncExitStack
    ) -> None:
        """Prepares; nothing runs yet.

        Args:
            settings: Models, device, dtype, threads.
            trace_file: Workers' spans go beside it; None = nowhere.
            stack: Stops what was started.
        """
        self._settings = settings
        self._trace_file = trace_file
        self._stack = stack
        self._target = ""
        self._pools: dict[DraftKind, WorkerPool] = {}

    async def pool(self, kind: DraftKind) -> WorkerPool:
        """Returns the target and a draft of one kind.

        Raises:
            ArboristError: A worker does not start, or the draft does not fit the target.
        """
        if kind not in self._pools:
            if not self._target:
                arguments = ["serve-target", f"--model={self._settings.target}"]
                self._target = await self._start("target", arguments)
            draft = await self._start(f"draft-{kind}", self._draft_arguments(kind))
            self._pools[kind] = await self._connect(kind, draft)
        return self._pools[kind]

    def _draft_arguments(self, kind: DraftKind) -> list[str]:
        settings = self._settings
        arguments = [
            "serve-draft",
            f"--model={settings.draft_lm if kind == 'language_model' else settings.draft}",
            f"--target-model={settings.target}",
        ]
        if kind == "frequent":
            arguments.append(f"--vocabulary-file={settings.vocabulary_file}")
            if settings.vocabulary_size is not None:
                arguments.append(f"--vocabulary-size={settings.vocabulary_size}")
        return arguments

    async def _start(self, name: str, arguments: list[str]) -> str:
        settings = self._settings
        common = [
            f"--device={settings.device}",
            f"--dtype={settings.dtype}",
            f"--kv-capacity-tokens={settings.kv_capacity_tokens}",
            "--host=127.0.0.1",
            "--port=0",
            "--metrics-port=-1",
        ]
        if settings.num_threads:  # Otherwise as every deployment has it.
            common.append(f"--num-threads={settings.num_threads}")
        if settings.tracing and self._trace_file is not None:
            common.append(f"--trace-file={self._trace_file.with_suffix(f'.{name}.jsonl')}")
        worker = WorkerProcess([*arguments, *common])
        self._stack.push_async_callback(worker.stop, _STOP_S)
        return await worker.start(_START_S)

    async def _connect(self, kind: DraftKind, draft: str) -> WorkerPool:
        pool = GrpcWorkerPool(FixedDirectory([self._target], [draft]), f"arborist-bench-{kind}")
        self._stack.push_async_callback(pool.aclose)
        await pool.start()
        ready = await pool.wait_until(lambda: bool(pool.targets and pool.drafts), _START_S)
        if not ready:
            raise UnavailableError("the workers could not be reached")
        pool.check_fit()
        return SessionWorkers(pool, pool.targets[0].info.name, _START_S)
