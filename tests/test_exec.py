"""Running CNI executables: what a plugin gets, what becomes of each kind of answer, what is left behind."""

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict, FilteringBoundLogger

from sriov_cni.environment import Command, Environment
from sriov_cni.exec import STDOUT_MAX, PluginRunner, find_plugin, netns_path
from sriov_cni.spec import (
    NotReady,
    PluginCrashed,
    PluginError,
    PluginGarbage,
    PluginMissing,
    PluginTimeout,
    code_of,
)
from vf_manager.errors import Busy, InvalidInput, KernelError
from vf_manager.kernel.api import NetnsId
from vf_manager.model import IfName

DEADLINE_S = 5.0


def write_plugin(directory: Path, name: str, body: str, interpreter: str = "/bin/sh") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!{interpreter}\n{body}\n")
    path.chmod(0o755)
    return path


def env_of(directory: Path, **fields: Any) -> Environment:
    known: dict[str, Any] = {
        "container_id": "c1",
        "ifname": IfName("eth0"),
        "netns": "/run/netns/a",
        "path": ("/nowhere", str(directory)),
        "args": {"IgnoreUnknown": "1", "K8S_POD_NAME": "p"},
    }
    return Environment(command=Command.ADD, **(known | fields))


class Plugin:
    """One shell script as a plugin, and the runner that runs it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log: FilteringBoundLogger = structlog.get_logger()
        self.runner = PluginRunner(self.log)

    def write(self, body: str) -> None:
        write_plugin(self.directory, "demo", body)

    def run(
        self, body: str, stdin: bytes = b"{}", *, time_s: float = DEADLINE_S, command: str = "ADD"
    ) -> bytes:
        self.write(body)
        return self.runner.run("demo", command, env_of(self.directory), stdin, time.monotonic() + time_s)

    def ask_status(self, body: str, version: str = "1.1.0") -> None:
        self.write(body)
        deadline = time.monotonic() + DEADLINE_S
        self.runner.ask_status("demo", env_of(self.directory), b"{}", version, deadline)


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path / "bin")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    fds = _open_fds()
    yield
    assert _open_fds() == fds
    assert _zombies() == [], "a child was not waited for"


def _open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd")) - {str(max(map(int, os.listdir("/proc/self/fd"))))}


def _zombies() -> list[int]:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    return [found.si_pid] if found else []


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.002)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- what a plugin gets ---


def test_the_environment_is_that_of_the_call_and_nothing_else(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the agent")
    lines = set(plugin.run("env").decode().splitlines())
    shell = {line for line in lines if line.split("=")[0] in ("PWD", "_", "SHLVL", "OLDPWD")}
    assert lines - shell == {
        "CNI_COMMAND=ADD",
        "CNI_CONTAINERID=c1",
        "CNI_NETNS=/run/netns/a",
        "CNI_IFNAME=eth0",
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=p",
        f"CNI_PATH=/nowhere:{plugin.directory}",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    assert "PWD=/" in shell


def test_the_config_arrives_whole_and_the_answer_comes_back_whole(plugin: Plugin) -> None:
    config = json.dumps({"pad": "x" * 900_000}).encode()
    assert plugin.run("cat", config) == config


def test_no_descriptor_but_the_three_is_handed_on(plugin: Plugin, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        found = plugin.run("ls /proc/$$/fd").split()
    assert set(found) <= {b"0", b"1", b"2", b"10", b"255"}  # those the shell reads its script by


def test_a_plugin_that_does_not_read_its_config_is_fine(plugin: Plugin) -> None:
    assert plugin.run("exec 0<&-; echo '{}'", b"x" * 500_000) == b"{}\n"


# --- what becomes of an answer ---


def test_a_cni_error_keeps_code_message_and_details(plugin: Plugin) -> None:
    with pytest.raises(PluginError) as caught:
        plugin.run("""echo '{"code": 117, "msg": "no address", "details": "pool is empty"}'; exit 1""")
    assert (caught.value.code, caught.value.msg, caught.value.details) == (117, "no address", "pool is empty")
    assert str(caught.value) == "plugin demo: no address (pool is empty)"
    assert code_of(caught.value) == 117
    assert not caught.value.transient


def test_try_again_later_is_passed_on_as_such(plugin: Plugin) -> None:
    with pytest.raises(PluginError) as caught:
        plugin.run("""echo '{"code": 11, "msg": "busy"}'; exit 1""")
    assert caught.value.transient
    assert code_of(caught.value) == 11


def test_an_error_without_a_code_is_internal(plugin: Plugin) -> None:
    with pytest.raises(PluginError) as caught:
        plugin.run("""echo '{"msg": "oops"}'; exit 1""")
    assert code_of(caught.value) == 999


@pytest.mark.parametrize(
    ("body", "kind", "code", "words"),
    [
        (
            "echo oops; exit 3",
            PluginGarbage,
            6,
            "ended with exit code 3 and printed b'oops\\n', which is no CNI",
        ),
        ("echo '[]'; exit 1", PluginGarbage, 6, "which is no CNI error"),
        ("""echo '{"code": "7", "msg": "x"}'; exit 1""", PluginGarbage, 6, "which is no CNI error"),
        ("exit 4", PluginCrashed, 999, "plugin demo (ADD) ended with exit code 4 and no answer"),
        ("echo why >&2; exit 4", PluginCrashed, 999, "and no answer; it said 'why'"),
        ("kill -SEGV $$", PluginCrashed, 999, "plugin demo (ADD) was killed by SIGSEGV"),
        ("exec yes", PluginGarbage, 6, f"plugin demo (ADD) printed more than {STDOUT_MAX} bytes"),
    ],
)
def test_no_usable_answer(plugin: Plugin, body: str, kind: type[Exception], code: int, words: str) -> None:
    with pytest.raises(kind) as caught:
        plugin.run(body)
    assert words in str(caught.value)
    assert code_of(caught.value) == code  # type: ignore[arg-type]


def test_an_answer_of_the_greatest_size_passes(plugin: Plugin) -> None:
    assert len(plugin.run(f"head -c {STDOUT_MAX} /dev/zero")) == STDOUT_MAX
    with pytest.raises(PluginGarbage, match="printed more than"):
        plugin.run(f"head -c {STDOUT_MAX + 1} /dev/zero")


@pytest.mark.parametrize("printed", ["", "oops", "[]", '{"ips": [}', "[" * 500, '{"a":' * 500])
def test_a_success_that_is_no_object(plugin: Plugin, printed: str) -> None:
    plugin.write(f"printf %s '{printed}'")
    deadline = time.monotonic() + DEADLINE_S
    with pytest.raises(PluginGarbage, match="ended well but printed"):
        plugin.runner.run_for_result("demo", "ADD", env_of(plugin.directory), b"{}", deadline)


def test_the_tail_of_stderr_is_logged(plugin: Plugin) -> None:
    with capture_logs() as logs:
        plugin.run("head -c 100000 /dev/zero | tr '\\0' x >&2; echo ' the end' >&2")
    said = [entry for entry in logs if entry["event"] == "plugin said"]
    assert len(said) == 1
    assert said[0]["stderr"].endswith("x the end")
    assert len(said[0]["stderr"]) < 5000
    assert said[0]["command"] == "ADD"


# --- what does not end ---


def test_a_plugin_that_hangs_goes_with_everything_it_started(plugin: Plugin, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(PluginTimeout, match=r"did not end in 0\.3 s; it said 'waiting'") as caught:
        plugin.run(f"echo waiting >&2; sleep 600 & echo $! $$ > {pids}; wait", time_s=0.3)
    assert caught.value.transient
    assert time.monotonic() - started < 2
    for pid in map(int, pids.read_text().split()):
        wait_for(lambda pid=pid: not is_running(pid), "both processes are gone")  # type: ignore[misc]


def test_a_plugin_that_cannot_be_asked_to_end_is_killed(plugin: Plugin) -> None:
    with pytest.raises(PluginTimeout):
        plugin.run("trap '' TERM INT HUP; while :; do :; done", time_s=0.2)


def test_a_plugin_ends_with_its_own_exit_whoever_holds_its_pipes(plugin: Plugin, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    assert plugin.run(f"echo '{{}}'; sleep 600 & echo $! > {pid_file}") == b"{}\n"
    assert time.monotonic() - started < DEADLINE_S / 2
    pid = int(pid_file.read_text())
    assert is_running(pid), "what a plugin leaves running on purpose is its own affair"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid), "the process of this test is gone")


def test_one_that_is_being_installed_is_tried_again(plugin: Plugin) -> None:
    """It is open for writing until the runner waits for it."""
    plugin.write("echo '{}'")
    writer = (plugin.directory / "demo").open("a")
    tries = 0

    def count(logger: object, name: str, event: EventDict) -> EventDict:
        nonlocal tries
        tries += event["event"] == "plugin is being written"
        writer.close()
        return event

    structlog.configure(processors=[count, structlog.testing.LogCapture()])
    try:
        deadline = time.monotonic() + DEADLINE_S
        runner = PluginRunner(structlog.get_logger())
        assert runner.run("demo", "ADD", env_of(plugin.directory), b"{}", deadline) == b"{}\n"
    finally:
        writer.close()
    assert tries == 1


def test_one_that_stays_open_for_writing_is_busy(plugin: Plugin) -> None:
    plugin.write("echo '{}'")
    deadline = time.monotonic() + 0.1
    with (plugin.directory / "demo").open("a"), pytest.raises(Busy, match="open for writing"):
        plugin.runner.run("demo", "ADD", env_of(plugin.directory), b"{}", deadline)


def test_one_that_the_kernel_cannot_run(plugin: Plugin) -> None:
    plugin.directory.mkdir()
    (plugin.directory / "demo").write_bytes(b"\0not a program")
    (plugin.directory / "demo").chmod(0o755)
    deadline = time.monotonic() + DEADLINE_S
    with pytest.raises(KernelError, match=r"run .*/demo: ENOEXEC"):
        plugin.runner.run("demo", "ADD", env_of(plugin.directory), b"{}", deadline)


def test_many_threads_at_once(plugin: Plugin) -> None:
    plugin.write("cat")
    answers: dict[int, bytes] = {}

    def work(number: int) -> None:
        for turn in range(5):
            stdin = f'{{"n": {number * 100 + turn}}}'.encode() + b" " * 100_000
            deadline = time.monotonic() + DEADLINE_S
            answer = plugin.runner.run("demo", "ADD", env_of(plugin.directory), stdin, deadline)
            answers[number * 100 + turn] = answer if answer == stdin else b"not mine"

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: json.loads(answer)["n"] for number, answer in answers.items()} == {n: n for n in answers}
    assert len(answers) == 40


# --- finding it ---


def test_the_first_directory_that_has_it_counts(tmp_path: Path) -> None:
    (tmp_path / "a" / "demo").mkdir(parents=True)
    second = write_plugin(tmp_path / "b", "demo", "")
    second.chmod(stat.S_IRUSR)
    third = write_plugin(tmp_path / "c", "demo", "")
    write_plugin(tmp_path / "d", "demo", "")
    directories = [str(tmp_path / name) for name in "abcd"]
    if os.geteuid() == 0:
        assert not os.access(second, os.X_OK)  # root executes nothing that nobody may
    assert find_plugin("demo", directories) == third


def test_it_is_looked_for_where_the_nodes_files_are(tmp_path: Path) -> None:
    (tmp_path / "host/opt").mkdir(parents=True)
    write_plugin(tmp_path / "host/opt/bin", "demo", "")
    assert find_plugin("demo", ["/opt/bin"], tmp_path / "host") == Path("/opt/bin/demo")
    with pytest.raises(PluginMissing, match="no CNI plugin 'demo' in /opt/bin;"):
        find_plugin("demo", ["/opt/bin"], tmp_path)


def test_a_missing_plugin_is_named_with_the_directories(tmp_path: Path) -> None:
    with pytest.raises(PluginMissing) as caught:
        find_plugin("demo", ["/opt/cni/bin", str(tmp_path)])
    assert str(caught.value).startswith(f"no CNI plugin 'demo' in /opt/cni/bin:{tmp_path};")
    assert code_of(caught.value) == 7
    with pytest.raises(PluginMissing, match="CNI_PATH, which is empty"):
        find_plugin("demo", [])


def test_relative_directories_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path / "bin", "demo", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginMissing):
        find_plugin("demo", ["bin", ".", ""])


@pytest.mark.parametrize(
    "name", ["../bin/demo", "/bin/sh", "a/b", "..", ".", "", ".hidden", "a\0b", "x" * 256, "a\\b"]
)
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    write_plugin(tmp_path / "bin", "demo", "")
    with pytest.raises(InvalidInput, match="file name of a CNI plugin"):
        find_plugin(name, [str(tmp_path / "bin")])


def test_the_namespace_is_named_as_the_runtime_does_if_we_see_it_so(tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.touch()
    other.touch()
    with here.open() as file:
        found = os.fstat(file.fileno())
        wanted = NetnsId(found.st_dev, found.st_ino)
        by_descriptor = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        assert netns_path(str(here), file.fileno(), wanted) == str(here)
        assert netns_path(str(other), file.fileno(), wanted) == by_descriptor
        assert netns_path(str(tmp_path / "gone"), file.fileno(), wanted) == by_descriptor
        assert netns_path("", file.fileno(), wanted) == by_descriptor
        assert Path(by_descriptor).samefile(here)
        assert netns_path(str(here), None, wanted) == str(here)
        assert netns_path(str(other), None, wanted) == ""
        assert netns_path(str(other), file.fileno(), NetnsId(found.st_dev, 0)) == ""


# --- verbs that a plugin may not know ---

UNKNOWN_VERB = """
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}' ;;
*) echo '{"code": 4, "msg": "unknown CNI_COMMAND: '$CNI_COMMAND'"}'; exit 1 ;;
esac
"""
NO_CONTAINER = UNKNOWN_VERB.replace(
    '"code": 4, "msg": "unknown CNI_COMMAND', '"code": 3, "msg": "no container id'
)


@pytest.mark.parametrize("unknown_verb", [UNKNOWN_VERB, NO_CONTAINER])
def test_status_of_a_plugin_that_has_none_depends_on_its_versions(plugin: Plugin, unknown_verb: str) -> None:
    plugin.ask_status("exit 0")
    plugin.ask_status(unknown_verb, "1.0.0")
    with pytest.raises(NotReady, match=r"demo does not serve cniVersion 1\.1\.0 \(but 0\.4\.0, 1\.0\.0\)"):
        plugin.ask_status(unknown_verb)


def test_status_passes_errors_on(plugin: Plugin) -> None:
    with pytest.raises(PluginError, match="daemon is away") as caught:
        plugin.ask_status("""echo '{"code": 51, "msg": "daemon is away"}'; exit 1""")
    assert code_of(caught.value) == 51
    with pytest.raises(PluginCrashed):
        plugin.ask_status("exit 1")


def test_status_of_a_missing_plugin(plugin: Plugin) -> None:
    with pytest.raises(NotReady, match="no CNI plugin 'demo'"):
        plugin.runner.ask_status("demo", env_of(plugin.directory), b"{}", "1.1.0", time.monotonic() + 1)


@pytest.mark.parametrize("unknown_verb", [UNKNOWN_VERB, NO_CONTAINER])
def test_gc_of_a_plugin_that_has_none(plugin: Plugin, unknown_verb: str) -> None:
    plugin.write(unknown_verb)
    plugin.runner.collect("demo", env_of(plugin.directory), b"{}", time.monotonic() + DEADLINE_S)
    plugin.write("""echo '{"code": 5, "msg": "disk"}'; exit 1""")
    with pytest.raises(PluginError, match="disk"):
        plugin.runner.collect("demo", env_of(plugin.directory), b"{}", time.monotonic() + DEADLINE_S)
