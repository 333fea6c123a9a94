"""Pure: what a key of a configuration means, written where the key is. docs/configuration.md and the JSON
Schema are made of it."""

import msgspec


def meaning(text: str, low: int | None = None, high: int | None = None) -> msgspec.Meta:
    """`low`, `high`: the least and the greatest value. They are for readers and editors; what checks them
    answers in its own words, and a test holds the two together."""
    bounds = {"minimum": low, "maximum": high}
    return msgspec.Meta(
        description=text,
        extra_json_schema={name: value for name, value in bounds.items() if value is not None},
    )
