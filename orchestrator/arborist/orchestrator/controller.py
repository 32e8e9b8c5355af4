"""The controller: admits requests, decodes them on the workers it knows, reports what happened.

Plain asyncio on one event loop; knows neither Ray nor the public API's transports.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import AsyncGenerator
from typing import cast

from arborist.common.config import ArboristConfig
from arborist.common.idle_memory import IdleMemory
from arborist.common.serving_metrics import ServingMetrics
from arborist.common.status_line import StatusLine
from arborist.common.telemetry import SpanRecorder
from arborist.core.engine import ModelInfo
from arborist.core.errors import (
    ArboristError,
    InvalidArgumentError,
    UnavailableError,
    UnknownModelError,
)
from arborist.core.policies import Policy
from arborist.core.policy import Eagle2Policy
from arborist.orchestrator.admission import Admission
from arborist.orchestrator.clock import Clock, SystemClock
from arborist.orchestrator.deadlines import DeadlinePolicy, Deadlines
from arborist.orchestrator.decode import DecodeLimits, Decoder
from arborist.orchestrator.directory import WorkerDirectory
from arborist.orchestrator.experience import Experiences
from arborist.orchestrator.generation import (
    Generation,
    GenerationRequest,
    ServedModel,
    Started,
)
from arborist.orchestrator.generation_account import GenerationAccount
from arborist.orchestrator.placement import Placement
from arborist.orchestrator.policy_choice import PolicyChoice
from arborist.orchestrator.round import Round
from arborist.orchestrator.running_generation import Attempt, GenerationPorts, RunningGeneration
from arborist.orchestrator.spans import GenerationTrace, begin_trace
from arborist.orchestrator.tree_sizer import TreeSizer
from arborist.orchestrator.worker_connection import ConnectionSettings
from arborist.orchestrator.worker_pool import GrpcWorkerPool, SessionWorkers
from arborist.orchestrator.worker_watch import WorkerWatch

_log = logging.getLogger(__name__)

# How long a session waits for a target that went away before it fails.
_TARGET_WAIT_S = 10.0


class Controller:
    """Serves generations; implements `generation.Generator`. One event loop owns it."""

    def __init__(
        self,
        config: ArboristConfig,
        directory: WorkerDirectory,
        *,
        metrics: ServingMetrics,
        recorder: SpanRecorder,
        clock: Clock | None = None,
        connection: ConnectionSettings | None = None,
        target_wait_s: float = _TARGET_WAIT_S,
    ) -> None:
        """Prepares; `start` connects. Needs a running event loop.

        Args:
            config: Limits, deadlines, speculation, trace detail.
            directory: Where workers are.
            metrics: Prometheus series.
            recorder: Takes spans.
            clock: Time; None = the system's.
            connection: How workers are reached; None = defaults.
            target_wait_s: How long a session waits for a target that went away, in seconds.
        """
        self._config = config
        self._metrics = metrics
        self._recorder = recorder
        self._clock = clock or SystemClock()
        self._target_wait_s = target_wait_s
        self.controller_id = secrets.token_hex(8)
        self.workers = GrpcWorkerPool(
            directory,
            self.controller_id,
            settings=connection,
            period_s=config.ray.renew_period_s,
        )
        self._admission = Admission(
            config.controller.max_sessions,
            config.controller.max_queued_requests,
            metrics.set_load,
            max_per_key=config.controller.max_requests_per_key,
        )
        self._policies = PolicyChoice(config.speculation)
        self._experiences = Experiences()
        self._deadlines = Deadlines(_deadline_policy(config))
        self._limits = DecodeLimits(
            prefill_chunk_tokens=config.controller.prefill_chunk_tokens,
            draft_calls=config.speculation.draft_calls,
            noise_aware=config.speculation.noise_aware,
        )
        self._status = StatusLine(self._clock.now_ns() / 1e9)
        self._generations: set[RunningGeneration] = set()
        self._memory = IdleMemory()
        self._created_s: dict[str, int] = {}
        self._num_requests = 0
        self._stopping = False
        self._watch = WorkerWatch(self.workers, metrics)
        self._tasks: list[asyncio.Task[None]] = []

    # ---- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connects to the workers in the background, begins status lines and worker metrics."""
        await self.workers.start()
        self._metrics.watch_dropped_spans(lambda: self._recorder.num_dropped)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._log_status(), name="status-line"),
            loop.create_task(self._watch.run(), name="worker-watch"),
        ]

    async def wait_ready(self, timeout_s: float, *, want_draft: bool = False) -> None:
        """Waits for the first target, and for a draft if one is expected.

        Args:
            timeout_s: Longest wait, in seconds.
            want_draft: Whether a draft must be there too.
        Raises:
            UnavailableError: Not everything came in time.
            MismatchError: The only drafts belong to other models.
        """

        def there() -> bool:
            return bool(self.workers.targets) and (not want_draft or bool(self.workers.drafts))

        if not await self.workers.wait_until(there, timeout_s):
            missing = "draft" if self.workers.targets else "target"
            raise UnavailableError(f"no {missing} worker came up within {timeout_s:g} s")
        self.workers.check_fit()

    async def stop(self, grace_s: float) -> None:
        """Refuses new requests, lets running ones finish, then ends them; frees everything.

        Args:
            grace_s: Seconds that running and waiting requests get.
        """
        self._stopping = True
        running = list(self._generations)
        decoding = [one.decoding for one in running]
        if decoding:
            await asyncio.wait(decoding, timeout=grace_s)
        for one in running:
            one.abort(UnavailableError("the server stops", retry_after_ms=1000))
        await asyncio.gather(*decoding, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.workers.aclose()
        self._memory.close()
        self._watch.look()  # What came since the last look.

    @property
    def ready(self) -> bool:
        """Returns whether a request would find a target now."""
        return not self._stopping and bool(self.workers.present_targets)

    def load(self) -> tuple[int, int]:
        """Returns requests decoded and waiting now."""
        return self._admission.num_running, self._admission.num_waiting

    def models(self) -> list[ServedModel]:
        """Returns the models served; empty while no target is there."""
        served: dict[str, ServedModel] = {}
        for target in self.workers.present_targets:
            info = target.info
            held = info.context_length
            capacity = self._kv_capacity(info.name)
            if capacity:
                # A session reserves its longest length, a tree and the root.
                held = max(min(held, capacity - self._policies.num_draft_tokens - 1), 1)
            if info.name not in served:
                created_s = self._created_s.setdefault(
                    info.name, self._clock.now_ns() // 1_000_000_000
                )
                served[info.name] = ServedModel(
                    id=info.name,
                    context_length=held,
                    vocab_size=info.vocab_size,
                    eos_token_ids=info.eos_token_ids,
                    created_s=created_s,
                    speculation=bool(self.workers.fitting_drafts(info)),
                )
        return list(served.values())

    # ---- requests --------------------------------------------------------------------------

    def generate(self, request: GenerationRequest) -> Generation:
        """Admits a request, or queues it, or refuses it.

        Raises:
            UnavailableError: Stopping, or no target is there.
            UnknownModelError: No such model.
            InvalidArgumentError: A bound is exceeded.
            ResourceExhaustedError: Sessions and queue are full, or the client has its share.
        """
        try:
            return self._admit(request)
        except ArboristError as error:
            self._metrics.count_failure(error.reason)
            raise

    def _admit(self, request: GenerationRequest) -> RunningGeneration:
        if self._stopping:
            raise UnavailableError("the server stops", retry_after_ms=1000)
        arrived_ns = self._clock.now_ns()
        model = self._choose(request.model)
        policy = self._policies.choose(request.speculation)
        _check(request, model, policy, self._kv_capacity(model.name))
        ticket = self._admission.enter(request.client_key)
        sampling = request.sampling
        if sampling.greedy:
            sampling = dataclasses.replace(sampling, seed=0)
        else:
            seed = request.seed if request.seed is not None else secrets.randbits(64)
            sampling = dataclasses.replace(sampling, seed=seed)
        request = dataclasses.replace(request, sampling=sampling)
        trace = begin_trace(
            self._recorder,
            self._clock,
            self._config.telemetry.trace_detail,
            request.traceparent,
        )
        self._num_requests += 1
        started = Started(
            request_id=f"{self.controller_id}-{self._num_requests}",
            model=model.name,
            prompt_tokens=len(request.prompt_token_ids),
            seed=sampling.seed,
            trace_id=trace.trace_id,
        )
        generation = RunningGeneration(
            started,
            ticket,
            lambda attempt: self._begin(request, model, policy, trace, started, attempt),
            GenerationAccount(arrived_ns, started.prompt_tokens, policy is not None),
            trace,
            GenerationPorts(self._metrics, self._status, self._clock, self._ended),
        )
        self._generations.add(generation)
        self._memory.follow(True)
        return generation

    def _begin(
        self,
        request: GenerationRequest,
        model: ModelInfo,
        policy: Policy | None,
        trace: GenerationTrace,
        started: Started,
        attempt: int,
    ) -> Attempt:
        # A fresh id each time: nothing of an earlier try can be taken for this one.
        session_id = f"{started.request_id}.{attempt}"
        session = request.session(session_id, model.eos_token_ids)
        decoder = Decoder(
            session,
            SessionWorkers(
                self.workers,
                model.name,
                self._target_wait_s,
                Placement.of(request.client_key, request.prompt_token_ids),
                self._admission.moving,
            ),
            policy,
            limits=self._limits,
            deadlines=self._deadlines,
            clock=self._clock,
            trace=trace,
            sizer=self._sizer(request, policy),
        )

        def close() -> None:
            decoder.close()
            self.workers.release(session_id)

        return Attempt(session, cast("AsyncGenerator[Round, None]", decoder.run()), close)

    def _sizer(self, request: GenerationRequest, policy: Policy | None) -> TreeSizer | None:
        """Returns what sizes a request's trees; None when their size is fixed."""
        if not self._policies.adapts(request.speculation) or not isinstance(policy, Eagle2Policy):
            return None
        return TreeSizer(self._experiences, policy)

    def _ended(self, generation: RunningGeneration, seconds: float) -> None:
        self._generations.discard(generation)
        self._memory.follow(bool(self._generations))
        self._admission.observe(seconds)

    def _choose(self, name: str) -> ModelInfo:
        served = {target.info.name: target.info for target in self.workers.present_targets}
        if not served:
            raise UnavailableError("no target worker is there yet", retry_after_ms=1000)
        if name in served:
            return served[name]
        if name == "" and len(served) == 1:
            return next(iter(served.values()))
        known = ", ".join(sorted(served))
        raise UnknownModelError(
            f"model is not served: must be one of {known}", metadata={"field": "model"}
        )

    def _kv_capacity(self, name: str) -> int:
        """Returns the KV positions of the roomiest target of a model; 0 when none is there."""
        targets = self.workers.present_targets
        return max((one.kv_capacity_tokens for one in targets if one.info.name == name), default=0)

    async def _log_status(self) -> None:
        while True:
            await asyncio.sleep(self._config.controller.status_period_s)
            line = self._status.next(self._clock.now_ns() / 1e9, *self.load())
            if line is not None:
                _log.info(line)


def _check(
    request: GenerationRequest, model: ModelInfo, policy: Policy | None, kv_capacity_tokens: int
) -> None:
    """Refuses what would only fail at the target; the API's validator says it in more detail."""
    prompt_tokens = len(request.prompt_token_ids)
    if prompt_tokens < 1:
        raise InvalidArgumentError("prompt", "0 tokens", "at least 1 token")
    if request.max_tokens < 1:
        raise InvalidArgumentError("max_tokens", request.max_tokens, "at least 1")
    total = prompt_tokens + request.max_tokens
    if total > model.context_length:
        raise InvalidArgumentError(
            "prompt + max_tokens",
            f"{total} tokens",
            f"at most {model.context_length} tokens, the context of {model.name}",
        )
    nodes = 0 if policy is None else policy.shape.num_draft_tokens
    if kv_capacity_tokens and total + nodes + 1 > kv_capacity_tokens:
        raise InvalidArgumentError(
            "prompt + max_tokens",
            f"{total} tokens, with trees of {nodes}",
            f"at most {max(kv_capacity_tokens - nodes - 1, 0)} tokens, the KV of {model.name}",
        )


def _deadline_policy(config: ArboristConfig) -> DeadlinePolicy:
    controller = config.controller
    return DeadlinePolicy(
        draft_floor_s=controller.draft_deadline_floor_ms / 1e3,
        target_floor_s=controller.target_deadline_floor_ms / 1e3,
        prefill_s_per_token=controller.prefill_deadline_ms_per_token / 1e3,
    )
