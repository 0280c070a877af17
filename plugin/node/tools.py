"""Finds the JDK and the Maven that a local node is built and run with."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plugin.node.errors import ToolMissingError

MINIMUM_JAVA = 21

_JDK_FOLDERS = (
    "/usr/lib/jvm/*",
    "/usr/java/*",
    "/usr/local/java/*",
    "/opt/java/*",
    "/opt/jdk*",
    "/opt/*jdk*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "/opt/homebrew/opt/openjdk*/libexec/openjdk.jdk/Contents/Home",
    "~/.sdkman/candidates/java/*",
    "~/.jdks/*",
    "~/.local/share/mise/installs/java/*",
)
_MAVEN_FOLDERS = (
    "/usr/share/maven",
    "/opt/maven",
    "/opt/*maven*",
    "/opt/homebrew/opt/maven",
    "~/.sdkman/candidates/maven/current",
)


@dataclass(frozen=True)
class Jdk:
    """A Java development kit: its folder and its major version."""

    home: Path
    version: int

    @property
    def java(self) -> Path:
        """The program that runs Java."""
        return self.home / "bin" / "java"


def find_jdk(
    environ: Mapping[str, str] = os.environ,
    folders: Iterable[str] = _JDK_FOLDERS,
    *,
    open_to_all: bool = False,
) -> Jdk:
    """Return the first JDK 21+ of `JAVA_HOME`, `PATH` and the usual folders.

    In the folders the lowest version that is new enough wins, being the best tried one. With
    `open_to_all`, only a JDK that every user may run counts: a node is not run as root.
    Raises `ToolMissingError`, which names what was found instead.
    """
    seen: dict[Path, int] = {}
    for group in _jdk_groups(environ, folders):
        fit = []
        for home in group:
            version = jdk_version(home)
            if version is None or home in seen:
                continue
            seen[home] = version
            if version >= MINIMUM_JAVA and (not open_to_all or is_open_to_all(home / "bin/java")):
                fit.append(Jdk(home, version))
        if fit:
            return min(fit, key=lambda jdk: (jdk.version, str(jdk.home)))
    found = ", ".join(f"{home} ({version})" for home, version in seen.items()) or "none"
    readable = ", readable by every user," if open_to_all else ""
    raise ToolMissingError(
        f"no JDK {MINIMUM_JAVA} or later{readable} was found (found: {found}): install one and "
        "set JAVA_HOME to its folder."
    )


def find_maven(
    environ: Mapping[str, str] = os.environ, folders: Iterable[str] | None = None
) -> Path:
    """Return the `mvn` of `MAVEN_HOME`, `PATH` or a usual folder; raises `ToolMissingError`."""
    for name in ("MAVEN_HOME", "M2_HOME"):
        if environ.get(name) and _is_program(program := Path(environ[name], "bin", "mvn")):
            return program
    if on_path := shutil.which("mvn", path=environ.get("PATH", "")):
        return Path(on_path)
    for folder in _expand(_MAVEN_FOLDERS if folders is None else folders):
        if _is_program(program := folder / "bin" / "mvn"):
            return program
    raise ToolMissingError(
        "Maven was not found: install it so that `mvn` is on PATH, or set MAVEN_HOME to its folder."
    )


def jdk_version(home: Path) -> int | None:
    """Return the major version of the JDK in a folder; None where there is no whole JDK.

    It is read from the `release` file that every JDK carries, so nothing has to be run. A
    runtime without a compiler does not count: the plugin is built with it.
    """
    if not (_is_program(home / "bin" / "java") and _is_program(home / "bin" / "javac")):
        return None
    try:
        release = (home / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', release, re.MULTILINE)
    return int(match.group(1)) if match else None


def is_open_to_all(path: Path) -> bool:
    """Tell whether any user may reach and run (or enter) a path, links followed."""
    try:
        real = path.resolve(strict=True)
        return all(part.stat().st_mode & 0o001 for part in (real, *real.parents))
    except OSError:
        return False


def _jdk_groups(environ: Mapping[str, str], folders: Iterable[str]) -> Iterator[list[Path]]:
    if environ.get("JAVA_HOME"):
        yield [Path(environ["JAVA_HOME"])]
    on_path = [
        Path(folder, "javac").resolve().parent.parent
        for folder in environ.get("PATH", "").split(os.pathsep)
        if folder and _is_program(Path(folder, "javac"))
    ]
    yield on_path
    yield list(_expand(folders))


def _expand(patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        path = Path(pattern).expanduser()
        yield from sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
