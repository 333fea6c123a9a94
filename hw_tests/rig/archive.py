"""Adapter: the distribution's package archive, as this machine's own apt is configured to reach it."""

import re
from pathlib import Path

from hw_tests.rig.host import RigError, run


class Apt:
    """apt-get with the machine's own sources, and state of its own: nothing of the machine's is changed."""

    def __init__(self, state: Path) -> None:
        (state / "lists" / "partial").mkdir(parents=True)
        self._state = state
        self._options = [
            f"--option=Dir::State::lists={state / 'lists'}",
            "--option=Dir::Cache::pkgcache=",
            "--option=Dir::Cache::srcpkgcache=",
            "--option=APT::Sandbox::User=root",
        ]

    def run(self, *arguments: str, program: str = "apt-get") -> str:
        return run([program, "-qq", *self._options, *arguments], cwd=self._state)

    def archive(self, codename: str) -> str:
        """The address debootstrap can read the release from, in whatever format apt has it configured."""
        targets = self.run("indextargets", "--format", "$(RELEASE) $(COMPONENT) $(CREATED_BY) $(SITE)")
        for line in targets.splitlines():
            suite, component, kind, site = line.split(" ", 3)
            if (suite, component, kind) == (codename, "main", "Packages"):
                return _first_mirror(site)
        raise RigError(f"no apt source of this machine serves the suite {codename}, component main")

    def download(self, package: str) -> list[Path]:
        """The package and what it needs of the same kernel, as .deb files."""
        wanted, todo = set[str](), [package]
        while todo:
            name = todo.pop()
            wanted.add(name)
            depends = self.run("depends", "--important", name, program="apt-cache")
            found = re.findall(r"Depends: (linux-(?:image|modules)[\w.+-]*)$", depends, re.MULTILINE)
            todo += [other for other in found if other not in wanted]
        self.run("download", *sorted(wanted))
        return sorted(self._state.glob("*.deb"))


def _first_mirror(site: str) -> str:
    """apt's 'mirror+file:' names a list of archives; debootstrap wants one of them."""
    if not site.startswith("mirror+file:"):
        return site
    listed = Path(site.removeprefix("mirror+file:")).read_text()
    return listed.split()[0]


def apt_proxy() -> str | None:
    """The proxy apt is told to use, for programs that fetch from the archive by themselves."""
    configured = re.search(r'^Acquire::http::Proxy "(.+)";', run(["apt-config", "dump"]), re.MULTILINE)
    return configured[1] if configured else None
