"""Brings a deployment up on Ray and takes it down again: a cluster of our own, or one to join."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from arborist.common.config import ArboristConfig, ConfigError
from arborist.core.errors import ArboristError, UnavailableError
from arborist.orchestrator.app import build_app
from arborist.orchestrator.app_directory import RayDirectory
from arborist.orchestrator.ray_config import cluster_address
from arborist.orchestrator.worker_registry import RegistryEntry, RegistrySnapshot

_POLL_S = 0.2
_STATUS_PERIOD_S = 3.0
_MAX_REASON_LENGTH = 200
_CONNECT_S = 5.0
_ENDED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)

_log = logging.getLogger(__name__)


class DeploymentError(ArboristError):
    """A process of the deployment did not start."""

    reason = "DEPLOYMENT_FAILED"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment that is ready.

    Attributes:
        http_address: host:port of the HTTP API.
        grpc_address: host:port of one controller's gRPC API.
        targets: Target workers.
        drafts: Draft workers.
    """

    http_address: str
    grpc_address: str
    targets: tuple[RegistryEntry, ...]
    drafts: tuple[RegistryEntry, ...]


class RayCluster:
    """One deployment on Ray. Use from the main thread; `stop` must follow, whatever happens."""

    def __init__(
        self,
        config: ArboristConfig,
        *,
        show_logs: bool,
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares; nothing runs yet. The environment of `ray_config` must be applied.

        Args:
            config: Everything that can be set.
            show_logs: Print the replicas' logs here.
            on_connected: Called once Ray is there, which sets signal handlers of its own.
        """
        self._on_connected = on_connected
        self._show_logs = show_logs
        self._joined = False
        self._brought_serve = False
        self._config = config
        self._directory = RayDirectory(config.ray.namespace, config.ray.lease_s)

    def start(self) -> Deployment:
        """Starts or joins Ray, deploys, and waits until requests find everything.

        Raises:
            ConfigError: A port is in use, a model folder does not exist.
            DeploymentError: A process did not start; the message says why.
            UnavailableError: No cluster to join, or not ready in time.
        """
        self._choose_ports()
        app = build_app(self._config)
        self._connect()
        self._on_connected()
        self._start_serve()
        settings = self._config.ray
        serve.run_many(
            [serve.RunTarget(app, name=settings.app_name, route_prefix=settings.route_prefix)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        return asyncio.run(self._wait_ready())

    def stop(self) -> None:
        """Drains and ends everything that `start` brought; safe to call whatever happened."""
        if not ray.is_initialized():
            return
        try:
            if self._joined:
                self._leave_joined()
            else:
                # Runs the replicas' destructors; the cluster then goes as a whole.
                with contextlib.suppress(RayError, RuntimeError, TimeoutError):
                    serve.delete(self._config.ray.app_name)
        finally:
            ray.shutdown()

    # ---- up ----------------------------------------------------------------------------------

    def _choose_ports(self) -> None:
        """Makes "any port" a port, and refuses one in use before anything is started."""
        controller = self._config.controller
        http_port = _bindable("controller.http_port", controller.http_host, controller.http_port)
        grpc_port = controller.grpc_port
        if self._config.ray.num_controllers == 1:
            grpc_port = _bindable("controller.grpc_port", controller.grpc_host, grpc_port)
        self._config = self._config.model_copy(
            update={
                "controller": controller.model_copy(
                    update={"http_port": http_port, "grpc_port": grpc_port}
                )
            }
        )

    def _connect(self) -> None:
        settings = self._config.ray
        address = cluster_address(settings.address)
        self._joined = address is not None
        common = {
            "namespace": settings.namespace,
            "log_to_driver": self._show_logs,
            "logging_level": logging.ERROR,
        }
        if address is not None:
            _check_answers(address)
        try:
            if address is None:
                ray.init(
                    "local",
                    num_cpus=settings.num_cpus,
                    include_dashboard=False,
                    object_store_memory=settings.object_store_memory_bytes,
                    **common,
                )
            else:
                ray.init(address, **common)
        except Exception as error:  # noqa: BLE001 - Ray raises plain Exception here
            reason = " ".join(str(error).split())[:_MAX_REASON_LENGTH] or type(error).__name__
            where = "here" if address is None else f"at {address}"
            raise UnavailableError(f"Ray cannot be used {where}: {reason}") from None

    def _start_serve(self) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        controller = self._config.controller
        self._brought_serve = not _serve_runs()
        serve.start(
            http_options={"host": controller.http_host, "port": controller.http_port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )

    async def _wait_ready(self) -> Deployment:
        settings = self._config.ray
        deadline_s = time.monotonic() + settings.ready_timeout_s
        next_status_s = 0.0
        while time.monotonic() < deadline_s:
            snapshot: RegistrySnapshot | None = None
            with contextlib.suppress(UnavailableError):
                snapshot = await self._directory.read()
            if snapshot is not None and snapshot.failures:
                role, message = next(iter(snapshot.failures.items()))
                raise DeploymentError(f"the {role} did not start: {message}")
            deployment = self._deployment(snapshot) if snapshot is not None else None
            # Asking Serve costs it as much as its own control loop: now and then is enough.
            if deployment is not None or time.monotonic() >= next_status_s:
                next_status_s = time.monotonic() + _STATUS_PERIOD_S
                if self._is_running() and deployment is not None:
                    return deployment
            await asyncio.sleep(_POLL_S)
        raise UnavailableError(
            f"not ready within ray.ready_timeout_s = {settings.ready_timeout_s:g}"
        )

    def _is_running(self) -> bool:
        """Returns whether Serve has everything up and routed.

        Raises:
            DeploymentError: It gave up.
        """
        status = serve.status().applications.get(self._config.ray.app_name)
        if status is None:
            return False
        if status.status in _ENDED:
            last = (status.message.strip().splitlines() or ["no reason given"])[-1]
            raise DeploymentError(f"Ray Serve could not start the deployment: {last}")
        return status.status is ApplicationStatus.RUNNING

    def _deployment(self, snapshot: RegistrySnapshot) -> Deployment | None:
        def of(role: str) -> tuple[RegistryEntry, ...]:
            return tuple(one for one in snapshot.entries if one.role == role)

        controllers = of("controller")
        if len(controllers) < self._config.ray.num_controllers:
            return None
        settings = self._config.controller
        return Deployment(
            http_address=f"{settings.http_host}:{settings.http_port}",
            grpc_address=controllers[0].address,
            targets=of("target"),
            drafts=of("draft"),
        )

    # ---- down --------------------------------------------------------------------------------

    def _leave_joined(self) -> None:
        """Takes our part out of somebody else's cluster."""
        with contextlib.suppress(RayError, RuntimeError, TimeoutError):
            serve.delete(self._config.ray.app_name)
            if self._brought_serve:
                serve.shutdown()
        self._directory.kill()


def _serve_runs() -> bool:
    # Asking starts nothing: the status of a Serve that does not run is empty.
    try:
        return bool(serve.status().proxies)
    except RayError:
        return False


def _check_answers(address: str) -> None:
    """Refuses an address where nobody listens at once; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        return  # "auto", or a scheme of Ray's own.
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UnavailableError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): check RAY_ADDRESS "
            "or ray.address, or unset both to start one here"
        ) from None


def _bindable(field: str, host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{field} = {port}: cannot listen on {host}:{port} ({error.strerror}); stop what "
                "uses it or choose another port"
            ) from None
        return int(probe.getsockname()[1])
