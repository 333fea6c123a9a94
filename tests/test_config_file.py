"""The config file: what it says counts once, when it is the same at two looks."""

import os
from pathlib import Path

import pytest

from node_agent.config import AgentConfig, ConfigError
from node_agent.config_file import ConfigFile


def text_of(*pools: str) -> str:
    return "\n".join(["pools:", *(f"- {{name: {name}, select: {{pfNames: [ens1]}}}}" for name in pools)])


def names(config: AgentConfig | None) -> list[str] | None:
    return [pool.name for pool in config.pools] if config else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text_of("a"))
    return path


@pytest.fixture
def file(path: Path) -> ConfigFile:
    file = ConfigFile(path)
    assert names(file.read()) == ["a"]
    return file


def test_a_file_that_stays_says_nothing(file: ConfigFile) -> None:
    assert [file.poll() for _ in range(3)] == [None, None, None]


def test_a_change_is_told_once_when_it_was_seen_twice(file: ConfigFile, path: Path) -> None:
    path.write_text(text_of("a", "b"))
    assert file.poll() is None
    assert names(file.poll()) == ["a", "b"]
    assert file.poll() is None


def test_what_is_half_written_is_not_taken(file: ConfigFile, path: Path) -> None:
    """The first half of a list of pools is a config, too."""
    path.write_text(text_of("b"))
    assert file.poll() is None
    path.write_text(text_of("b", "c"))
    assert file.poll() is None
    assert names(file.poll()) == ["b", "c"]


def test_a_file_of_the_same_size_and_times_is_seen(file: ConfigFile, path: Path) -> None:
    before = path.stat()
    path.write_text(text_of("z"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.poll()
    assert names(file.poll()) == ["z"]


def test_a_file_that_another_is_renamed_over(file: ConfigFile, path: Path) -> None:
    (path.parent / "new").write_text(text_of("b"))
    (path.parent / "new").rename(path)
    file.poll()
    assert names(file.poll()) == ["b"]


def test_a_mistake_is_told_once_and_its_end_too(file: ConfigFile, path: Path) -> None:
    path.write_text("pools: []\nextra: 1")
    file.poll()
    with pytest.raises(ConfigError, match="extra: unknown key"):
        file.poll()
    assert file.poll() is None
    path.write_text(text_of("a"))
    file.poll()
    assert names(file.poll()) == ["a"]


def test_a_file_that_goes_and_comes_back(file: ConfigFile, path: Path) -> None:
    path.unlink()
    file.poll()
    with pytest.raises(ConfigError, match="No such file or directory"):
        file.poll()
    assert file.poll() is None
    path.write_text(text_of("a"))
    file.poll()
    assert names(file.poll()) == ["a"]


def test_a_file_that_is_away_for_a_moment_was_not_away(file: ConfigFile, path: Path) -> None:
    path.unlink()
    assert file.poll() is None
    path.write_text(text_of("a"))
    assert [file.poll(), file.poll()] == [None, None]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (2 << 20)])
def test_what_is_no_text_or_too_much(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"can't decode|more than 1048576 bytes"):
        ConfigFile(path).read()


class ConfigMap:
    """A volume as the kubelet writes it: pkg/volume/util/atomic_writer.go."""

    def __init__(self, folder: Path, text: str) -> None:
        self._folder = folder
        self._version = 0
        self.write(text)
        (folder / "config.yaml").symlink_to("..data/config.yaml")
        self.path = folder / "config.yaml"

    def write(self, text: str) -> None:
        self._version += 1
        version = self._folder / f"..2026_{self._version}"
        version.mkdir()
        (version / "config.yaml").write_text(text)
        (self._folder / "..data_tmp").symlink_to(version.name)
        (self._folder / "..data_tmp").rename(self._folder / "..data")


def test_a_config_map(tmp_path: Path) -> None:
    volume = ConfigMap(tmp_path, text_of("a"))
    file = ConfigFile(volume.path)
    file.read()
    volume.write(text_of("b"))
    file.poll()
    assert names(file.poll()) == ["b"]
    volume.write(text_of("b"))
    assert [file.poll(), file.poll()] == [None, None]
