"""Records on disk: complete or absent, whenever the process ends."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vf_manager.errors import CorruptRecord
from vf_manager.records import RecordStore, read_records


class Note(msgspec.Struct, frozen=True):
    text: str


class Keyed(msgspec.Struct, frozen=True):
    key: str


class Died(BaseException):
    """The process ends here."""


OLD, NEW = Note("old"), Note("new")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "notes"


@pytest.fixture
def store(folder: Path) -> RecordStore[Note]:
    return RecordStore(folder, Note)


def restarted(folder: Path) -> RecordStore[Note]:
    """What the next process sees."""
    return RecordStore(folder, Note)


def test_a_record_is_read_as_it_was_written(store: RecordStore[Note], folder: Path) -> None:
    assert store.read("a") is None
    store.write("a", OLD)
    assert store.read("a") == OLD
    store.write("a", NEW)
    assert restarted(folder).read("a") == NEW


def test_only_root_reads_them(store: RecordStore[Note], folder: Path) -> None:
    previous = os.umask(0)
    try:
        store.write("a", OLD)
        RecordStore(folder.with_name("other"), Note)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((folder / "a.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.with_name("other").stat().st_mode) == 0o700


def test_keys_are_listed_in_order_without_what_is_no_record(store: RecordStore[Note], folder: Path) -> None:
    for key in ("b@net1", "a@net1", "c.d"):
        store.write(key, OLD)
    (folder / "README").touch()
    (folder / ".hidden.json").touch()
    assert store.list_keys() == ["a@net1", "b@net1", "c.d"]


def test_removing_is_idempotent(store: RecordStore[Note]) -> None:
    store.write("a", OLD)
    store.remove("a")
    store.remove("a")
    assert store.read("a") is None
    assert store.list_keys() == []


def test_a_folder_that_is_there_is_taken_over(store: RecordStore[Note], folder: Path) -> None:
    store.write("a", OLD)
    assert RecordStore(folder, Note).list_keys() == ["a"]


# -- crashes


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("death", [Died, OSError])
def test_a_write_that_is_cut_short_leaves_the_old_record(
    store: RecordStore[Note],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    before: Note | None,
    death: type[BaseException],
) -> None:
    if before is not None:
        store.write("a", before)
    with monkeypatch.context() as patch:
        _dies_at(step, death, patch)
        with pytest.raises(death):
            store.write("a", NEW)
    after = restarted(folder)
    assert after.read("a") == before
    assert after.list_keys() == ([] if before is None else ["a"])
    assert [path.name for path in folder.iterdir() if path.name != "a.json"] == []
    after.write("a", NEW)
    assert after.read("a") == NEW


def test_a_process_killed_before_the_rename_leaves_a_file_that_the_next_one_removes(
    store: RecordStore[Note], folder: Path
) -> None:
    store.write("a", OLD)
    (folder / ".a.tmp").write_text('{"text":"ne')
    (folder / ".b.tmp").write_text("")
    after = restarted(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a.json"]
    assert after.list_keys() == ["a"]
    assert after.read("a") == OLD


def test_a_write_that_is_cut_short_after_the_rename_leaves_the_new_record(
    store: RecordStore[Note], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a", OLD)
    synced: list[int] = []

    def die_at_the_folder(fd: int) -> None:
        synced.append(fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die_at_the_folder)
        with pytest.raises(Died):
            store.write("a", NEW)
    assert len(synced) == 2
    assert restarted(folder).read("a") == NEW


def _dies_at(step: str, death: type[BaseException], patch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> Any:
        raise death

    match step:
        case "open":
            patch.setattr(os, "open", die)
        case "write":
            patch.setattr(msgspec.json, "encode", die)
        case "fsync":
            patch.setattr(os, "fsync", die)
        case "rename":
            patch.setattr(Path, "rename", die)


# -- damage


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"text": 5}', b'{"other": "a"}'),
        *(b'{"text": "a"}trailing', b'{"a":' * 5000),
    ],
)
def test_a_corrupt_record_is_named_and_kept(store: RecordStore[Note], folder: Path, content: bytes) -> None:
    store.write("good", OLD)
    (folder / "bad.json").write_bytes(content)
    with pytest.raises(CorruptRecord, match=str(folder / "bad.json")):
        store.read("bad")
    assert (folder / "bad.json").read_bytes() == content
    assert store.read("good") == OLD
    assert restarted(folder).list_keys() == ["bad", "good"]


def test_a_record_under_another_key_is_corrupt(folder: Path) -> None:
    """What is undone in its name would be another's."""
    store = RecordStore(folder, Keyed)
    store.write("a", Keyed("a"))
    (folder / "a.json").rename(folder / "b.json")
    with pytest.raises(CorruptRecord, match=r"b\.json cannot be read: it is the record of 'a'"):
        store.read("b")


# -- keys


@pytest.mark.parametrize("key", ["", ".", "..", ".hidden", "a/b", "../a", "/etc/passwd", "a\0b"])
def test_a_key_that_is_no_file_name_is_a_bug(store: RecordStore[Note], folder: Path, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.write(key, OLD),
        lambda: store.remove(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a record key"):
            call()
    assert list(folder.iterdir()) == []


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,60}", fullmatch=True), st.text(), max_size=8
    )
)
def test_any_key_and_content_survives_a_restart(
    tmp_path_factory: pytest.TempPathFactory, notes: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("notes")
    store = RecordStore(folder, Note)
    for key, text in notes.items():
        store.write(key, Note(text))
    after = restarted(folder)
    assert after.list_keys() == sorted(notes)
    assert {key: after.read(key) for key in notes} == {key: Note(text) for key, text in notes.items()}


def test_records_are_read_without_taking_part(tmp_path: Path) -> None:
    """As `sriovctl plan` does beside a running agent."""
    assert read_records(tmp_path / "nope", Note) == []
    assert not (tmp_path / "nope").exists()
    store = RecordStore(tmp_path / "things", Note)
    store.write("b", NEW)
    store.write("a", OLD)
    (tmp_path / "things/.c.tmp").write_text("half")
    assert read_records(tmp_path / "things", Note) == store.read_all() == [OLD, NEW]
    assert (tmp_path / "things/.c.tmp").exists()
    (tmp_path / "things/c.json").write_text("{")
    with pytest.raises(CorruptRecord, match=r"c\.json"):
        read_records(tmp_path / "things", Note)
