"""TargetService over the worker shell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import grpc

from arborist.common import target_wire, wire
from arborist.common.attach import Attach, Attached
from arborist.common.command import Command, FeaturesRead, ReadRows
from arborist.common.connect_servicer import ConnectHandler, guarded
from arborist.common.span_sink import NullSpanSink, SpanSink
from arborist.common.worker import Worker
from arborist.common.worker_limits import WorkerLimits
from arborist.common.worker_metrics import NullWorkerMetrics, WorkerMetrics
from arborist.core.engine import (
    PrefillResult,
    SessionKey,
    TargetEngine,
    TargetOpen,
    TargetWork,
    VerifyResult,
)
from arborist.v1 import target_pb2 as pb
from arborist.v1 import target_pb2_grpc as pb_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TargetService"].full_name


class TargetCodec:
    """Frames of TargetService."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits

    def read_attach(self, frame: pb.TargetServiceConnectRequest) -> Attach | None:
        """Returns the frame's Attach, or None."""
        return wire.attach_from_pb(frame.attach) if frame.HasField("attach") else None

    def read_commands(
        self, frame: pb.TargetServiceConnectRequest
    ) -> Iterable[pb.TargetCommand] | None:
        """Returns the frame's commands, or None."""
        return frame.commands.commands if frame.HasField("commands") else None

    def read_command(
        self, message: pb.TargetCommand, controller_id: str
    ) -> Command[TargetOpen, TargetWork]:
        """Returns a command."""
        return target_wire.target_command(message, controller_id, self._limits.max_prefill_tokens)

    def write_attached(self, attached: Attached) -> pb.TargetServiceConnectResponse:
        """Returns the answering frame."""
        return target_wire.attached_frame(attached)

    def write_answer(
        self, command_id: int, answer: object, queue_ms: float, compute_ms: float
    ) -> list[pb.TargetResult]:
        """Returns the result messages of one answer, long ones in parts."""
        return target_wire.target_results(
            command_id,
            cast("target_wire.TargetAnswer", answer),
            queue_ms,
            compute_ms,
            self._limits.max_part_bytes,
        )

    def write_frame(self, results: list[pb.TargetResult]) -> pb.TargetServiceConnectResponse:
        """Returns a frame of results."""
        return target_wire.result_frame(results)

    def expected_digest(self, attach: Attach) -> str:
        """Returns the target digest the controller expects."""
        return attach.target_digest


class TargetServicer(pb_grpc.TargetServiceServicer):
    """Serves one target engine."""

    def __init__(
        self,
        worker: Worker[TargetOpen, TargetWork],
        on_drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Serves a worker made by `target_worker`.

        Args:
            worker: The shell, started.
            on_drain: Called once a Drain was taken.
        """
        self._worker = worker
        self._on_drain = on_drain
        self._connect = ConnectHandler(worker, TargetCodec(worker.limits))

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        pb_grpc.add_TargetServiceServicer_to_server(self, server)

    async def Connect(  # type: ignore[override]  # noqa: N802 - protobuf's name
        self,
        request_iterator: AsyncIterator[pb.TargetServiceConnectRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serves one stream."""
        await self._connect.connect(context)

    @guarded
    async def GetInfo(  # noqa: N802 - protobuf's name
        self,
        request: pb.TargetServiceGetInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.TargetServiceGetInfoResponse:
        """Says what the worker holds and how full it is."""
        return pb.TargetServiceGetInfoResponse(info=wire.worker_info_to_pb(self._worker.info))

    @guarded
    async def Drain(  # noqa: N802 - protobuf's name
        self,
        request: pb.TargetServiceDrainRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.TargetServiceDrainResponse:
        """Refuses new sessions from now on."""
        num_sessions = self._worker.drain()
        if self._on_drain is not None:
            await self._on_drain()
        return pb.TargetServiceDrainResponse(num_sessions=num_sessions)

    @guarded
    async def FindPrefix(  # noqa: N802 - protobuf's name
        self,
        request: pb.TargetServiceFindPrefixRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.TargetServiceFindPrefixResponse:
        """Says how much of a session's beginning is known here."""
        known_tokens = self._worker.known_length(wire.prefix_from_pb(request.prefix))
        return pb.TargetServiceFindPrefixResponse(known_tokens=known_tokens)


def target_worker(
    engine: TargetEngine,
    *,
    limits: WorkerLimits,
    device: str = "cpu",
    version: str = "",
    spans: SpanSink | None = None,
    metrics: WorkerMetrics | None = None,
) -> Worker[TargetOpen, TargetWork]:
    """Returns the shell around a target engine; `start` it inside the loop that serves.

    Args:
        engine: The target; called from the shell's compute thread alone.
        limits: Bounds.
        device: Where the engine runs, for GetInfo.
        version: Version of the software, for GetInfo.
        spans: Takes spans; None = nobody.
        metrics: Takes numbers; None = nobody.
    """

    def read(session: SessionKey, rows: ReadRows) -> FeaturesRead:
        features = engine.read_features(session, rows.begin, rows.end)
        return FeaturesRead(rows.begin, wire.raw_from_torch(features))

    def preparation(request: TargetOpen) -> Callable[[], None] | None:
        return None if request.json_schema is None else partial(engine.prepare, request)

    return Worker(
        engine,
        read=read,
        finish=without_tensors,
        limits=limits,
        device=device,
        version=version,
        spans=spans or NullSpanSink(),
        metrics=metrics or NullWorkerMetrics(),
        preparation=preparation,
        keeps_features=engine.keeps_features,
    )


def without_tensors(outcome: object) -> object:
    """Returns an outcome whose features are bytes, so that the device is done with it."""
    if isinstance(outcome, (PrefillResult, VerifyResult)) and outcome.features is not None:
        raw = target_wire.as_raw(outcome.features)
        return replace(outcome, features=cast("Any", raw))
    return outcome
