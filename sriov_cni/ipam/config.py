"""Pure: the `ipam` object of a network config as a typed value for each kind of IPAM, and its answer.

`host-local` and `static` are served here, with the same meaning as the reference plugins for every config
that they take and that works; unknown keys are errors. What differs: an IPv4 network or broadcast address is
never given out, even from an explicit range. Any other type is the name of an executable, and its options
are its own.
"""

import ipaddress
from collections.abc import Callable, Mapping, Sequence, Set

import msgspec

from sriov_cni.environment import Command, Environment
from sriov_cni.fields import Fields, as_fields, list_items
from sriov_cni.ipam.ranges import Address, AddressRange, Network, RangeSet, parse_address
from sriov_cni.spec import Dns, IpConfig, Route, parse_plugin_name
from vf_manager.errors import InvalidInput

_RANGE_KEYS = frozenset({"subnet", "rangeStart", "rangeEnd", "gateway"})
_HOST_LOCAL_KEYS = _RANGE_KEYS | {"type", "ranges", "routes", "resolvConf", "dataDir", "probe"}
_STATIC_KEYS = frozenset({"type", "addresses", "routes", "dns", "probe"})
_ROUTE_KEYS = frozenset({"dst", "gw", "mtu", "advmss", "priority", "table", "scope"})
_DNS_KEYS = frozenset({"nameservers", "domain", "search", "options"})
_U32 = 2**32 - 1
_MOST_ENTRIES = 1000  # of what is compared each with each


class HostLocalConf(msgspec.Struct, frozen=True, kw_only=True):
    """One address per range set. `data_dir` None: the default directory."""

    range_sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...] = ()
    resolv_conf: str | None = None
    data_dir: str | None = None


class StaticConf(msgspec.Struct, frozen=True, kw_only=True):
    addresses: tuple[IpConfig, ...]
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


class DelegateConf(msgspec.Struct, frozen=True, kw_only=True):
    """An IPAM that is another executable. `config`: all that was on stdin of the call, and `env` the call's
    variables: both are handed on (CNI SPEC.md, section 4), and both are what a later DEL needs."""

    kind: str
    config: str = "{}"
    env: Environment = Environment(command=Command.ADD)


Valid = Callable[[], Set[tuple[str, str]]]  # (container id, ifname) of those that may hold addresses
IpamConf = HostLocalConf | StaticConf | DelegateConf


class IpamResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an IPAM gives: addresses (their `interface` is not set), routes and name servers."""

    ips: tuple[IpConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


class IpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a call says besides the `ipam` object. It may ask for addresses in runtimeConfig, args.cni and
    CNI_ARGS; a delegate gets all of it (`config`, `env`)."""

    runtime: Fields = Fields({}, "runtimeConfig")
    cni_args: Fields = Fields({}, "args.cni")
    env_args: Mapping[str, str] = {}
    config: str = "{}"
    env: Environment = Environment(command=Command.ADD)


def parse_ipam(ipam: Fields | None, request: IpRequest) -> IpamConf | None:
    """None when there is no IPAM: no `ipam`, or an empty one as in configs that switch it off."""
    if ipam is None or not ipam.values or ipam.values == {"type": ""}:
        return None
    match kind := ipam.required_string("type"):
        case "host-local":
            return _parse_host_local(ipam, request)
        case "static":
            return _parse_static(ipam, request)
        case _:
            parse_plugin_name(kind, ipam.path_of("type"))
            return DelegateConf(kind=kind, config=request.config, env=request.env)


def salvage_ipam(value: object, config: str = "{}", env: Environment | None = None) -> IpamConf | None:
    """For DEL and GC: what it takes to release, from a config that may be wrong in every other way."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str) or kind == "static":
        return None
    try:
        if kind != "host-local":
            request = IpRequest(config=config, env=env or Environment(command=Command.DEL))
            return parse_ipam(Fields(value, "ipam"), request)
        return HostLocalConf(range_sets=(), data_dir=_parse_path(Fields(value, "ipam"), "dataDir"))
    except InvalidInput:
        return HostLocalConf(range_sets=()) if kind == "host-local" else None


def parse_dns(dns: Fields) -> Dns:
    dns.refuse_unknown(_DNS_KEYS)
    return dns_of(dns)


def dns_of(dns: Fields) -> Dns:
    """Of a config or of a plugin's result; without the keys that are not known here."""
    return Dns(
        nameservers=dns.strings("nameservers"),
        domain=dns.string("domain") or "",
        search=dns.strings("search"),
        options=dns.strings("options"),
    )


def _parse_host_local(ipam: Fields, request: IpRequest) -> HostLocalConf:
    ipam.refuse_unknown(_HOST_LOCAL_KEYS)
    sets = _runtime_ranges(request.runtime) + _single_range(ipam) + _ranges(ipam, "ranges")
    if not sets:
        raise InvalidInput(
            ipam.path_of("ranges"), ipam.values.get("ranges"), "at least one range (or a subnet)"
        )
    _refuse_too_many("ipam.ranges", [span for ranges in sets for span in ranges])
    _refuse_overlaps(sets)
    return HostLocalConf(
        range_sets=_assign_requests(sets, _requested_addresses(request)),
        routes=_parse_routes(ipam),
        resolv_conf=_parse_path(ipam, "resolvConf"),
        data_dir=_parse_path(ipam, "dataDir"),
    )


Ranges = tuple[AddressRange, ...]


def _runtime_ranges(runtime: Fields) -> list[Ranges]:
    return _ranges(runtime, "ipRanges")


def _single_range(ipam: Fields) -> list[Ranges]:
    """The older form: one range spelled out in the `ipam` object itself."""
    if ipam.string("subnet") is not None:
        return [(_parse_range(ipam),)]
    for key in ("rangeStart", "rangeEnd", "gateway"):
        if ipam.string(key) is not None:
            raise InvalidInput(ipam.path_of(key), ipam.values[key], "the key subnet beside it")
    return []


def _ranges(fields: Fields, key: str) -> list[Ranges]:
    return [_parse_set(value, path) for value, path in fields.items(key)]


def _parse_set(value: object, path: str) -> Ranges:
    ranges = []
    for item, where in list_items(value, path):
        fields = as_fields(item, where)
        fields.refuse_unknown(_RANGE_KEYS)
        ranges.append(_parse_range(fields))
    if not ranges:
        raise InvalidInput(path, value, "at least one range")
    if len({r.subnet.version for r in ranges}) > 1:
        raise InvalidInput(path, value, "ranges of one address family (a set gives one address)")
    return tuple(ranges)


def _parse_range(fields: Fields) -> AddressRange:
    subnet = _parse_subnet(fields)
    first = subnet.network_address + 1
    last = subnet.broadcast_address - (1 if subnet.version == 4 else 0)
    start = address_of(fields, "rangeStart", subnet) or first
    end = address_of(fields, "rangeEnd", subnet) or last
    for key, address in (("rangeStart", start), ("rangeEnd", end)):
        if address not in subnet:
            raise InvalidInput(fields.path_of(key), str(address), f"an address in {subnet}")
    if int(start) > int(end):
        raise InvalidInput(
            fields.path_of("rangeEnd"), str(end), f"an address not before rangeStart ({start})"
        )
    gateway = address_of(fields, "gateway", subnet) or first
    return AddressRange(subnet=subnet, start=start, end=end, gateway=gateway)


def _parse_subnet(fields: Fields) -> Network:
    text = fields.required_string("subnet")
    path = fields.path_of("subnet")
    subnet = parse_network(text, path)
    given = ipaddress.ip_interface(text).ip
    if given != subnet.network_address:
        raise InvalidInput(path, text, f"a network without host bits ({subnet})")
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise InvalidInput(path, text, "a network with room for pods (/30, /126 or larger)")
    return subnet


def address_of(fields: Fields, key: str, subnet: Network) -> Address | None:
    text = fields.string(key)
    if text is None:
        return None
    address = parse_address(text)
    if address is None or address.version != subnet.version:
        raise InvalidInput(fields.path_of(key), text, f"an IPv{subnet.version} address")
    return address


def _refuse_too_many(path: str, entries: Sequence[object]) -> None:
    if len(entries) > _MOST_ENTRIES:
        raise InvalidInput(path, f"{len(entries)} entries", f"at most {_MOST_ENTRIES}")


def _refuse_overlaps(sets: list[Ranges]) -> None:
    seen: list[AddressRange] = []
    for span in (span for ranges in sets for span in ranges):
        for other in seen:
            if span.overlaps(other):
                raise InvalidInput("ipam.ranges", str(span), f"a range that does not overlap with {other}")
        seen.append(span)


def _requested_addresses(request: IpRequest) -> list[tuple[Address, str]]:
    """With the path of each. All three places count, as in the reference plugin."""
    texts = [("CNI_ARGS IP", part) for part in _comma_list(request.env_args, "IP")]
    for fields in (request.cni_args, request.runtime):
        texts += [(f"{fields.path_of('ips')}[{i}]", text) for i, text in enumerate(fields.strings("ips"))]
    found: dict[Address, str] = {}
    for path, text in texts:
        address = parse_address(text.partition("/")[0])  # a prefix length may be there; the range's counts
        if address is None:
            raise InvalidInput(path, text, "an IP address")
        found.setdefault(address, path)
    _refuse_too_many("ips", [*found])
    return list(found.items())


def _assign_requests(sets: list[Ranges], requests: list[tuple[Address, str]]) -> tuple[RangeSet, ...]:
    """Each requested address goes to the range set that has it; one per set."""
    wanted: dict[int, Address] = {}
    for address, path in requests:
        index = next((i for i, ranges in enumerate(sets) if any(address in r for r in ranges)), None)
        if index is None:
            raise InvalidInput(path, str(address), f"an address in {'; '.join(_text(r) for r in sets)}")
        if int(address) in RangeSet(ranges=sets[index]).reserved():
            raise InvalidInput(
                path, str(address), "an address that is no gateway, network or broadcast address"
            )
        if index in wanted:
            raise InvalidInput(
                path, str(address), f"one address per range set, and {wanted[index]} is asked for"
            )
        wanted[index] = address
    return tuple(RangeSet(ranges=ranges, requested=wanted.get(i)) for i, ranges in enumerate(sets))


def _text(ranges: Ranges) -> str:
    return str(RangeSet(ranges=ranges))


def _parse_static(ipam: Fields, request: IpRequest) -> StaticConf:
    """Addresses: runtimeConfig.ips alone, else args.cni.ips alone, else the config's plus CNI_ARGS'."""
    ipam.refuse_unknown(_STATIC_KEYS)
    configured = [_parse_static_address(fields) for fields in ipam.children("addresses")]
    _refuse_too_many(ipam.path_of("addresses"), configured)
    dns = ipam.child("dns")
    addresses = (
        _addresses_in(request.runtime)
        or _addresses_in(request.cni_args)
        or _with_env_args(configured, request.env_args)
    )
    if not addresses:
        path = ipam.path_of("addresses")
        raise InvalidInput(path, ipam.values.get("addresses"), "at least one address")
    routes = _parse_routes(ipam)
    return StaticConf(addresses=tuple(addresses), routes=routes, dns=parse_dns(dns) if dns else Dns())


def _parse_static_address(fields: Fields) -> IpConfig:
    fields.refuse_unknown({"address", "gateway"})
    text = fields.required_string("address")
    network = parse_network(text, fields.path_of("address"))
    gateway = address_of(fields, "gateway", network)
    return IpConfig(address=canonical(text), gateway=str(gateway) if gateway else None)


def _addresses_in(fields: Fields) -> list[IpConfig]:
    found = []
    for index, text in enumerate(fields.strings("ips")):
        parse_network(text, f"{fields.path_of('ips')}[{index}]")
        found.append(IpConfig(address=canonical(text)))
    return found


def _with_env_args(configured: list[IpConfig], env_args: Mapping[str, str]) -> list[IpConfig]:
    """CNI_ARGS IP adds addresses; each GATEWAY goes to the addresses whose network it is in."""
    addresses = list(configured)
    for text in _comma_list(env_args, "IP"):
        parse_network(text, "CNI_ARGS IP")
        addresses.append(IpConfig(address=canonical(text)))
    networks = [ipaddress.ip_interface(ip.address).network for ip in addresses]
    for text in _comma_list(env_args, "GATEWAY"):
        gateway = parse_address(text)
        if gateway is None:
            raise InvalidInput("CNI_ARGS GATEWAY", text, "an IP address")
        for index, network in enumerate(networks):
            if gateway in network:
                addresses[index] = msgspec.structs.replace(addresses[index], gateway=str(gateway))
    return addresses


def _comma_list(env_args: Mapping[str, str], key: str) -> list[str]:
    parts = [part.strip() for part in env_args.get(key, "").split(",") if part.strip()]
    _refuse_too_many(f"CNI_ARGS {key}", parts)
    return parts


def _parse_routes(ipam: Fields) -> tuple[Route, ...]:
    return tuple(_parse_route(fields) for fields in ipam.children("routes"))


def _parse_route(fields: Fields) -> Route:
    fields.refuse_unknown(_ROUTE_KEYS)
    return route_of(fields)


def route_of(fields: Fields) -> Route:
    """Of a config or of a plugin's result; without the keys that are not known here."""
    dst = parse_network(fields.required_string("dst"), fields.path_of("dst"))
    gw = address_of(fields, "gw", dst)
    return Route(
        dst=str(dst),
        gw=str(gw) if gw else None,
        mtu=fields.integer("mtu", 0, _U32),
        advmss=fields.integer("advmss", 0, _U32),
        priority=fields.integer("priority", 0, _U32),
        table=fields.integer("table", 0, _U32),
        scope=fields.integer("scope", 0, 255),
    )


def parse_network(text: str, path: str) -> Network:
    """The network of an address with a prefix length; host bits are dropped."""
    address, slash, length = text.partition("/")
    if parse_address(address) is None or not slash or not length.isascii() or not length.isdigit():
        raise InvalidInput(path, text, "an address with prefix length like 10.0.0.5/24")
    try:
        return ipaddress.ip_interface(text).network
    except ValueError as error:
        raise InvalidInput(path, text, "an address with prefix length like 10.0.0.5/24") from error


def canonical(text: str) -> str:
    return str(ipaddress.ip_interface(text))


def _parse_path(fields: Fields, key: str) -> str | None:
    """An absolute path: the agent has no working directory that a config could mean."""
    text = fields.string(key)
    if text is not None and (not text.startswith("/") or "\0" in text or ".." in text.split("/")):
        raise InvalidInput(fields.path_of(key), text, "an absolute path without '..'")
    return text
