"""Adapter: typed records on disk, one JSON file each, complete or absent.

Whoever reads after a crash finds the old record or the new one, never a part of one.
"""

import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from vf_manager.atomic_file import sync_folder, write_atomically
from vf_manager.errors import CorruptRecord, shorten

T = TypeVar("T", bound=msgspec.Struct)
_SUFFIX = ".json"


class RecordStore(Generic[T]):
    """Records of one type in one directory (made with mode 0700), by key. Keys must be valid file names."""

    def __init__(self, directory: Path, kind: type[T]) -> None:
        self._directory = directory
        self._decoder = msgspec.json.Decoder(kind)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in directory.glob(".*.tmp"):
            left_over.unlink(missing_ok=True)

    def write(self, key: str, record: T) -> None:
        write_atomically(self._path(key), msgspec.json.encode(record))

    def read(self, key: str) -> T | None:
        """None if there is no such record. Raises CorruptRecord, also if it says that it has another key."""
        return _read(self._path(key), key, self._decoder)

    def remove(self, key: str) -> None:
        """A record that is not there is no error."""
        self._path(key).unlink(missing_ok=True)
        sync_folder(self._directory)

    def list_keys(self) -> list[str]:
        return _keys(self._directory)

    def read_all(self) -> list[T]:
        """Every record that is there now."""
        return [record for key in self.list_keys() if (record := self.read(key)) is not None]

    def _path(self, key: str) -> Path:
        if not key or "/" in key or key.startswith(".") or "\0" in key:
            raise ValueError(f"not a record key: {key!r}")
        return self._directory / f"{key}{_SUFFIX}"


def read_records(directory: Path, kind: type[T]) -> list[T]:
    """Every record of a store, without taking part: nothing is made or tidied up; none if there is no store.
    Raises CorruptRecord, and OSError where one may not look."""
    decoder = msgspec.json.Decoder(kind)
    try:
        keys = _keys(directory)
    except FileNotFoundError:
        return []
    found = (_read(directory / f"{key}{_SUFFIX}", key, decoder) for key in keys)
    return [record for record in found if record is not None]


def _keys(directory: Path) -> list[str]:
    names = (n for n in os.listdir(directory) if n.endswith(_SUFFIX) and not n.startswith("."))
    return sorted(name.removesuffix(_SUFFIX) for name in names)


def _read(path: Path, key: str, decoder: msgspec.json.Decoder[T]) -> T | None:
    try:
        record = decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise _corrupt(path, str(e)) from e
    except RecursionError:
        raise _corrupt(path, "it is nested too deeply") from None
    if (own := getattr(record, "key", key)) != key:
        raise _corrupt(path, f"it is the record of {shorten(own)}")
    return record


def _corrupt(path: Path, why: str) -> CorruptRecord:
    return CorruptRecord(f"record {path} cannot be read: {why}; move it away once its VF is in order")
