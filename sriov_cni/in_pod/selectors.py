"""Pure: label selectors, over many objects at once.

Objects are found by what labels they have, not looked at one by one: a cluster has thousands of pods, and
each policy several selectors.
"""

from collections import defaultdict
from collections.abc import Mapping

from sriov_cni.in_pod.objects import LabelSelector, Requirement
from vf_manager.errors import InvalidInput

Requirements = tuple[Requirement, ...]


def parse_selector(selector: LabelSelector, path: str) -> Requirements:
    """All of what an object must meet, in one form; none: everything matches.

    Raises InvalidInput where the API server would not have taken it, or is newer than this.
    """
    equal = (selector.match_labels or {}).items()
    labels = tuple(Requirement(key=key, operator="In", values=(value,)) for key, value in sorted(equal))
    for at, requirement in enumerate(selector.match_expressions or ()):
        _check(requirement, f"{path}.matchExpressions[{at}]")
    return labels + (selector.match_expressions or ())


def _check(requirement: Requirement, path: str) -> None:
    match requirement.operator:
        case "In" | "NotIn":
            if not requirement.values:
                raise InvalidInput(f"{path}.values", requirement.values, "at least one value")
        case "Exists" | "DoesNotExist":
            if requirement.values:
                raise InvalidInput(f"{path}.values", requirement.values, f"none, with {requirement.operator}")
        case unknown:
            raise InvalidInput(f"{path}.operator", unknown, "In, NotIn, Exists or DoesNotExist")


class LabelIndex:
    """Names of objects, each with its labels."""

    def __init__(self, labels: Mapping[str, Mapping[str, str]]) -> None:
        self._all = frozenset(labels)
        self._equal: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._has: defaultdict[str, set[str]] = defaultdict(set)
        self._selected: dict[Requirements, frozenset[str]] = {}
        for name, of_one in labels.items():
            for label in of_one.items():
                self._equal[label].add(name)
                self._has[label[0]].add(name)

    def select(self, requirements: Requirements) -> frozenset[str]:
        """The names of all that meet them. The same again costs nothing."""
        found = self._selected.get(requirements)
        if found is None:
            found = self._all
            for requirement in requirements:
                found &= self._meet(requirement)
            self._selected[requirements] = found
        return found

    def _meet(self, requirement: Requirement) -> frozenset[str] | set[str]:
        match requirement.operator:
            case "In":
                return self._one_of(requirement)
            case "NotIn":  # an object without the key matches, too
                return self._all - self._one_of(requirement)
            case "Exists":
                return self._has.get(requirement.key, set())
            case _:
                return self._all - self._has.get(requirement.key, set())

    def _one_of(self, requirement: Requirement) -> set[str]:
        values = requirement.values or ()
        return set().union(*(self._equal.get((requirement.key, value), ()) for value in values))
