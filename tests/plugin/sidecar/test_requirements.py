"""The image's lock: exactly what serving needs, each with hashes, and no address of an index."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCKER = Path(__file__).parents[3] / "docker"
TEXT = (DOCKER / "requirements.txt").read_text("utf-8")
LINES = TEXT.replace("\\\n", " ").splitlines()
PINS = {
    canonicalize_name(line.split("==")[0]): line.split()
    for line in LINES
    if line and not line.startswith("#")
}
IMAGE = {
    "python_version": "3.12",
    "python_full_version": "3.12.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_python_implementation": "CPython",
    "platform_machine": "x86_64",
}


def needed(requirement: Requirement, extras: set[str]) -> bool:
    """Whether the image needs what a package names, with these extras of the package."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**IMAGE, "extra": extra}) for extra in extras or {""})


def serving_dependencies() -> dict[str, list[Requirement]]:
    """All that serving needs and what is asked of each, by what the packages here say of it.

    What a package of another version than the pinned one asks says nothing of the pins: a release
    made since then would break the test, not the image.
    """
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, list[Requirement]] = {}
    ahead = [(Requirement(line), True) for line in project["dependencies"]]
    while ahead:
        requirement, counts = ahead.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            lines = importlib.metadata.requires(name) or []
            inner = [Requirement(line) for line in lines]
            pinned = f"{name}=={importlib.metadata.version(name)}" in PINS.get(name, ())
            ahead += [(each, pinned) for each in inner if needed(each, requirement.extras)]
        found.setdefault(name, []).extend([requirement] if counts else [])
    return found


def test_it_pins_exactly_what_serving_needs() -> None:
    dependencies = serving_dependencies()
    assert set(PINS) == set(dependencies)
    for name, requirements in dependencies.items():
        version = PINS[name][0].split("==")[1]
        for requirement in requirements:
            assert requirement.specifier.contains(version, prereleases=True), str(requirement)


def test_every_pin_has_hashes_and_nothing_else() -> None:
    assert len(PINS) > 10
    assert sum("==" in line for line in LINES) == len(PINS)  # one version for all platforms
    for pin, *hashes in PINS.values():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+]*", pin)
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)


def test_it_names_no_index() -> None:
    assert "://" not in TEXT
    assert not re.search(r"^\s*-", TEXT.replace("    --hash=", ""), re.MULTILINE)


def test_the_image_installs_it_with_its_hashes() -> None:
    dockerfile = (DOCKER / "sidecar.Dockerfile").read_text("utf-8")
    assert re.search(r"pip install .*--require-hashes .*docker/requirements\.txt", dockerfile)
    assert re.search(r"pip install .*--no-deps \.", dockerfile)
