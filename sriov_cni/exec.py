"""Adapter: runs a CNI executable: variables and a config in, one answer out (CNI SPEC.md, section 2).

The plugin is a session of its own, so that at the deadline it goes with everything it started. Its end is
its own exit and not the end of its output: a process that it left behind may hold the pipes open for ever.
"""

import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from structlog.typing import FilteringBoundLogger

from sriov_cni.environment import Command, Environment
from sriov_cni.netconf import decode_object
from sriov_cni.spec import (
    NEWEST_VERSION,
    ErrorCode,
    NotReady,
    PluginCrashed,
    PluginError,
    PluginFailure,
    PluginGarbage,
    PluginMissing,
    PluginTimeout,
    Undecodable,
    parse_plugin_name,
)
from vf_manager.errors import Busy, KernelError, shorten
from vf_manager.kernel.api import NetnsId

STDOUT_MAX = 1024 * 1024
_STDERR_TAIL = 4096
_CHUNK = 64 * 1024
_KILL_GRACE_S = 1.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = "VERSION"


class PluginRunner:
    """Thread-safe; nothing is kept between calls. Deadlines are instants of `time.monotonic()`.

    `root`: where the node's file system is seen. An agent in a container runs plugins in there, with the
    files, tools and sysctls that a runtime would run them with. Paths of namespaces are the same in both.
    """

    def __init__(self, log: FilteringBoundLogger, root: Path = Path("/")) -> None:
        self._log = log
        self._root = root

    def run(self, plugin: str, command: str, env: Environment, stdin: bytes, deadline: float) -> bytes:
        """What the plugin printed. `env` says everything but the command; its `netns` must be a path that the
        plugin can open. Raises PluginFailure, Busy and KernelError."""
        path = self.find(plugin, env.path)
        log = self._log.bind(plugin=str(path), command=command, container=env.container_id, ifname=env.ifname)
        time_s = deadline - time.monotonic()
        process = _spawn(self._command(path), render_environment(command, env), deadline, log)
        with _Exchange(process, stdin) as exchange:
            exit_code = exchange.wait(deadline)
        if exchange.stderr:
            log.info("plugin said", stderr=exchange.last_words())
        if exit_code == 0 and len(exchange.stdout) <= STDOUT_MAX:
            return bytes(exchange.stdout)
        raise _failure(plugin, f"plugin {plugin} ({command})", exit_code, exchange, time_s)

    def find(self, plugin: str, directories: Sequence[str]) -> Path:
        """Raises PluginMissing and InvalidInput."""
        return find_plugin(plugin, directories, self._root)

    def _command(self, path: Path) -> list[Path | str]:
        return [path] if self._root == Path("/") else ["chroot", self._root, path]

    def run_for_result(
        self, plugin: str, command: str, env: Environment, stdin: bytes, deadline: float
    ) -> dict[str, Any]:
        """The object that the plugin printed."""
        stdout = self.run(plugin, command, env, stdin, deadline)
        try:
            return decode_object(stdout)
        except Undecodable as e:
            raise PluginGarbage(
                f"plugin {plugin} ({command}) ended well but printed {shorten(stdout)}; expected {e.expected}"
            ) from e

    def ask_status(self, plugin: str, env: Environment, stdin: bytes, version: str, deadline: float) -> None:
        """STATUS. A plugin that does not know the verb can say one thing of an ADD: whether it serves the
        config's version. Raises NotReady for that and for a plugin that is missing."""
        try:
            self.run(plugin, Command.STATUS, env, stdin, deadline)
        except PluginMissing as e:
            raise NotReady(str(e)) from e
        except PluginError as e:
            if not _is_unknown_verb(e):
                raise
            served = self._served_versions(plugin, env, deadline)
            if version not in served:
                raise NotReady(
                    f"plugin {plugin} does not serve cniVersion {version} (but {', '.join(served)})"
                ) from e

    def collect(self, plugin: str, env: Environment, stdin: bytes, deadline: float) -> None:
        """GC. A plugin that does not know the verb has nothing to collect."""
        try:
            self.run(plugin, Command.GC, env, stdin, deadline)
        except PluginError as e:
            if not _is_unknown_verb(e):
                raise
            self._log.info("plugin has no GC", plugin=plugin)

    def _served_versions(self, plugin: str, env: Environment, deadline: float) -> list[str]:
        stdin = b'{"cniVersion":"%s"}' % NEWEST_VERSION.encode()
        served = self.run_for_result(plugin, _VERSION, env, stdin, deadline).get("supportedVersions")
        if not isinstance(served, list):
            raise PluginGarbage(f"plugin {plugin} ({_VERSION}): supportedVersions is {shorten(served)}")
        return [str(version) for version in served]


def find_plugin(plugin: str, directories: Sequence[str], root: Path = Path("/")) -> Path:
    """The first regular file of this name that may be executed, as it is called below `root`. Relative
    directories are not looked at: the agent's working directory is not the runtime's."""
    parse_plugin_name(plugin, "type")
    for directory in directories:
        path = Path(directory) / plugin
        seen = root / path.relative_to("/") if path.is_absolute() else None
        if seen is not None and seen.is_file() and os.access(seen, os.X_OK):
            return path
    where = ":".join(directories) or "CNI_PATH, which is empty"
    raise PluginMissing(f"no CNI plugin {plugin!r} in {where}; install it there, or correct the type")


def netns_path(path: str, fd: int | None, wanted: NetnsId) -> str:
    """How a plugin gets to a network namespace: by the path that the runtime named, if that is the namespace
    in our mount namespace too, else by the descriptor that we hold, which must stay open meanwhile. "" if
    neither is it (any more)."""
    if path and _is_namespace(path, wanted):
        return path
    if fd is not None and _is_namespace(fd, wanted):
        return f"/proc/{os.getpid()}/fd/{fd}"
    return ""


def render_environment(command: str, env: Environment) -> dict[str, str]:
    """All the variables that a plugin gets: nothing of the agent's own environment."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": env.container_id,
        "CNI_NETNS": env.netns,
        "CNI_IFNAME": env.ifname or "",
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in env.args.items()),
        "CNI_PATH": ":".join(env.path),
        "PATH": _PATH,
    }


def _is_namespace(target: str | int, wanted: NetnsId) -> bool:
    try:
        found = os.fstat(target) if isinstance(target, int) else Path(target).stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.dev, wanted.ino)


def _spawn(
    command: list[Path | str], variables: dict[str, str], deadline: float, log: FilteringBoundLogger
) -> subprocess.Popen[bytes]:
    """ETXTBSY: the file is being written, or a process forked meanwhile by another thread still has it open
    for writing (golang/go#22315)."""
    pause_s = 0.01
    while True:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=variables,
                cwd="/",
                start_new_session=True,
            )
        except OSError as e:
            if e.errno != errno.ETXTBSY:
                raise KernelError(f"run {command[-1]}", e.errno or errno.EIO) from e
            if time.monotonic() + pause_s > deadline:
                raise Busy(f"run {command[-1]}: the file is open for writing; is it being installed?") from e
        log.info("plugin is being written")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 1.0)


class _Exchange:
    """The pipes of a running plugin. If it still runs when the context is left, it is killed."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        self._process = process
        pipes = (process.stdin, process.stdout, process.stderr)
        self._in, self._out, self._err = (pipe for pipe in pipes if pipe is not None)
        self._unsent = memoryview(stdin)
        self.stdout = bytearray()
        self.stderr = bytearray()  # the last of it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.returncode is None:
            self._kill()
        for pipe in (self._in, self._out, self._err):
            pipe.close()

    def wait(self, deadline: float) -> int | None:
        """The exit code; None if the plugin still runs at the deadline, or has printed too much."""
        with selectors.PollSelector() as selector, _pidfd(self._process.pid) as pidfd:
            selector.register(pidfd, selectors.EVENT_READ)
            for pipe in (self._in, self._out, self._err):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_WRITE if pipe is self._in else selectors.EVENT_READ)
            while len(self.stdout) <= STDOUT_MAX and (left_s := deadline - time.monotonic()) > 0:
                ready = [key.fileobj for key, _ in selector.select(left_s)]
                if pidfd in ready:
                    self._receive_the_rest()
                    return self._process.wait()
                for end in ready:
                    if end is self._in and not self._send():
                        selector.unregister(self._in)
                        self._in.close()
                    elif end is not self._in and not self._receive(end):
                        selector.unregister(end)
        return None

    def last_words(self) -> str:
        return self.stderr.decode("utf-8", "replace").strip()

    def hint(self) -> str:
        """The last words, for a message."""
        return f"; it said {shorten(self.last_words(), 300)}" if self.last_words() else ""

    def _send(self) -> int:
        """How much is left. A plugin need not read its config to the end."""
        try:
            self._unsent = self._unsent[os.write(self._in.fileno(), self._unsent[:_CHUNK]) :]
        except BrokenPipeError:
            self._unsent = memoryview(b"")
        return len(self._unsent)

    def _receive(self, pipe: Any) -> int:
        """How much came; 0 at the end. Raises BlockingIOError if there is nothing now."""
        data = os.read(pipe.fileno(), _CHUNK)
        if pipe is self._out:
            self.stdout += data
        else:
            self.stderr = (self.stderr + data)[-_STDERR_TAIL:]
        return len(data)

    def _receive_the_rest(self) -> None:
        """What it printed before it ended. Whoever else holds the pipe may print for ever."""
        for pipe in (self._out, self._err):
            with suppress(BlockingIOError):
                for _ in range(STDOUT_MAX // _CHUNK + 1):
                    if not self._receive(pipe):
                        break

    def _kill(self) -> None:
        """One that not even this ends, because it waits in the kernel, is reaped by `subprocess` before it
        starts another process."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_GRACE_S)


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """Readable when the process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as e:
        raise KernelError("watch a plugin", e.errno or errno.EIO) from e
    try:
        yield fd
    finally:
        os.close(fd)


def _failure(
    plugin: str, what: str, exit_code: int | None, exchange: _Exchange, time_s: float
) -> PluginFailure:
    if len(exchange.stdout) > STDOUT_MAX:
        return PluginGarbage(f"{what} printed more than {STDOUT_MAX} bytes")
    if exit_code is None:
        return PluginTimeout(f"{what} was killed: it did not end in {time_s:.1f} s{exchange.hint()}")
    if exit_code < 0:
        return PluginCrashed(f"{what} was killed by {_signal_name(-exit_code)}{exchange.hint()}")
    ended = f"{what} ended with exit code {exit_code}"
    if not exchange.stdout:
        return PluginCrashed(f"{ended} and no answer{exchange.hint()}")
    return _parse_error(plugin, bytes(exchange.stdout)) or PluginGarbage(
        f"{ended} and printed {shorten(bytes(exchange.stdout), 200)}, which is no CNI error"
    )


def _parse_error(plugin: str, stdout: bytes) -> PluginError | None:
    """A CNI error; one without a code of its own gets ours for "internal"."""
    try:
        answer = decode_object(stdout)
    except Undecodable:
        return None
    code, msg, details = answer.get("code") or 0, answer.get("msg"), answer.get("details")
    if not isinstance(msg, str) or not isinstance(code, int):
        return None
    known = code if code > 0 else ErrorCode.INTERNAL
    return PluginError(plugin, known, msg, details if isinstance(details, str) else "")


def _is_unknown_verb(error: PluginError) -> bool:
    """What plugins of the Go library answer to GC and STATUS if they are older than these: that there is no
    container id (3; up to its version 1.1, which looks at that first), or that the verb is unknown (4)."""
    return error.code in (ErrorCode.UNKNOWN_CONTAINER, ErrorCode.INVALID_ENVIRONMENT)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
