"""Types of podresources_v1_pb2_grpc, which protoc generates without any. Written by hand."""

import grpc

from device_plugin.api import podresources_v1_pb2 as pb

class PodResourcesListerStub:
    List: grpc.UnaryUnaryMultiCallable[pb.ListPodResourcesRequest, pb.ListPodResourcesResponse]
    GetAllocatableResources: grpc.UnaryUnaryMultiCallable[
        pb.AllocatableResourcesRequest, pb.AllocatableResourcesResponse
    ]
    Get: grpc.UnaryUnaryMultiCallable[pb.GetPodResourcesRequest, pb.GetPodResourcesResponse]
    def __init__(self, channel: grpc.Channel) -> None: ...

class PodResourcesListerServicer:
    def List(
        self, request: pb.ListPodResourcesRequest, context: grpc.ServicerContext
    ) -> pb.ListPodResourcesResponse: ...
    def GetAllocatableResources(
        self, request: pb.AllocatableResourcesRequest, context: grpc.ServicerContext
    ) -> pb.AllocatableResourcesResponse: ...
    def Get(
        self, request: pb.GetPodResourcesRequest, context: grpc.ServicerContext
    ) -> pb.GetPodResourcesResponse: ...

def add_PodResourcesListerServicer_to_server(
    servicer: PodResourcesListerServicer, server: grpc.Server
) -> None: ...
