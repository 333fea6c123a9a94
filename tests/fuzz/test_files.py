"""Files that something else wrote over: a record is read or named as corrupt, and the agent goes on."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sriov_cni.attachment import Attachment
from sriov_cni.chain_cache import ChainRecord, read_conflist
from sriov_cni.chain_conflist import parse_conflist
from sriov_cni.environment import Command, Environment
from sriov_cni.fields import Fields
from sriov_cni.ipam.config import HostLocalConf, IpRequest, parse_ipam
from sriov_cni.ipam.host_local import HostLocal
from sriov_cni.ipam.lease_dir import LeaseDir
from tests.cni_world import IPAM, PF0, World, conf_of, result_of
from tests.fuzz.calls import error_in
from tests.fuzz.mutations import as_json, damaged, mutated
from tests.fuzz.pace import keep_trying, no_hang, round_of_examples
from tests.fuzz.test_parsing import CONFLIST
from vf_manager.apply import CreatedVfs
from vf_manager.errors import CorruptRecord, SriovError
from vf_manager.kernel.api import NetnsId
from vf_manager.model import IfName, PciAddress
from vf_manager.records import RecordStore

FULL = {"vlan": 100, "mac": "02:00:00:00:00:99", "mtu": 1400, "trust": "on", "promisc": "on"}

LEASE_FILES = (
    *("10.56.0.2", "10.56.0.3", "10.56.0.999", "10.57.0.1", "fd00:56::2", "fd00:56::", "::", "...", "a:b"),
    *("last_reserved_ip.0", "last_reserved_ip.1", "lock", ".sriov-underlay.new", "x"),
)


@contextmanager
def a_folder(parent: Path) -> Iterator[Path]:
    path = parent / "f"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def attachment_records(folder: Path) -> tuple[dict[str, Any], ...]:
    """As a real ADD writes them: with everything, with nothing, half-done."""
    world = World(folder)
    for container, options in (("c1", FULL), ("c2", {"ipam": {}})):
        device = world.vfs(PF0)[0 if container == "c1" else 1]
        result_of(world.call("ADD", container, world.new_pod(container), conf_of(device, **options)))
    found = [json.loads(path.read_bytes()) for path in sorted((folder / "attachments").glob("*.json"))]
    assert len(found) == 2
    return (*found, found[0] | {"state": "intent", "result": None})


def chain_record() -> dict[str, Any]:
    env = Environment(command=Command.ADD, container_id="c1", ifname=IfName("eth0"), netns="/run/netns/a")
    record = ChainRecord(
        network="pods",
        env=env,
        sandbox=NetnsId(4, 7),
        conflist=parse_conflist(json.dumps(CONFLIST).encode()),
        cni_version="1.0.0",
        runtime_config={"portMappings": []},
        result={"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/24"}]},
    )
    found: dict[str, Any] = json.loads(msgspec.json.encode(record))
    return found


def test_any_record(tmp_path: Path) -> None:
    kinds: dict[type[msgspec.Struct], tuple[dict[str, Any], ...]] = {
        Attachment: attachment_records(tmp_path / "world"),
        ChainRecord: (chain_record(),),
        CreatedVfs: (json.loads(msgspec.json.encode(CreatedVfs(pf=PciAddress(PF0), count=7))),),
    }
    stores = {kind: RecordStore(tmp_path / kind.__name__, kind) for kind in kinds}

    @round_of_examples
    @given(st.data(), st.sampled_from(list(kinds)))
    def prop(data: st.DataObject, kind: type[msgspec.Struct]) -> None:
        content = data.draw(damaged(as_json(mutated(kinds[kind]))) | st.binary(max_size=60))
        path = tmp_path / kind.__name__ / "c1@net1.json"
        path.write_bytes(content)
        message = str(path)
        with no_hang():
            try:
                read = stores[kind].read("c1@net1")
            except CorruptRecord as e:
                read, message = None, str(e)
        assert str(path) in message
        assert path.read_bytes() == content
        assert read is None or isinstance(read, kind)

    keep_trying(0.08, prop)


def test_an_agent_over_damaged_records(tmp_path: Path) -> None:
    """It starts and serves, or says which file is corrupt; and every other VF is served all the same."""
    bases = attachment_records(tmp_path / "world")

    @round_of_examples
    @given(damaged(as_json(mutated(bases))), st.sampled_from(["DEL", "ADD", "CHECK", "GC", "restart"]))
    def prop(content: bytes, what: str) -> None:
        with a_folder(tmp_path) as folder, no_hang():
            world = World(folder)
            pod, config = world.new_pod("c1"), conf_of(world.vfs(PF0)[0], **FULL)
            result_of(world.call("ADD", "c1", pod, config))
            path = folder / "attachments" / "c1@net1.json"
            path.write_bytes(content)
            if what == "restart":
                with suppress(SriovError):
                    world.start_agent()
                    world.attacher.recover()
                return
            more: dict[str, Any] = {"prevResult": {}, "cni.dev/valid-attachments": []}
            conf = config | {key: value for key, value in more.items() if what in ("CHECK", "GC")}
            conf.pop("prevResult" if what == "GC" else "cni.dev/valid-attachments", None)
            reply = world.call(what, "c1", pod, conf)
            if reply.exit_code:
                error_in(reply)
            other = conf_of(world.vfs(PF0)[3])
            reply = world.call("ADD", "c9", world.new_pod("c9"), other)
            if reply.exit_code:
                error_in(reply)

    keep_trying(0.1, prop)


def test_any_lease_directory(tmp_path: Path) -> None:
    conf = parse_ipam(Fields(IPAM, "ipam"), IpRequest())
    assert isinstance(conf, HostLocalConf)
    names = st.sampled_from(LEASE_FILES)
    contents = st.sampled_from([b"c1\r\nnet1", b"c1", b"", b"fd00:56::9", b"10.56.0.254", b"::ffff:1.2.3.4"])

    @round_of_examples
    @given(st.dictionaries(names, contents | st.binary(max_size=5000), max_size=6), names)
    def prop(files: dict[str, bytes], folder_name: str) -> None:
        with a_folder(tmp_path) as folder, no_hang():
            where = folder / "net"
            where.mkdir()
            for name, content in files.items():
                (where / name).write_bytes(content)
            if folder_name not in files and folder_name != "lock":
                (where / folder_name).mkdir()
            ipam = HostLocal(
                conf, network="net", directory=LeaseDir(where, boot_id="boot-1", lock_timeout_s=1.0)
            )
            try:
                found = ipam.add("c1", "net1")
            except SriovError:
                found = None
            if found is not None:
                assert len(found.ips) == 2
                ipam.check("c1", "net1")
            with suppress(SriovError):
                ipam.status()
                ipam.delete("c1", "net1")
                ipam.keep_only(lambda: set())

    keep_trying(0.04, prop)


def test_a_conflist_that_is_no_file(tmp_path: Path) -> None:
    """Whatever the path names, it is an error that names the path."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "gone", Path("/dev/null"), Path("/dev/zero")):
        with no_hang():
            message = ""
            try:
                read_conflist(path)
            except SriovError as e:
                message = str(e)
            assert str(path) in message
