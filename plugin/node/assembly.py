"""Assembles an OpenSearch node, with our plugin in it, from artifacts that Maven fetches.

The POMs in `maven/` say what goes where. A node's home holds nothing that changes while it runs;
it is kept in a cache folder under a name made from all that went into it, so the next start
finds it there, and a changed plugin gets a home of its own beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import plugin
from plugin.node.errors import AssemblyError
from plugin.node.tools import Jdk, find_maven, is_open_to_all

OPENSEARCH_VERSION = "3.8.0"
PLUGIN_NAME = "title-rerank"

_log = logging.getLogger(__name__)
_POMS = Path(__file__).parent / "maven"


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of all that is assembled and run: `TITLECAST_HOME`, else a cache folder.

    For root it is /var/cache/titlecast: OpenSearch runs as another user then, who cannot enter
    root's own home, while no other user can write to /var/cache and so plant a node there.
    """
    if environ.get("TITLECAST_HOME"):
        return Path(environ["TITLECAST_HOME"]).expanduser().absolute()
    if runs_as_root():
        return Path("/var/cache/titlecast")
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"], "titlecast").absolute()
    return Path.home() / ".cache" / "titlecast"


def runs_as_root() -> bool:
    """Tell whether this process is root's, whom OpenSearch refuses."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def prepared_cache_folder() -> Path:
    """Return the cache folder, made if need be; raises `AssemblyError` if it cannot be used."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise AssemblyError(
            f"the cache folder {folder} cannot be made ({error.strerror}): set TITLECAST_HOME to "
            "a folder that can."
        ) from error
    if runs_as_root() and not is_open_to_all(folder):
        raise AssemblyError(
            f"the cache folder {folder} is closed to other users, and OpenSearch does not run as "
            "root: set TITLECAST_HOME to a folder that every user may enter, or unset it."
        )
    return folder


def plugin_sources() -> Path:
    """Return the folder of the OpenSearch plugin's Maven project, in checkout and wheel alike."""
    return Path(plugin.__file__).parent / "opensearch"


def assemble(jdk: Jdk, *, with_plugin: bool = True) -> Path:
    """Return a node's home folder (`lib/`, `agent/`, `modules/`, `plugins/`), built if need be.

    Raises `AssemblyError`, or `ToolMissingError` if something is to be built and Maven is
    not there.
    """
    cache = prepared_cache_folder()
    base_name = f"opensearch-{OPENSEARCH_VERSION}-{_digest(Path(__file__).parent, _recipe())}"
    base = _once(cache / base_name, lambda folder: _build_base(folder, jdk))
    if not with_plugin:
        return base
    sources = plugin_sources()
    if not (sources / "pom.xml").is_file():
        raise AssemblyError(
            f"the OpenSearch plugin's sources are not in {sources}: install titlecast again, or "
            "start the node without the plugin."
        )
    digest = _digest(sources, _files(sources))
    return _once(
        cache / f"{base_name}-{PLUGIN_NAME}-{digest}",
        lambda folder: _build_with_plugin(folder, base, sources, jdk),
    )


def _once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Build a folder if it is not there: elsewhere, then moved, so that it is never half there."""
    if folder.is_dir():
        return folder
    with _lock(folder.parent / ".lock"):
        if folder.is_dir():  # another process built it while we waited
            return folder
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        try:
            build(building)
            _open_to_all(building)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def _build_base(folder: Path, jdk: Jdk) -> None:
    _log.info("assembling OpenSearch %s", OPENSEARCH_VERSION)
    with _copied(_POMS, _files(_POMS)) as poms:
        _maven(
            poms,
            jdk,
            f"-Dopensearch.version={OPENSEARCH_VERSION}",
            f"-Dnode.folder={folder}",
        )
    served = {jar.name for jar in (folder / "lib").iterdir()}
    for module in sorted((folder / "modules").iterdir()):
        for jar in module.iterdir():
            if jar.name in served:  # a class that is there twice stops the node
                jar.unlink()
        for name in ("plugin-descriptor.properties", "plugin-security.policy"):
            source = _POMS / "modules" / module.name / name
            if source.is_file():
                text = source.read_text().replace("${opensearch.version}", OPENSEARCH_VERSION)
                (module / name).write_text(text)
    for name in ("bin", "plugins"):  # the node wants to see them
        (folder / name).mkdir()


def _build_with_plugin(folder: Path, base: Path, sources: Path, jdk: Jdk) -> None:
    _log.info("building the OpenSearch plugin")
    # Hard links: the same files under another name, at no cost of space.
    shutil.copytree(base, folder, copy_function=_link, dirs_exist_ok=True)
    with _copied(sources, _files(sources)) as project:
        _maven(project, jdk, "-Dmaven.test.skip=true", "-Dspotless.check.skip=true")
        zips = sorted((project / "target").glob("titlecast-opensearch-plugin-*.zip"))
        if len(zips) != 1:
            raise AssemblyError(
                f"the build of {sources} gave {len(zips)} plugin zips where one was expected: "
                "run `mvn package` there and look at its target folder."
            )
        with zipfile.ZipFile(zips[0]) as archive:
            archive.extractall(folder / "plugins" / PLUGIN_NAME)


def _maven(project: Path, jdk: Jdk, *options: str) -> None:
    command = [str(find_maven()), "-B", "-q", *options, "package"]
    done = subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "JAVA_HOME": str(jdk.home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        lines = tuple(line for line in done.stdout.splitlines() if line.strip())
        reason = next((line for line in lines if line.startswith("[ERROR]")), "no reason given")
        raise AssemblyError(
            f"Maven failed ({reason.removeprefix('[ERROR]').strip()}): see that Maven can reach "
            "its repository and that the plugin's sources compile.",
            lines[-30:],
        )


def _files(folder: Path) -> list[Path]:
    """Return what a Maven project is built from, relative to its folder and in a fixed order."""
    return sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file()
        and path.relative_to(folder).parts[0] != "target"
        and path.relative_to(folder).parts[:2] != ("src", "test")
        and path.suffix != ".md"
    )


def _recipe() -> list[Path]:
    """Return the files that say how a node is assembled, this one included."""
    return [Path(Path(__file__).name), *(Path("maven") / file for file in _files(_POMS))]


def _digest(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = (folder / file).read_bytes()
        digest.update(f"{file.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _copied(folder: Path, files: Iterable[Path]) -> Iterator[Path]:
    """Give a copy of a Maven project, which may lie where nothing can be written."""
    with tempfile.TemporaryDirectory(prefix="titlecast-build-") as name:
        for file in files:
            target = Path(name) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, target)
        yield Path(name)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time build."""
    try:
        import fcntl
    except ImportError:  # Windows: the last rename wins, and fails for the others
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _open_to_all(folder: Path) -> None:
    """Let every user read a folder, whatever the umask was: a node may run as another user."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
