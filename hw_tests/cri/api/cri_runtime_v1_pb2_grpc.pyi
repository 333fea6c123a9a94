"""Types of cri_runtime_v1_pb2_grpc, which protoc generates without any. Written by hand."""

import grpc

from hw_tests.cri.api import cri_runtime_v1_pb2 as pb

class RuntimeServiceStub:
    Version: grpc.UnaryUnaryMultiCallable[pb.VersionRequest, pb.VersionResponse]
    Status: grpc.UnaryUnaryMultiCallable[pb.StatusRequest, pb.StatusResponse]
    RunPodSandbox: grpc.UnaryUnaryMultiCallable[pb.RunPodSandboxRequest, pb.RunPodSandboxResponse]
    StopPodSandbox: grpc.UnaryUnaryMultiCallable[pb.StopPodSandboxRequest, pb.StopPodSandboxResponse]
    RemovePodSandbox: grpc.UnaryUnaryMultiCallable[pb.RemovePodSandboxRequest, pb.RemovePodSandboxResponse]
    PodSandboxStatus: grpc.UnaryUnaryMultiCallable[pb.PodSandboxStatusRequest, pb.PodSandboxStatusResponse]
    ListPodSandbox: grpc.UnaryUnaryMultiCallable[pb.ListPodSandboxRequest, pb.ListPodSandboxResponse]
    CreateContainer: grpc.UnaryUnaryMultiCallable[pb.CreateContainerRequest, pb.CreateContainerResponse]
    StartContainer: grpc.UnaryUnaryMultiCallable[pb.StartContainerRequest, pb.StartContainerResponse]
    StopContainer: grpc.UnaryUnaryMultiCallable[pb.StopContainerRequest, pb.StopContainerResponse]
    ContainerStatus: grpc.UnaryUnaryMultiCallable[pb.ContainerStatusRequest, pb.ContainerStatusResponse]
    ExecSync: grpc.UnaryUnaryMultiCallable[pb.ExecSyncRequest, pb.ExecSyncResponse]
    def __init__(self, channel: grpc.Channel) -> None: ...

class RuntimeServiceServicer:
    def Version(self, request: pb.VersionRequest, context: grpc.ServicerContext) -> pb.VersionResponse: ...
    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusResponse: ...
    def RunPodSandbox(
        self, request: pb.RunPodSandboxRequest, context: grpc.ServicerContext
    ) -> pb.RunPodSandboxResponse: ...
    def StopPodSandbox(
        self, request: pb.StopPodSandboxRequest, context: grpc.ServicerContext
    ) -> pb.StopPodSandboxResponse: ...
    def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: grpc.ServicerContext
    ) -> pb.RemovePodSandboxResponse: ...
    def PodSandboxStatus(
        self, request: pb.PodSandboxStatusRequest, context: grpc.ServicerContext
    ) -> pb.PodSandboxStatusResponse: ...
    def ListPodSandbox(
        self, request: pb.ListPodSandboxRequest, context: grpc.ServicerContext
    ) -> pb.ListPodSandboxResponse: ...
    def CreateContainer(
        self, request: pb.CreateContainerRequest, context: grpc.ServicerContext
    ) -> pb.CreateContainerResponse: ...
    def StartContainer(
        self, request: pb.StartContainerRequest, context: grpc.ServicerContext
    ) -> pb.StartContainerResponse: ...
    def StopContainer(
        self, request: pb.StopContainerRequest, context: grpc.ServicerContext
    ) -> pb.StopContainerResponse: ...
    def ContainerStatus(
        self, request: pb.ContainerStatusRequest, context: grpc.ServicerContext
    ) -> pb.ContainerStatusResponse: ...
    def ExecSync(self, request: pb.ExecSyncRequest, context: grpc.ServicerContext) -> pb.ExecSyncResponse: ...

class ImageServiceStub:
    ImageStatus: grpc.UnaryUnaryMultiCallable[pb.ImageStatusRequest, pb.ImageStatusResponse]
    def __init__(self, channel: grpc.Channel) -> None: ...

class ImageServiceServicer:
    def ImageStatus(
        self, request: pb.ImageStatusRequest, context: grpc.ServicerContext
    ) -> pb.ImageStatusResponse: ...
