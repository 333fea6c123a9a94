"""Orchestrator: the guest's root disk and kernel, built once from the distribution's own archive.

What is built is keyed by a hash of everything it is made from, this file included, so it is built again
exactly when something changed. Building needs root (debootstrap); using the result does not.
"""

import hashlib
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hw_tests.rig.archive import Apt, apt_proxy
from hw_tests.rig.host import (
    PROJECT,
    RigError,
    cache_dir,
    cache_lock,
    release,
    require,
    run,
    say,
    step,
    which,
)

PACKAGES = (
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "dnsmasq-base",
    "ethtool",
    "iproute2",
    "iptables",
    "iputils-arping",
    "iputils-ping",
    "kmod",
    "make",
    "nftables",
    "pciutils",
    "podman",
    "procps",
    "python3",
    "runc",
    "tcpdump",
    "udev",
)
_KERNEL_PACKAGE = {"debian": "linux-image-amd64", "ubuntu": "linux-image-generic"}
_COMPONENTS = {"debian": "main", "ubuntu": "main,universe"}
# What no test on a virtual machine with two NICs can use; without it the image is less than half as big.
_PRUNED_MODULES = (
    "sound",
    "arch/x86/kvm",
    "drivers/ata",
    "drivers/cpufreq",
    "drivers/gpu",
    "drivers/media",
    "drivers/staging",
    "drivers/iio",
    "drivers/net/wireless",
    "drivers/scsi",
    "drivers/hwmon",
    "drivers/input",
    "drivers/isdn",
    "drivers/usb",
    "drivers/watchdog",
)
_PRUNED_ROOT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
    # Of containerd's programs, its own load generator and the shims of older runtimes.
    "usr/bin/containerd-shim",
    "usr/bin/containerd-shim-runc-v1",
    "usr/bin/containerd-stress",
)
# What stands between the kernel's start and a mounted root disk.
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
_IMAGES_KEPT = 2
_BUILT_BY = (Path(__file__), Path(__file__).with_name("archive.py"))


@dataclass(frozen=True)
class BaseImage:
    """A built guest: files in one folder of the cache, and what others need to know to fit in."""

    folder: Path
    kernel_release: str
    python_version: str
    python_magic: str

    @property
    def root_disk(self) -> Path:
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel.image"

    @property
    def busybox(self) -> Path:
        return self.folder / "busybox"

    @property
    def boot_modules(self) -> list[Path]:
        """In the order they have to be inserted in."""
        return sorted((self.folder / "boot-modules").iterdir())


def ensure_base_image() -> BaseImage:
    """The base image for this machine's release, from the cache or built now."""
    distribution, codename = release()
    made_from = [distribution, codename, *(path.read_text() for path in _BUILT_BY)]
    folder = cache_dir() / f"base-{_hash(made_from)}"
    with cache_lock("base"):
        if not folder.exists():
            if os.geteuid() == 0:
                _build(folder, distribution, codename)
                forget_old("base-*")
            else:
                _build_as_root(folder)
    facts = json.loads((folder / "facts.json").read_text())
    return BaseImage(folder=folder, **facts)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build_as_root(folder: Path) -> None:
    """The lock is held here, so the privileged half is told the folder and takes none."""
    if which("sudo") is None:
        raise RigError(
            "building the guest's root disk needs root: run 'python3 -m hw_tests.rig build' as root"
        )
    say("asking sudo for root, which debootstrap needs to build the guest's root disk")
    environment = [f"SRIOV_CACHE_DIR={cache_dir()}", f"PYTHONPATH={PROJECT}"]
    command = ["sudo", "env", *environment, sys.executable, "-m", "hw_tests.rig.image", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:
        raise RigError("building the guest's root disk failed; the reason is above")


def _build(folder: Path, distribution: str, codename: str) -> None:
    require("debootstrap", "mke2fs", "depmod", "apt-get", "dpkg-deb")
    for abandoned in cache_dir().glob("base-*.building"):
        shutil.rmtree(abandoned)
    work = folder.with_suffix(".building")
    root = work / "root"
    (work / "boot-modules").mkdir(parents=True)
    apt = Apt(work / "apt")
    with step("reading the archive's index"):
        apt.run("update")
    with step("fetching the kernel package"):
        kernel_release = _unpack_kernel(apt, work, _KERNEL_PACKAGE[distribution])
    with step(f"debootstrap {codename} (about a minute)"):
        _bootstrap(root, codename, apt.archive(codename), _COMPONENTS[distribution])
    with step("putting in the kernel's modules"):
        _install_modules(work, root, kernel_release)
    with step("compiling the standard library"):
        facts = _compile_standard_library(root)
    with step("writing the root disk"):
        _finish_root(root)
        make_disk(root, work / "root.ext4", label="root")
    (work / "facts.json").write_text(json.dumps({"kernel_release": kernel_release, **facts}))
    for leftover in ("root", "kernel", "apt"):
        shutil.rmtree(work / leftover)
    _give_to_caller(work)
    work.rename(folder)


def _bootstrap(root: Path, codename: str, archive: str, components: str) -> None:
    proxy = apt_proxy()
    options = ["--variant=minbase", f"--components={components}", f"--include={','.join(PACKAGES)}"]
    # A mount namespace of its own: an interrupted debootstrap leaves no /proc mounted in a half-made root.
    run(
        ["unshare", "--mount", "debootstrap", *options, codename, root, archive],
        env={"http_proxy": proxy} if proxy else None,
    )


def _unpack_kernel(apt: Apt, work: Path, package: str) -> str:
    kernel = work / "kernel"
    for deb in apt.download(package):
        run(["dpkg-deb", "-x", deb, kernel])
    images = sorted((kernel / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise RigError(f"package {package} holds {len(images)} kernels, expected one")
    kernel_release = images[0].name.removeprefix("vmlinuz-")
    config = (kernel / "boot" / f"config-{kernel_release}").read_text()
    (work / "kernel.image").write_bytes(_bootable(images[0].read_bytes(), config))
    return kernel_release


def _bootable(bzimage: bytes, config: str) -> bytes:
    """The kernel unpacked, if it is one that QEMU can start like that: emulated, unpacking takes 3 s.

    Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    """
    if "CONFIG_KERNEL_XZ=y" not in config or "CONFIG_PVH=y" not in config:
        return bzimage
    setup_sectors = bzimage[0x1F1]
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return lzma.LZMADecompressor().decompress(bzimage[start : start + length])


def _install_modules(work: Path, root: Path, kernel_release: str) -> None:
    unpacked = next(path for path in (work / "kernel").glob("**/lib/modules") if path.is_dir())
    for pruned in _PRUNED_MODULES:
        shutil.rmtree(unpacked / kernel_release / "kernel" / pruned, ignore_errors=True)
    modules = root / "usr/lib/modules" / kernel_release
    shutil.move(unpacked / kernel_release, modules)
    run(["depmod", "-b", root, kernel_release])
    shutil.copyfile(root / "bin/busybox", work / "busybox")
    for number, module in enumerate(_in_insertion_order(modules)):
        target = work / "boot-modules" / f"{number:02}-{module.name.split('.')[0]}.ko"
        target.write_bytes(_uncompressed(module))


def _in_insertion_order(modules: Path) -> list[Path]:
    """The boot modules and what they depend on; one that is built into the kernel needs nothing."""
    depends: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        depends[path] = needs.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in depends}
    ordered: list[str] = []
    for name in _BOOT_MODULES:
        if name not in by_name:
            continue
        path = by_name[name]
        # modules.dep lists the whole closure, what is needed first comes last.
        ordered += [need for need in (*reversed(depends[path]), path) if need not in ordered]
    return [modules / path for path in ordered]


def _uncompressed(module: Path) -> bytes:
    match module.suffix:
        case ".ko":
            return module.read_bytes()
        case ".xz":
            return lzma.decompress(module.read_bytes())
        case suffix:
            raise RigError(f"kernel module {module.name}: compression {suffix} is not known here")


def _compile_standard_library(root: Path) -> dict[str, str]:
    """Byte code that is taken without a look at the source's date: nothing compiles in the guest."""
    python = ["chroot", str(root), "/usr/bin/python3"]
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    facts = {
        "python_version": run([*python, "-c", version]).strip(),
        "python_magic": run([*python, "-c", magic_number_script()]).strip(),
    }
    library = f"/usr/lib/python{facts['python_version']}"
    run(
        [*python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-x", "lib2to3", library]
    )
    return facts


def magic_number_script() -> str:
    """Prints what two Pythons have to share for one to read the other's byte code."""
    return "import importlib.util; print(importlib.util.MAGIC_NUMBER.hex())"


def _finish_root(root: Path) -> None:
    for pruned in _PRUNED_ROOT:
        if (root / pruned).is_file():
            (root / pruned).unlink()
        else:
            shutil.rmtree(root / pruned, ignore_errors=True)
    for mount_point in ("rig", "src", "env"):
        (root / mount_point).mkdir()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    (root / "etc/hostname").write_text("rig\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost rig\n::1 localhost\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)


def make_disk(tree: Path, disk: Path, label: str) -> None:
    """An ext4 image of a folder, without mounting anything; sparse, with room to write in."""
    used = sum(path.lstat().st_size + 4096 for path in tree.rglob("*"))
    size_mib = int(used * 1.15) // 2**20 + 192
    features = "^has_journal,^resize_inode,^metadata_csum"
    disk.unlink(missing_ok=True)
    options = ["-q", "-t", "ext4", "-O", features, "-L", label, "-m", "0", "-E", "root_owner=0:0"]
    run(["mke2fs", *options, "-d", tree, disk, f"{size_mib}M"])


def _give_to_caller(folder: Path) -> None:
    """Under sudo, the user who asked must be able to use the result and to remove it."""
    user, group = int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0"))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, group)


def forget_old(pattern: str) -> None:
    """Keep the newest few builds: branches that differ take turns without building again."""
    built = [path for path in cache_dir().glob(pattern) if not path.name.endswith(".building")]
    for old in sorted(built, key=lambda path: path.stat().st_mtime)[:-_IMAGES_KEPT]:
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


if __name__ == "__main__":
    try:
        _build(Path(sys.argv[1]), *release())
    except RigError as failure:
        sys.exit(f"rig: {failure}")
