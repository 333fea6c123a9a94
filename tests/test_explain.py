"""`sriovctl explain` and `sriovctl validate`: what people and programs are told of pools and devices."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from typer.testing import CliRunner, Result

from device_plugin.explain import Explanation, PoolAnswer, Verdict, explain, explain_pf
from device_plugin.pools import Pool, assign
from device_plugin.selectors import Selector, parse_selector
from node_agent.cli import app
from tests.cni_world import PF0, PF1, new_kernel
from tests.fake_kernel import FakeKernel
from tests.test_pools import GUEST, TWO_PFS, inventories, pool_lists, unhurried
from vf_manager.model import Inventory, PciAddress, Vf

CONFIG = """
pools:
- name: fast
  select: {pfNames: ["ens0#0-3"]}
  vfs: {count: 7}
- name: slow
  resourcePrefix: example.com
  select: [{vendors: ["15b3"]}, {pfNames: [ens0], drivers: [igbvf]}]
- name: lone
  withoutPf: true
  select: {vendors: ["8086"]}
- name: none
  select: {drivers: [vfio-pci]}
"""
ESTABLISHED = '{"resourceList": [{"resourceName": "my-nic", "selectors": {"pfNames": ["ens0#0"]}}]}'


# -- pure


def explained(pools: list[Pool], inventory: Inventory, pci: str) -> dict[str, tuple[Verdict, str]]:
    (one,) = (one for one in explain(pools, "x.io", inventory) if one.pci == pci)
    return {answer.pool: (answer.verdict, answer.reason()) for answer in one.answers}


def pool(name: str, *select: Selector, **more: Any) -> Pool:
    return Pool(name=name, select=select or (Selector(),), **more)


@pytest.mark.parametrize(
    ("select", "said"),
    [
        (Selector(vendors=("15B3", "1137")), 'vendors ["15B3", "1137"], this device has 8086'),
        (Selector(devices=("1889",)), 'devices ["1889"], this device has 10ca'),
        (Selector(drivers=("vfio_pci",)), 'drivers ["vfio_pci"], this device has igbvf'),
        (
            Selector(pci_addresses=("0000:3b:00.1",)),
            'pciAddresses ["0000:3b:00.1"], this device has 0000:01:10.1',
        ),
        (
            Selector(pf_names=("ens1f1", "ens1f0#0,2-3")),
            'pfNames ["ens1f1", "ens1f0#0,2-3"], this device is VF 1 of ens1f0 (0000:01:00.0)',
        ),
        (
            Selector(root_devices=("0000:02:00.0",)),
            'rootDevices ["0000:02:00.0"], this device is VF 1 of ens1f0 (0000:01:00.0)',
        ),
        (Selector(acpi_indexes=(7,)), 'acpiIndexes ["7"], this device has none'),
        (Selector(link_types=("infiniband",)), 'linkTypes ["infiniband"], this device has none'),
        (Selector(p_keys=("0x8001",)), 'pKeys ["0x8001"], this device has none'),
        (Selector(numa_nodes=(0, 1)), 'numaNodes ["0", "1"], this device has none'),
        (Selector(pcie_roots=("pci0000:3a",)), 'pcieRoots ["pci0000:3a"], this device has none'),
        (Selector(is_rdma=True), "isRdma true, this device has none"),
        (
            Selector(vendors=("15b3",), drivers=("iavf",)),
            'vendors ["15b3"], this device has 8086; drivers ["iavf"], this device has igbvf',
        ),
    ],
)
def test_the_key_that_refuses_is_named_with_what_it_wants_and_what_there_is(
    select: Selector, said: str
) -> None:
    found = explained([pool("fast", select)], TWO_PFS, "0000:01:10.1")
    assert found == {"fast": (Verdict.REFUSED, said)}


def test_each_of_several_selectors_has_a_reason() -> None:
    pools = [pool("fast", Selector(vendors=("15b3",)), Selector(is_rdma=True))]
    assert explained(pools, TWO_PFS, "0000:01:10.1")["fast"][1] == (
        'selector 1: vendors ["15b3"], this device has 8086; selector 2: isRdma true, this device has none'
    )


def test_rdma_devices_are_named_where_none_is_wanted() -> None:
    vf = Vf(pci=PciAddress("0000:09:00.0"), vendor="15b3", device="1018", rdma_devices=("mlx5_0",))
    pools = [pool("fast", Selector(vendors=("15b3",), is_rdma=False), without_pf=True)]
    found = explained(pools, Inventory(lone=(vf,)), vf.pci)
    assert found["fast"] == (Verdict.REFUSED, "isRdma false, this device has mlx5_0")


def test_with_and_without_a_pf() -> None:
    pools = [pool("with"), pool("without", Selector(vendors=("8086",)), without_pf=True)]
    assert explained(pools, GUEST, "0000:01:10.1") == {
        "with": (Verdict.HAS, ""),
        "without": (
            Verdict.REFUSED,
            "withoutPf true, this device is VF 1 of ens1f0 (0000:01:00.0)",
        ),
    }
    assert explained(pools, GUEST, "0000:07:00.0") == {
        "with": (Verdict.REFUSED, "withoutPf false, this device has no PF on this node"),
        "without": (Verdict.HAS, ""),
    }
    assert explained(pools, GUEST, "0000:08:00.0")["without"][0] == Verdict.UNUSABLE


def test_a_pool_that_comes_first() -> None:
    pools = [pool("a"), pool("b"), pool("c", shared=True)]
    comes_first = "pool a comes first, and not both of them are shared"
    assert explained(pools, TWO_PFS, "0000:01:10.1") == {
        "a": (Verdict.HAS, ""),
        "b": (Verdict.TAKEN, comes_first),
        "c": (Verdict.TAKEN, comes_first),
    }


def test_a_pf_says_where_its_vfs_are() -> None:
    first = TWO_PFS.pfs[0]
    pools = [
        pool("a", Selector(pf_names=("ens1f0#0-2",)), shared=True),
        pool("b", Selector(pf_names=("ens1f0#2-4",)), shared=True),
    ]
    assert explain_pf(pools, first).reason() == (
        "a PF is never given to a pod, its VFs are: 2 in pool a, 1 in pool a, b, 2 in pool b, 2 in no pool"
    )
    bare = msgspec.structs.replace(first, vfs=(), total_vfs=63)
    assert "it has none now, and may have 63" in explain_pf(pools, bare).reason()


@unhurried
@given(pool_lists, inventories)
def test_what_is_explained_is_what_is_done(pools: list[Pool], inventory: Inventory) -> None:
    """For every device and every pool; and a device that is in no pool has a reason."""
    assigned = assign(pools, inventory)
    explanations = explain(pools, "x.io", inventory)
    assert sorted(one.pci for one in explanations) == sorted(vf.pci for vf in inventory.vfs())
    for one in explanations:
        assert one.pools == tuple(name for name, vfs in assigned.items() if one.pci in {vf.pci for vf in vfs})
        assert [answer.pool for answer in one.answers] == [pool.name for pool in pools]
        for answer, pool_ in zip(one.answers, pools, strict=True):
            check_answer(answer, pool_, one, inventory)
        assert bool(one.reason()) == (not one.pools)
        if one.unusable is None and not one.pools:
            assert {answer.verdict for answer in one.answers} <= {Verdict.REFUSED}


def check_answer(answer: PoolAnswer, pool_: Pool, one: Explanation, inventory: Inventory) -> None:
    vf = inventory.find_vf(one.pci)
    assert vf is not None
    pf = inventory.find_pf(vf.pf_pci or "")
    selected = pool_.without_pf in (None, pf is None) and any(
        parse_selector(select).takes(pf, vf) for select in pool_.select
    )
    assert selected == (answer.verdict is not Verdict.REFUSED)
    assert (answer.pool in one.pools) == (answer.verdict is Verdict.HAS)
    assert (answer.verdict is Verdict.REFUSED) == bool(answer.refusals) == all(answer.refusals or [()])
    assert (answer.taken_by is not None) == (answer.verdict is Verdict.TAKEN)
    assert one.unusable is not None or answer.verdict is not Verdict.UNUSABLE
    assert bool(answer.reason()) == (answer.verdict is not Verdict.HAS)


@unhurried
@given(pool_lists, inventories)
def test_a_pf_counts_each_of_its_vfs_once(pools: list[Pool], inventory: Inventory) -> None:
    for pf in inventory.pfs:
        assert sum(explain_pf(pools, pf).vfs.values()) == len(pf.vfs)


# -- sriovctl explain


class Sriovctl:
    """The command over an in-memory kernel, with a config file of the agent and one of the established
    device plugin."""

    def __init__(self, folder: Path) -> None:
        self.kernel = new_kernel()
        self.folder = folder
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG)
        (folder / "config.json").write_text(ESTABLISHED)

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, obj=self.kernel)

    def explain(self, *arguments: str) -> str:
        done = self("explain", "--config", str(self.config), *arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    def vf(self, index: int) -> PciAddress:
        return self.kernel.functions[PF0].function.virtfns[index][1]


@pytest.fixture
def sriovctl(tmp_path: Path) -> Sriovctl:
    return Sriovctl(tmp_path)


def squeezed(text: str) -> list[str]:
    return [re.sub(" +", " ", line).strip() for line in text.splitlines()]


def test_one_device(sriovctl: Sriovctl) -> None:
    assert squeezed(sriovctl.explain(sriovctl.vf(5))) == [
        f"{sriovctl.vf(5)} VF 5 of ens0 ({PF0})",
        "8086:10ca, driver igbvf, NUMA node 0",
        "in pool slow",
        "pool resource",
        f'fast sriov-underlay.io/fast pfNames ["ens0#0-3"], this device is VF 5 of ens0 ({PF0})',
        "slow example.com/slow has it",
        f"lone sriov-underlay.io/lone withoutPf true, this device is VF 5 of ens0 ({PF0})",
        'none sriov-underlay.io/none drivers ["vfio-pci"], this device has igbvf',
    ]


def test_an_address_as_lspci_writes_it(sriovctl: Sriovctl) -> None:
    short = sriovctl.vf(5).removeprefix("0000:")
    assert sriovctl.explain(short) == sriovctl.explain(sriovctl.vf(5).upper())


def test_a_device_that_the_host_needs(sriovctl: Sriovctl) -> None:
    sriovctl.kernel.add_lone("0000:06:00.0", "ens6")
    sriovctl.kernel.uppers_of["ens6"] = ("br0",)
    lines = squeezed(sriovctl.explain("0000:06:00.0"))
    assert lines[0] == "0000:06:00.0 NIC without PF"
    assert lines[2:4] == [
        "in no pool",
        "not for pods: br0 of the host stands on its interface ens6",
    ]
    assert "lone sriov-underlay.io/lone it would have the device" in lines


def test_a_pf(sriovctl: Sriovctl) -> None:
    assert squeezed(sriovctl.explain(PF0)) == [
        f"{PF0} PF ens0 ({PF0})",
        "a PF is never given to a pod, its VFs are: 4 in pool fast, 3 in pool slow",
    ]


def test_all_devices(sriovctl: Sriovctl) -> None:
    title, *lines, last, last_but_one = squeezed(sriovctl.explain())
    assert title == "pci device pool why in none"
    assert len(lines) == 14
    assert lines[0] == f"{sriovctl.vf(0)} VF 0 of ens0 ({PF0}) fast"
    assert lines[6] == f"{sriovctl.vf(6)} VF 6 of ens0 ({PF0}) slow"
    assert lines[7].startswith(f"0000:02:10.0 VF 0 of ens1 ({PF1}) - fast: pfNames [")
    assert last == "Pool lone has no device: sriov-underlay.io/lone is 0 on this node."
    assert last_but_one == "Pool none has no device: sriov-underlay.io/none is 0 on this node."


def test_a_node_without_devices(sriovctl: Sriovctl) -> None:
    sriovctl.kernel = FakeKernel()
    assert sriovctl.explain().splitlines()[0] == "This node has no VF, and no NIC that may be one."


def test_no_pools(sriovctl: Sriovctl) -> None:
    sriovctl.config.write_text("pools: []")
    assert squeezed(sriovctl.explain(sriovctl.vf(0)))[-2:] == ["in no pool", "there are no pools"]


def test_json_of_one_and_of_all(sriovctl: Sriovctl) -> None:
    one = json.loads(sriovctl.explain(sriovctl.vf(5), "--json"))
    assert (one["pools"], one["place"], one["reason"]) == (["slow"], f"VF 5 of ens0 ({PF0})", "")
    assert one["answers"][0] == {
        "pool": "fast",
        "resource": "sriov-underlay.io/fast",
        "verdict": "refused",
        "refusals": [[{"key": "pfNames", "wanted": ["ens0#0-3"], "actual": f"VF 5 of ens0 ({PF0})"}]],
        "takenBy": None,
    }
    assert one in json.loads(sriovctl.explain("--json"))["devices"]
    pf = json.loads(sriovctl.explain(PF0, "--json"))
    assert (pf["totalVfs"], pf["vfs"]) == (7, {"fast": 4, "slow": 3})


def test_an_established_config(sriovctl: Sriovctl) -> None:
    path = str(sriovctl.folder / "config.json")
    done = sriovctl("explain", sriovctl.vf(0), "--device-plugin-config", path, "--resource-prefix", "a.io")
    assert squeezed(done.stdout)[-1] == "my-nic a.io/my-nic has it"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["0000:09:00.0"], 1, "there is no PCI device 0000:09:00.0 on this node"),
        (["ens0"], 1, "PCI_ADDRESS: 'ens0' is not valid; expected a PCI address like 0000:3b:02.1"),
        (
            ["0000:00:1f.2"],
            1,
            "0000:00:1f.2 (8086:a352, driver ahci) is no VF of a NIC, nor a NIC that may be one:"
            " no pool can have it",
        ),
        (["--resource-prefix", "a.io"], 2, "--resource-prefix: 'a.io' is not valid; expected"),
        (["--device-plugin-config", "x"], 2, "--config: "),
    ],
)
def test_what_cannot_be_explained(sriovctl: Sriovctl, arguments: list[str], code: int, said: str) -> None:
    lone = sriovctl.kernel.add_lone("0000:00:1f.2", "none")
    found = sriovctl.kernel.functions[lone]
    found.function = msgspec.structs.replace(found.function, device="a352", driver="ahci", lone=False)
    done = sriovctl("explain", "--config", str(sriovctl.config), *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith(f"sriovctl: {said}")


# -- sriovctl validate


def test_a_right_config_is_told_as_it_is_understood(sriovctl: Sriovctl) -> None:
    with sriovctl.config.open("a") as file:
        file.write("networks: [{name: blue, pools: [fast, slow]}]\nfallback: /etc/cni/fallback.conflist\n")
    done = sriovctl("validate", str(sriovctl.config))
    assert done.exit_code == 0
    assert squeezed(done.stdout) == [
        f"{sriovctl.config}: no mistakes",
        "pool resource variables in containers VFs to make also takes",
        "fast sriov-underlay.io/fast PCIDEVICE_SRIOV_UNDERLAY_IO_FAST 7 per PF - pfNames ens0#0-3",
        "slow example.com/slow PCIDEVICE_EXAMPLE_COM_SLOW - - vendors 15b3 or pfNames ens0, drivers igbvf",
        "lone sriov-underlay.io/lone PCIDEVICE_SRIOV_UNDERLAY_IO_LONE - withoutPf vendors 8086",
        "none sriov-underlay.io/none PCIDEVICE_SRIOV_UNDERLAY_IO_NONE - - drivers vfio-pci",
        "network blue for pools fast, slow",
        "pods without a VF: /etc/cni/fallback.conflist",
    ]


@pytest.mark.parametrize("option", [[], ["--device-plugin-config"]])
def test_an_established_config_is_told_as_it_is_understood(sriovctl: Sriovctl, option: list[str]) -> None:
    done = sriovctl("validate", *option, str(sriovctl.folder / "config.json"), "--resource-prefix", "a.io")
    assert done.exit_code == 0
    assert squeezed(done.stdout)[2] == (
        "my-nic a.io/my-nic PCIDEVICE_A_IO_MY_NIC, PCIDEVICE_A_IO_MY-NIC - - pfNames ens0#0"
    )


def test_a_config_for_many_nodes_is_told_as_it_is_for_one(sriovctl: Sriovctl) -> None:
    sriovctl.config.write_text(
        "{pools: [], nodes: [{match: {node: 'gpu-*'}, pools: [{name: a, select: {pfNames: [ens0]}}]}]}"
    )
    validate = ("validate", str(sriovctl.config), "--node-name")
    assert squeezed(sriovctl(*validate, "web-1").stdout)[1:] == ["no pools: nothing is advertised"]
    assert squeezed(sriovctl(*validate, "gpu-1").stdout)[2].startswith("a sriov-underlay.io/a ")
    here = sriovctl("explain", sriovctl.vf(0), "--config", str(sriovctl.config), "--node-name", "gpu-1")
    assert squeezed(here.stdout)[-1] == "a sriov-underlay.io/a has it"


def test_every_mistake_is_told(sriovctl: Sriovctl) -> None:
    sriovctl.config.write_text("pools: [{name: a, select: {pfNames: [x#]}}, {name: '-', select: {}}]")
    done = sriovctl("validate", str(sriovctl.config))
    assert (done.exit_code, done.stdout) == (2, "")
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == [
        "pools[0].select.pfNames[0]",
        "pools[1].name",
    ]


def test_a_file_that_is_not_there_or_no_text(sriovctl: Sriovctl) -> None:
    done = sriovctl("validate", "/nowhere")
    assert (done.exit_code, done.stderr) == (2, "sriovctl: /nowhere: No such file or directory\n")
    sriovctl.config.write_bytes(b"\xff")
    done = sriovctl("validate", str(sriovctl.config))
    assert done.exit_code == 2
    assert "can't decode byte 0xff" in done.stderr


def test_an_empty_list_of_pools(sriovctl: Sriovctl) -> None:
    sriovctl.config.write_text("pools: []")
    done = sriovctl("validate", str(sriovctl.config))
    assert done.stdout.splitlines()[1] == "no pools: nothing is advertised"
