"""Pure: what drivers do differently, one row each. How to add a row: CONTRIBUTING.md."""

import msgspec


class Quirk(msgspec.Struct, frozen=True, kw_only=True):
    """How one PF driver differs from what the rest of the code expects."""

    unsupported: frozenset[str] = frozenset()  # fields of VfChange it answers with EOPNOTSUPP or EINVAL
    # The PF shows the MAC that the VF gave itself as if it were the administrative one, and refuses the VF
    # a MAC of its own from the moment a real administrative one is set until all zeros are written.
    mirrors_vf_mac: bool = False
    rates_need_link: bool = False  # it refuses rates, taking them away too, while the PF's link is down


_QUIRKS: dict[str, Quirk] = {
    # drivers/net/ethernet/intel/igb/igb_main.c: no ndo_set_vf_link_state; igb_ndo_set_vf_bw refuses any
    # min_tx_rate, and every rate without E1000_STATUS_LU; igb_set_vf_mac_addr (the VF's mailbox message)
    # fills what igb_ndo_get_vf_config shows.
    "igb": Quirk(
        unsupported=frozenset({"link_state", "min_tx_rate"}), mirrors_vf_mac=True, rates_need_link=True
    ),
}
_NONE = Quirk()


def quirk_of(driver: str | None) -> Quirk:
    return _QUIRKS.get(driver or "", _NONE)
