"""DraftService over the worker shell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, cast

import grpc

from arborist.common import draft_wire, wire
from arborist.common.attach import Attach, Attached
from arborist.common.command import Command, ReadRows
from arborist.common.connect_servicer import ConnectHandler, guarded
from arborist.common.span_sink import NullSpanSink, SpanSink
from arborist.common.worker import Worker
from arborist.common.worker_info import DraftWorkerInfo
from arborist.common.worker_limits import WorkerLimits
from arborist.common.worker_metrics import NullWorkerMetrics, WorkerMetrics
from arborist.core.engine import DraftEngine, DraftOpen, DraftWork, SessionKey
from arborist.core.errors import UnimplementedError
from arborist.core.features import FeatureSpec
from arborist.v1 import draft_pb2 as pb
from arborist.v1 import draft_pb2_grpc as pb_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DraftService"].full_name


class DraftCodec:
    """Frames of DraftService."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits

    def read_attach(self, frame: pb.DraftServiceConnectRequest) -> Attach | None:
        """Returns the frame's Attach, or None."""
        return wire.attach_from_pb(frame.attach) if frame.HasField("attach") else None

    def read_commands(
        self, frame: pb.DraftServiceConnectRequest
    ) -> Iterable[pb.DraftCommand] | None:
        """Returns the frame's commands, or None."""
        return frame.commands.commands if frame.HasField("commands") else None

    def read_command(
        self, message: pb.DraftCommand, controller_id: str
    ) -> Command[DraftOpen, DraftWork]:
        """Returns a command."""
        return draft_wire.draft_command(message, controller_id, self._limits.max_prefill_tokens)

    def write_attached(self, attached: Attached) -> pb.DraftServiceConnectResponse:
        """Returns the answering frame."""
        return draft_wire.attached_frame(attached)

    def write_answer(
        self, command_id: int, answer: object, queue_ms: float, compute_ms: float
    ) -> list[pb.DraftResult]:
        """Returns the result message of one answer."""
        answered = cast("draft_wire.DraftAnswer", answer)
        return [draft_wire.draft_result(command_id, answered, queue_ms, compute_ms)]

    def write_frame(self, results: list[pb.DraftResult]) -> pb.DraftServiceConnectResponse:
        """Returns a frame of results."""
        return draft_wire.result_frame(results)

    def expected_digest(self, attach: Attach) -> str:
        """Returns the draft digest the controller expects."""
        return attach.draft_digest


class DraftServicer(pb_grpc.DraftServiceServicer):
    """Serves one draft engine."""

    def __init__(
        self,
        worker: Worker[DraftOpen, DraftWork],
        feature_spec: FeatureSpec | None,
        feature_width: int,
        on_drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Serves a worker made by `draft_worker`.

        Args:
            worker: The shell, started.
            feature_spec: Features the draft wants; None for a language model.
            feature_width: Width of a feature row; 0 for a language model.
            on_drain: Called once a Drain was taken.
        """
        self._worker = worker
        self._feature_spec = feature_spec
        self._feature_width = feature_width
        self._on_drain = on_drain
        self._connect = ConnectHandler(worker, DraftCodec(worker.limits))

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        pb_grpc.add_DraftServiceServicer_to_server(self, server)

    async def Connect(  # type: ignore[override]  # noqa: N802 - protobuf's name
        self,
        request_iterator: AsyncIterator[pb.DraftServiceConnectRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serves one stream."""
        await self._connect.connect(context)

    @guarded
    async def GetInfo(  # noqa: N802 - protobuf's name
        self,
        request: pb.DraftServiceGetInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.DraftServiceGetInfoResponse:
        """Says what the worker holds and how full it is."""
        info = DraftWorkerInfo(self._worker.info, self._feature_spec, self._feature_width)
        return draft_wire.draft_info_to_pb(info)

    @guarded
    async def Drain(  # noqa: N802 - protobuf's name
        self,
        request: pb.DraftServiceDrainRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.DraftServiceDrainResponse:
        """Refuses new sessions from now on."""
        num_sessions = self._worker.drain()
        if self._on_drain is not None:
            await self._on_drain()
        return pb.DraftServiceDrainResponse(num_sessions=num_sessions)


def draft_worker(
    engine: DraftEngine,
    *,
    limits: WorkerLimits,
    device: str = "cpu",
    version: str = "",
    spans: SpanSink | None = None,
    metrics: WorkerMetrics | None = None,
) -> Worker[DraftOpen, DraftWork]:
    """Returns the shell around a draft engine; `start` it inside the loop that serves.

    Args:
        engine: The draft; called from the shell's compute thread alone.
        limits: Bounds.
        device: Where the engine runs, for GetInfo.
        version: Version of the software, for GetInfo.
        spans: Takes spans; None = nobody.
        metrics: Takes numbers; None = nobody.
    """

    def read(session: SessionKey, rows: ReadRows) -> object:
        raise UnimplementedError("a draft keeps no features to read")

    return Worker(
        engine,
        read=read,
        finish=_unchanged,
        limits=limits,
        device=device,
        version=version,
        spans=spans or NullSpanSink(),
        metrics=metrics or NullWorkerMetrics(),
    )


def _unchanged(outcome: object) -> object:
    return outcome  # Levels are numpy arrays already.
