"""Pure: from one policy in force to the next without losing what both let through.

A transaction changes all rules and elements at once, but a packet that is on its way through the rules just
then reads each set as it is at that moment (nft_lookup_eval, nft_genmask_cur): an address that leaves one set
for another may be seen in neither. Seen with Linux 6.18: 3 of a million packets, in 2778 such changes.
"""

from collections.abc import Iterator

import msgspec

from sriov_cni.in_pod.render_policy import PolicyParts, policy_parts_of
from vf_manager.kernel.nft import Elements, Table, Type


def table_between(old: Table, new: Table) -> Table | None:
    """That step as a whole table, with the services of `new`."""
    between = step_between(policy_parts_of(old), policy_parts_of(new))
    return Table(new.name, {**new.sets, **between.sets}, new.chains) if between else None


def step_between(old: PolicyParts, new: PolicyParts) -> PolicyParts | None:
    """What to put in force first, if any address moves: it is in both of its sets, and so what is let through
    is what one of the two lets through. With other rules that would not be so, and there is no such step."""
    if old.chains != new.chains:
        return None
    changed = {name for name, elements in new.sets.items() if elements is not old.sets[name]}
    came = {address for name in changed for address in _more(old.sets[name], new.sets[name])}
    went = {address for name in changed for address in _more(new.sets[name], old.sets[name])}
    if came.isdisjoint(went):
        return None
    both = {name: _both(old.sets[name], new.sets[name]) for name in changed}
    return PolicyParts({**new.sets, **both}, new.chains)


def _more(less: Elements, more: Elements) -> Iterator[bytes]:
    """The addresses of the keys that only `more` has; a key begins with one."""
    length = 4 if more.key[0] is Type.IPV4_ADDR else 16
    return (key[:length] for key in more.entries.keys() - less.entries.keys())


def _both(old: Elements, new: Elements) -> Elements:
    return msgspec.structs.replace(new, entries={**old.entries, **new.entries})
