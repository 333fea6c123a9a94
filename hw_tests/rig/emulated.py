"""Pure: the SR-IOV NICs of the emulated machine, as QEMU is told of them and as the guest finds them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EmulatedNic:
    """One igb, behind a root port of its own: without that it shows no VFs."""

    number: int  # from 1

    @property
    def id(self) -> str:
        return f"nic{self.number}"

    @property
    def mac(self) -> str:
        return f"52:54:00:82:57:6{self.number}"

    @property
    def root_port(self) -> dict[str, str]:
        """A device's properties, for -device or device_add."""
        number = str(self.number)
        return {"driver": "pcie-root-port", "id": f"rp{number}", "chassis": number, "slot": number}

    @property
    def netdev(self) -> dict[str, str]:
        """Its end of the wire, which all NICs share."""
        return {"type": "hubport", "id": f"wire{self.number}", "hubid": "0"}

    @property
    def device(self) -> dict[str, str]:
        """The same at the machine's start as when it is plugged in again. Without a boot ROM the BIOS is
        done sooner."""
        place = {"netdev": self.netdev["id"], "bus": self.root_port["id"]}
        return {"driver": "igb", "id": self.id, **place, "romfile": "", "mac": self.mac}


NICS = (EmulatedNic(1), EmulatedNic(2))
