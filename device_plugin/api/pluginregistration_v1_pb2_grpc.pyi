"""Types of pluginregistration_v1_pb2_grpc, which protoc generates without any. Written by hand."""

import grpc

from device_plugin.api import pluginregistration_v1_pb2 as pb

class RegistrationStub:
    GetInfo: grpc.UnaryUnaryMultiCallable[pb.InfoRequest, pb.PluginInfo]
    NotifyRegistrationStatus: grpc.UnaryUnaryMultiCallable[
        pb.RegistrationStatus, pb.RegistrationStatusResponse
    ]
    def __init__(self, channel: grpc.Channel) -> None: ...

class RegistrationServicer:
    def GetInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.PluginInfo: ...
    def NotifyRegistrationStatus(
        self, request: pb.RegistrationStatus, context: grpc.ServicerContext
    ) -> pb.RegistrationStatusResponse: ...

def add_RegistrationServicer_to_server(servicer: RegistrationServicer, server: grpc.Server) -> None: ...
