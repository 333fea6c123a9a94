"""Pure: what a list and a watch answer, from raw JSON into the few fields that are kept.

Nothing else of an object is ever made: no dicts, none of the client's types, no managedFields. The
resourceVersion is not kept either, so that objects which differ in nothing that matters here are equal.
"""

from collections.abc import Hashable, Iterable, Iterator
from enum import StrEnum
from functools import lru_cache
from http import HTTPStatus
from sys import intern
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from node_agent.api_errors import ApiServerError
from node_agent.kube.kinds import Held, Kind, kept_annotations, type_of
from sriov_cni.in_pod.objects import Container, EndpointSlice, Meta, Pod, SliceEndpoint

T = TypeVar("T", bound=Hashable)


class TooLong(ApiServerError):
    """Longer than what this process is willing to hold."""


class Garbled(ApiServerError):
    """Not what the API says that it is."""


class EventType(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


class ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct, frozen=True):
    metadata: ListMeta
    items: tuple[msgspec.Raw, ...] | None = None


class WatchEvent(msgspec.Struct, frozen=True):
    type: EventType
    object: msgspec.Raw


class Identity(msgspec.Struct, frozen=True, rename="camel"):
    """What every object has, also one that is not understood otherwise, and a bookmark."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class _Identified(msgspec.Struct, frozen=True):
    metadata: Identity


class _Status(msgspec.Struct, frozen=True):
    code: int = HTTPStatus.INTERNAL_SERVER_ERROR
    reason: str = ""
    message: str = ""


_PAGE = msgspec.json.Decoder(Page)
_EVENT = msgspec.json.Decoder(WatchEvent)
_IDENTIFIED = msgspec.json.Decoder(_Identified)
_STATUS = msgspec.json.Decoder(_Status)
_OBJECT: dict[Kind, msgspec.json.Decoder[Any]] = {k: msgspec.json.Decoder(type_of(k)) for k in Kind}


def parse_page(body: bytes | bytearray) -> Page:
    try:
        return _PAGE.decode(body)
    except msgspec.DecodeError as e:
        raise Garbled(f"the API server's list is none: {e}") from e


def parse_event(line: bytes | bytearray) -> WatchEvent:
    try:
        return _EVENT.decode(line)
    except msgspec.DecodeError as e:
        raise Garbled(f"the API server's watch event is none: {e}") from e


def parse_identity(raw: msgspec.Raw) -> Identity:
    try:
        return _IDENTIFIED.decode(raw).metadata
    except msgspec.DecodeError as e:
        raise Garbled(f"the API server sends an object that says not which it is: {e}") from e


def parse_status(raw: msgspec.Raw) -> ApiServerError:
    """Of an ERROR event."""
    try:
        status = _STATUS.decode(raw)
    except msgspec.DecodeError as e:
        return Garbled(f"the API server ends the watch and does not say why: {e}")
    return ApiServerError(f"the API server ends the watch: {status.code} {status.message}", status.code)


def parse_object(kind: Kind, raw: msgspec.Raw) -> tuple[Held, str]:
    """And its resourceVersion. Raises msgspec.DecodeError if a field is missing or not what it should be."""
    found: Held = _OBJECT[kind].decode(raw)
    meta = Meta(
        name=found.metadata.name,
        namespace=intern(found.metadata.namespace),
        uid=found.metadata.uid,
        labels={intern(key): intern(value) for key, value in found.metadata.labels.items()},
        annotations=kept_annotations(kind, found.metadata),
    )
    return _slim(found, meta), found.metadata.resource_version


def _slim(found: Held, meta: Meta) -> Held:
    """What many objects have alike is held once: half of the memory of a large cluster."""
    match found:
        case Pod(spec=spec):
            lean = replace(
                spec,
                node_name=intern(spec.node_name),
                containers=_with_ports(spec.containers),
                init_containers=_with_ports(spec.init_containers),
            )
            return replace(found, metadata=meta, spec=lean)
        case EndpointSlice(endpoints=endpoints):
            return replace(found, metadata=meta, endpoints=tuple(map(_slim_endpoint, endpoints or ())))
        case _:
            return replace(found, metadata=meta)


def _slim_endpoint(endpoint: SliceEndpoint) -> SliceEndpoint:
    return replace(
        endpoint,
        conditions=_shared(endpoint.conditions),
        node_name=_shared(endpoint.node_name),
        zone=_shared(endpoint.zone),
    )


def _with_ports(containers: tuple[Container, ...]) -> tuple[Container, ...]:
    return _shared(tuple(container for container in containers if container.ports))


@lru_cache(4096)
def _share(one: Hashable) -> Hashable:
    return one


def _shared(one: T) -> T:
    """The first one that is equal to it."""
    return cast(T, _share(one))


def join_chunks(chunks: Iterable[bytes], most: int) -> bytearray:
    whole = bytearray()
    for chunk in chunks:
        whole += chunk
        if len(whole) > most:
            raise TooLong(f"the API server's answer is longer than {most} bytes")
    return whole


def split_lines(chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Lines that are not empty, without their end. What comes after the last end is half a line: dropped."""
    rest = bytearray()
    for chunk in chunks:
        *ends, tail = chunk.split(b"\n")
        for end in ends:
            if line := _bounded(rest + end, most):
                yield bytes(line)
            rest = bytearray()
        rest = _bounded(rest + tail, most)


def _bounded(line: bytearray, most: int) -> bytearray:
    if len(line) > most:
        raise TooLong(f"a line of the API server's watch is longer than {most} bytes")
    return line
