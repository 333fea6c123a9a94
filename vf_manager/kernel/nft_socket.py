"""Adapter: nftables of one network namespace, one transaction at a time.

Sources: net/netfilter/nfnetlink.c, nf_tables_api.c.
"""

import errno
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vf_manager.errors import KernelError
from vf_manager.kernel import attributes, netfilter, nft_messages
from vf_manager.kernel.meter import Meter
from vf_manager.kernel.netlink import BatchRefusal, Netlink, NetlinkRefusal, strerror_or
from vf_manager.kernel.netns import Netns
from vf_manager.kernel.nft import Table
from vf_manager.kernel.nft_messages import Found, Memo, Message, Messages, read_base
from vf_manager.kernel.nft_sets import read_shape

_BATCH_BEGIN, _BATCH_END = 16, 17  # NFNL_MSG_BATCH_*
_BATCH = struct.pack("!BBH", socket.AF_UNSPEC, 0, nft_messages.SUBSYSTEM)
_NFGENMSG_SIZE = 4
_TABLE_NAME, _CHAIN_NAME, _SET_NAME = 1, 3, 2

Answer = TypeVar("Answer")


class Nft:
    """A socket to nftables; only for the thread that opened it."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def tables(self) -> tuple[str, ...]:
        """Those of family inet."""
        return tuple(self._names(nft_messages.GETTABLE, "", _TABLE_NAME))

    def find(self, table: str) -> Found | None:
        """None: there is no such table."""
        try:
            self._netlink.get(nft_messages.GETTABLE, nft_messages.pack_query(table))
        except NetlinkRefusal as e:
            if e.code == errno.ENOENT:
                return None
            raise KernelError(f"read nftables table {table}", e.code, e.said) from e
        sets, chains = self._list(nft_messages.GETSET, table), self._list(nft_messages.GETCHAIN, table)
        return Found(
            chains={attributes.text(found[_CHAIN_NAME]): read_base(found) for found in chains},
            sets={attributes.text(found[_SET_NAME]): read_shape(found) for found in sets},
        )

    def apply(self, table: str, messages: Sequence[Message]) -> None:
        """All of it or nothing. Raises KernelError, which names the message that was refused."""
        begin, end = (_BATCH_BEGIN, 0, _BATCH), (_BATCH_END, 0, _BATCH)
        requests = [begin, *((message.kind, message.flags, message.body) for message in messages), end]
        try:
            self._netlink.batch(requests)
        except BatchRefusal as e:
            inside = 0 < e.index <= len(messages)
            what = messages[e.index - 1].what if inside else "commit"
            raise KernelError(
                f"nftables table {table}: {what}", e.code, strerror_or(e.said, e.code, "")
            ) from e
        except OSError as e:
            raise KernelError(f"nftables table {table}: send", e.errno or errno.EIO) from e

    def _names(self, kind: int, table: str, attribute: int) -> Iterator[str]:
        return (attributes.text(found[attribute]) for found in self._list(kind, table))

    def _list(self, kind: int, table: str) -> list[attributes.Attributes]:
        """Those of other tables are left out here: not every kernel does (nf_tables_dump_chains)."""
        try:
            answers = self._netlink.dump(kind, nft_messages.pack_query(table))
        except NetlinkRefusal as e:
            raise KernelError("list nftables", e.code, e.said) from e
        found = (attributes.read(answer, _NFGENMSG_SIZE) for answer in answers)
        return [one for one in found if not table or attributes.text(one[_TABLE_NAME]) == table]


def inside(netns: Netns, ask: Callable[[Nft], Answer], meter: Meter) -> Answer:
    return netfilter.inside(netns, lambda netlink: ask(Nft(netlink)), meter)


def apply_table(netns: Netns, before: Table | None, after: Table, memo: Memo, meter: Meter) -> None:
    """`before` None: whatever is there under this name is replaced."""
    if before is not None:
        transactions = nft_messages.change(before, after, memo)
        if transactions:
            inside(netns, lambda nft: _change(nft, after.name, transactions), meter)
    else:
        inside(netns, lambda nft: _replace(nft, after, memo), meter)


def _change(nft: Nft, table: str, transactions: Sequence[Messages]) -> None:
    for messages in transactions:
        nft.apply(table, messages)


def _replace(nft: Nft, table: Table, memo: Memo) -> None:
    """What else somebody has put into it may not be such as can be taken apart; then what was remembered is
    lost with the rest."""
    found = nft.find(table.name)
    try:
        nft.apply(table.name, nft_messages.create(table, memo, found))
    except KernelError:
        if found is None:
            raise
        messages = nft_messages.delete(table.name), *nft_messages.create(table, memo)
        nft.apply(table.name, messages)


def delete_table(netns: Netns, name: str, meter: Meter) -> None:
    """One that is not there is no error."""
    try:
        inside(netns, lambda nft: nft.apply(name, [nft_messages.delete(name)]), meter)
    except KernelError as e:
        if e.code != errno.ENOENT:
            raise


def read_tables(netns: Netns, meter: Meter) -> tuple[str, ...]:
    return inside(netns, Nft.tables, meter)
