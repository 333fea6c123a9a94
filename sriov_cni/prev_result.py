"""Pure: the result that a runtime hands back (`prevResult`), in the form of any served version.

Read leniently: it was made by this or another plugin of the chain and is compared, not obeyed.
"""

from sriov_cni.fields import Fields
from sriov_cni.spec import Interface, IpConfig, Result, Route

_U32 = 2**32 - 1


def parse_prev_result(raw: Fields) -> Result:
    """Raises InvalidInput that names the key below `prevResult`. Unknown keys are the affair of others."""
    return Result(
        interfaces=tuple(_interface(item) for item in raw.children("interfaces")),
        ips=tuple(_ip(item) for item in raw.children("ips")),
        routes=tuple(_route(item) for item in raw.children("routes")),
    )


def _interface(raw: Fields) -> Interface:
    return Interface(
        name=raw.required_string("name"),
        mac=(raw.string("mac") or "").lower(),
        mtu=raw.integer("mtu", 0, _U32),
        sandbox=raw.string("sandbox") or "",
    )


def _ip(raw: Fields) -> IpConfig:
    return IpConfig(
        address=raw.required_string("address"),
        gateway=raw.string("gateway"),
        interface=raw.integer("interface", -1, _U32),
    )


def _route(raw: Fields) -> Route:
    return Route(dst=raw.required_string("dst"), gw=raw.string("gw"))
