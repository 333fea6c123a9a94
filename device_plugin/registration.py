"""Adapter: the two ways in which a kubelet hears of a resource.

Legacy: the plugin calls Register on the kubelet's own socket. Watcher: the plugin's socket appears in a
folder that the kubelet watches; the kubelet asks what it is, connects, and tells how that went.
"""

from enum import StrEnum
from pathlib import Path

import grpc
import msgspec

from device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from device_plugin.api import deviceplugin_v1beta1_pb2_grpc as rpc
from device_plugin.api import pluginregistration_v1_pb2 as registration_pb
from device_plugin.api import pluginregistration_v1_pb2_grpc as registration_rpc
from device_plugin.endpoint import CHANNEL_OPTIONS, unix_target
from vf_manager.errors import SriovError, plain

API_VERSION = "v1beta1"
PLUGIN_TYPE = "DevicePlugin"


class Way(StrEnum):
    """One of them for a resource at a time. A kubelet that is told of it by both keeps two clients; when the
    one ends, older kubelets disconnect the other (devicemanager/plugin/v1beta1/handler.go, runClient)."""

    WATCHER = "watcher"
    LEGACY = "legacy"

    @property
    def folder(self) -> str:
        """Of the plugins' sockets, in the kubelet's."""
        return "plugins_registry" if self is Way.WATCHER else "device-plugins"


class RegistrationFailed(SriovError):
    """The kubelet did not take a registration. It may take the next one."""

    transient = True


class RegisterCall:
    """A Register on its way. The kubelet calls back into the plugin before it answers, and it may hang: so
    nobody waits for it. Either `result` or `cancel` must be called in the end."""

    def __init__(self, kubelet_socket: Path, request: pb.RegisterRequest, timeout_s: float) -> None:
        self._resource = request.resource_name
        self._channel = grpc.insecure_channel(unix_target(kubelet_socket), options=CHANNEL_OPTIONS)
        self._call = rpc.RegistrationStub(self._channel).Register.future(request, timeout=timeout_s)

    def is_done(self) -> bool:
        return self._call.done()

    def result(self) -> None:
        """Raises RegistrationFailed."""
        code, details = self._call.code(), self._call.details()
        self._channel.close()
        if code is not grpc.StatusCode.OK:
            raise RegistrationFailed(f"register {self._resource}: {code.name}: {details}")

    def cancel(self) -> None:
        self._channel.close()


class Verdict(msgspec.Struct, frozen=True):
    """Of the kubelet's watcher. `error` is empty if it took the plugin."""

    registered: bool
    error: str


class WatchedPlugin(registration_rpc.RegistrationServicer):
    """What the kubelet's watcher asks and says on one socket. gRPC's threads write, any thread reads."""

    def __init__(self, resource: str) -> None:
        # No endpoint: the service is on the socket that was asked, whatever its path is to the kubelet.
        self._info = registration_pb.PluginInfo(
            type=PLUGIN_TYPE, name=resource, supported_versions=[API_VERSION]
        )
        self.asked = False
        self.verdict: Verdict | None = None

    def GetInfo(
        self, request: registration_pb.InfoRequest, context: grpc.ServicerContext
    ) -> registration_pb.PluginInfo:
        self.asked = True
        return self._info

    def NotifyRegistrationStatus(
        self, request: registration_pb.RegistrationStatus, context: grpc.ServicerContext
    ) -> registration_pb.RegistrationStatusResponse:
        self.verdict = Verdict(request.registered, plain(request.error))
        return registration_pb.RegistrationStatusResponse()
