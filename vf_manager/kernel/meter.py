"""Pure: how much was asked of the kernel, for those who want to know what a look at a node costs."""

import dataclasses


@dataclasses.dataclass
class Meter:
    """Exact as long as one thread asks. `sysfs_reads`: attributes, links and listings of folders."""

    netlink_requests: int = 0
    sysfs_reads: int = 0
