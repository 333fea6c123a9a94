"""Pure: what `sriovctl doctor` says: rules, and findings by them."""

import string
from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """`error`: pods do not get what they ask for. `warning`: they may not, or not all of it. `note`: it
    works, and may surprise."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`about`: the device, file or pod. `cause` and `cure` are sentences for people."""

    id: str
    severity: Severity
    about: str
    cause: str
    cure: str


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be wrong. `cause` and `cure`: with `{names}` of what differs from case to case."""

    id: str
    severity: Severity
    cause: str
    cure: str

    def finding(self, about: str, **values: object) -> Finding:
        return Finding(
            id=self.id,
            severity=self.severity,
            about=about,
            cause=self.cause.format(**values),
            cure=self.cure.format(**values),
        )

    def row(self) -> str:
        """Of the table in docs/troubleshooting.md."""
        return f"| `{self.id}` | {self.severity} | {_generic(self.cause)} | {_generic(self.cure)} |"


def _generic(template: str) -> str:
    """`set {name} up` as `set NAME up`."""
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return template.format(**{name: name.upper() for name in names}).replace("|", "\\|")
