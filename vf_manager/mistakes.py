"""Pure: every mistake in what somebody wrote, each with its path, instead of the first alone."""

import difflib
import re
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, ParamSpec, Union, get_args, get_origin

import msgspec

from vf_manager.errors import InvalidInput, SriovError, plain, shorten

P = ParamSpec("P")


class MistakesFound(SriovError):
    """A document cannot be used. `mistakes`: all that were found; the message has the first."""

    def __init__(self, first: str, *others: str) -> None:
        self.mistakes = (first, *others)
        more = f" (and {len(others)} more; sriovctl validate tells all)" if others else ""
        super().__init__(first + more)


def caught(check: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Iterator[InvalidInput]:
    """The InvalidInput that a check raises, if it raises one."""
    try:
        check(*args, **kwargs)
    except InvalidInput as e:
        yield e


def type_mistakes(value: object, kind: Any, path: str = "", above: Any = None) -> Iterator[str]:
    """A line about each key that is unknown, missing or of the wrong type, if `value` (of JSON or YAML) is to
    be a `kind`: a msgspec struct, or what its fields may be. `above`: the struct that it is a field of."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        inside = list(_mistakes_inside(value, _member_for(value, kind), path, above))
        yield from inside or [_explain(str(e), value, path)]


def _mistakes_inside(value: object, kind: Any, path: str, above: Any) -> Iterator[str]:
    if isinstance(value, dict) and _is_struct(kind):
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for key, inner in value.items():
            if key in fields:
                yield from type_mistakes(inner, fields[key].type, _below(path, key), kind)
            else:
                cure = _cure(key, path, kind, above)
                yield f"{plain(_below(path, key))}: unknown key (its value is {shorten(inner)}); {cure}"
        missing = [name for name, field in fields.items() if field.required and name not in value]
        yield from (f"{path or 'the file'}: object missing required field `{name}`" for name in missing)
    elif isinstance(value, dict) and get_origin(kind) is dict:
        for key, inner in value.items():
            yield from type_mistakes(inner, get_args(kind)[1], _below(path, key), above)
    elif isinstance(value, list) and get_origin(kind) is tuple:
        for i, inner in enumerate(value):
            yield from type_mistakes(inner, get_args(kind)[0], f"{path}[{i}]", above)


def _member_for(value: object, kind: Any) -> Any:
    """Of a union, what a mapping or a list must be meant for."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return kind
    if isinstance(value, dict):
        return next((one for one in get_args(kind) if _is_struct(one) or get_origin(one) is dict), kind)
    return next((one for one in get_args(kind) if get_origin(one) is tuple), kind)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _cure(key: str, path: str, kind: Any, above: Any) -> str:
    """What is probably meant: a key in a neighbouring place, or one with a name like it."""
    known = _keys_of(kind)
    for field in msgspec.structs.fields(kind):
        if any(key in _keys_of(struct) for struct in _structs_in(field.type)):
            return f"it belongs into {_below(path, field.encode_name)}"
    if above is not None and key in _keys_of(above):
        return f"it belongs one level up, beside {path.rpartition('.')[2]}"
    by_lower = {name.lower(): name for name in known}
    if close := difflib.get_close_matches(key.lower(), by_lower, n=1, cutoff=0.6):
        return f"did you mean {by_lower[close[0]]}?"
    return f"known here: {', '.join(known)}"


def _keys_of(kind: Any) -> list[str]:
    return sorted(field.encode_name for field in msgspec.structs.fields(kind))


def _structs_in(kind: Any) -> list[Any]:
    """`kind` itself, or the structs that a union or a list of it may hold. Lists of lists do not occur."""
    if _is_struct(kind):
        return [kind]
    return [struct for one in get_args(kind) for struct in _structs_in(one)]


def _explain(message: str, value: object, path: str) -> str:
    """msgspec says `Expected `int`, got `str` - at `$.count``; here the path goes first, the value last."""
    problem = re.sub(r" - at `.*`\Z", "", message, flags=re.DOTALL)
    shown = "" if value is None or isinstance(value, (dict, list)) else f" ({shorten(value)})"
    if not problem.startswith("Expected"):
        shown = ""  # it is told already
    # 8086 is a number to YAML, 0000:01:10.0 one to the base of 60
    hint = "; put quotes around it" if re.search("Expected `str.*`, got `(int|float|bool)`", problem) else ""
    return f"{plain(path) or 'the file'}: {problem[:1].lower()}{problem[1:]}{shown}{hint}"
