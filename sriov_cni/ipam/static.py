"""Pure: addresses written in the config or asked for by the call. Nothing is held, so nothing is released."""

from sriov_cni.ipam.config import IpamResult, StaticConf, Valid


class Static:
    def __init__(self, conf: StaticConf) -> None:
        self._conf = conf

    def add(self, container_id: str, ifname: str) -> IpamResult:
        return IpamResult(ips=self._conf.addresses, routes=self._conf.routes, dns=self._conf.dns)

    def delete(self, container_id: str, ifname: str) -> None:
        pass

    def check(self, container_id: str, ifname: str) -> None:
        pass

    def keep_only(self, valid: Valid) -> None:
        pass

    def status(self) -> None:
        pass
