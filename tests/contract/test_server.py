"""The server shell of every gRPC port: health, reflection, ports, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.contract.workers import DRAFT, TARGET, served_draft, served_target

from arborist.common.connect_servicer import guarded
from arborist.common.errors import error_from_call
from arborist.common.server import RpcServer, wait_for_signal
from arborist.core.errors import ErrorCode, UnavailableError, UnknownModelError
from arborist.v1 import target_pb2 as pb
from arborist.v1 import target_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str) -> int:
    """Asks for the health of a service."""
    request = health_pb2.HealthCheckRequest(service=service)
    response = await health_pb2_grpc.HealthStub(channel).Check(request)
    return int(response.status)


@pytest.mark.parametrize("service", ["", TARGET])
async def test_a_server_serves_only_when_told_so(service: str) -> None:
    """NOT_SERVING from the first moment, until the model is warm."""
    server = RpcServer([TARGET])
    address = await server.start("127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            before = await health(channel, service)
            await server.set_serving(True)
            after = await health(channel, service)
    finally:
        await server.stop(0.0)

    assert (before, after) == (NOT_SERVING, SERVING)


async def test_drain_ends_health_first() -> None:
    """A drained worker is NOT_SERVING while its sessions go on."""
    async with served_target() as served:
        channel = served.channel()
        before = await health(channel, TARGET)
        await target_pb2_grpc.TargetServiceStub(channel).Drain(pb.TargetServiceDrainRequest())

        assert (before, await health(channel, TARGET)) == (SERVING, NOT_SERVING)


async def test_reflection_names_every_service() -> None:
    """A client without the protos can list what is served."""
    async with served_draft() as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel())
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        response = await call.read()
        await call.done_writing()
        names = {one.name for one in response.list_services_response.service}

        assert names == {
            DRAFT,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


async def test_a_port_in_use_is_one_clear_line() -> None:
    """The error names setting, port and what to do, whoever holds the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = RpcServer([TARGET], setting="target.port")
        with pytest.raises(UnavailableError) as refused:
            await server.start("127.0.0.1", port)
        await server.stop(0.0)

    assert f"target.port = {port}" in refused.value.message
    assert "choose another port" in refused.value.message
    assert "\n" not in refused.value.message


async def test_a_second_server_does_not_share_a_port() -> None:
    """Without a word gRPC would split connections between two servers."""
    one, two = RpcServer([TARGET]), RpcServer([TARGET])
    address = await one.start("127.0.0.1", 0)
    try:
        with pytest.raises(UnavailableError):
            await two.start("127.0.0.1", int(address.rpartition(":")[2]))
    finally:
        await two.stop(0.0)
        await one.stop(0.0)


async def test_a_host_that_is_not_ours_is_one_clear_line() -> None:
    """Neither a foreign address nor a name nobody knows ends in a traceback."""
    server = RpcServer([TARGET])
    with pytest.raises(UnavailableError) as refused:
        await server.start("192.0.2.1", 9102)
    await server.stop(0.0)

    assert "\n" not in refused.value.message


async def test_a_stopped_server_ends_what_runs_after_the_grace() -> None:
    """A long-lived stream does not hold the end up."""
    async with served_target() as served:
        stream = await served.stream()
        async with asyncio.timeout(5.0):
            await served.server.stop(0.05)
            error = await stream.end()

        assert error.code in (ErrorCode.UNAVAILABLE, ErrorCode.CANCELLED)


@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_wait(one: signal.Signals) -> None:
    """SIGTERM and Ctrl-C both ask for a graceful stop."""
    waiting = asyncio.create_task(wait_for_signal())
    await asyncio.sleep(0)
    os.kill(os.getpid(), one)

    async with asyncio.timeout(5.0):
        assert await waiting is one


class _Failing:
    """A handler that fails in the ways handlers fail."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @guarded
    async def GetInfo(  # noqa: N802 - protobuf's name
        self, request: pb.TargetServiceGetInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.TargetServiceGetInfoResponse:
        """Fails."""
        raise self._error


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (UnknownModelError("no model m"), ErrorCode.INVALID_ARGUMENT, "UNKNOWN_MODEL"),
        (ValueError("secret prompt at 0x7f, /srv/x"), ErrorCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_what_a_handler_raises_becomes_a_status(
    raised: Exception, code: ErrorCode, reason: str
) -> None:
    """Errors of the table cross whole; anything else is a fixed text with an incident id."""
    server = RpcServer([TARGET])
    handler = grpc.method_handlers_generic_handler(
        TARGET,
        {
            "GetInfo": grpc.unary_unary_rpc_method_handler(
                _Failing(raised).GetInfo,
                pb.TargetServiceGetInfoRequest.FromString,
                pb.TargetServiceGetInfoResponse.SerializeToString,
            )
        },
    )
    server.grpc_server.add_generic_rpc_handlers((handler,))
    address = await server.start("127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = target_pb2_grpc.TargetServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stub.GetInfo(pb.TargetServiceGetInfoRequest())
    finally:
        await server.stop(0.0)

    error = error_from_call(ended.value)
    assert (error.code, error.reason) == (code, reason)
    assert "secret" not in error.message
    if code is ErrorCode.INTERNAL:
        assert error.metadata["incident"] in error.message
