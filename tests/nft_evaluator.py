"""What an nftables table, as data, does with a packet: for rules without a kernel.

Only what filter chains use. A field that the packet does not have makes a rule fail, as in the kernel, also
with `!=`.
"""

from collections.abc import Mapping

from vf_manager.kernel.nft import (
    Chain,
    CtState,
    Elements,
    Field,
    Hook,
    In,
    Is,
    Key,
    Random,
    Statement,
    Table,
    Verdict,
    VerdictKind,
    Within,
)

Packet = Mapping[Field, bytes]


def passes(table: Table, hook: Hook, packet: Packet, ct_state: int = 0b1000) -> bool:
    """Through all chains of the hook. The state of a connection that begins is `new`."""
    chains = (chain for chain in table.chains.values() if chain.base and chain.base.hook == hook)
    return all(_Walk(table, packet, ct_state).ends(chain) is not VerdictKind.DROP for chain in chains)


class _Walk:
    def __init__(self, table: Table, packet: Packet, ct_state: int) -> None:
        self._table, self._packet, self._ct_state = table, packet, ct_state

    def ends(self, chain: Chain) -> VerdictKind | None:
        """ACCEPT or DROP; None: at its end, or by RETURN."""
        for rule in chain.rules:
            verdict = self._read(rule)
            if verdict is None:
                continue
            if verdict.kind in (VerdictKind.ACCEPT, VerdictKind.DROP):
                return verdict.kind
            if verdict.kind is VerdictKind.RETURN:
                return None
            end = self.ends(self._table.chains[verdict.chain])
            if end is not None or verdict.kind is VerdictKind.GOTO:
                return end
        return None

    def _read(self, rule: tuple[Statement, ...]) -> Verdict | None:
        for statement in rule:
            if isinstance(statement, Verdict):
                return statement
            if not self._holds(statement):
                return None
        return None

    def _holds(self, statement: Statement) -> bool:
        match statement:
            case Is(field, value, negate):
                return field in self._packet and (self._packet[field] == value) != negate
            case Within(field, low, high):
                return field in self._packet and low <= self._packet[field] <= high
            case CtState(bits):
                return bool(bits & self._ct_state)
            case In(key, name, negate):
                found = self._value(key)
                return found is not None and _has(self._table.sets[name], found) != negate
            case _:
                raise AssertionError(f"a filter chain does not have {statement}")

    def _value(self, key: Key) -> bytes | None:
        parts = []
        for field in key:
            assert not isinstance(field, Random)
            if field not in self._packet:
                return None
            part = self._packet[field]
            parts.append(part if len(key) == 1 else part.ljust(-(-len(part) // 4) * 4, b"\0"))
        return b"".join(parts)


def _has(elements: Elements, value: bytes) -> bool:
    if not elements.interval:
        return value in elements.entries
    ranges = elements.entries.items()
    return any(isinstance(last, bytes) and first <= value <= last for first, last in ranges)
