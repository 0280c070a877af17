"""The image's locks: what serving needs and what builds it, with hashes, and no index's address."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCKER = Path(__file__).parents[3] / "docker"


def read_pins(file: str) -> dict[NormalizedName, list[str]]:
    """What a lock pins: each package's pin and its hashes, by its name."""
    text = (DOCKER / file).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(line.split("==")[0]): line.split() for line in lines}
    assert len(pins) == len(lines)  # one version for all platforms
    return pins


PINS = read_pins("requirements.txt")
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


def test_what_builds_the_package_is_pinned() -> None:
    build = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text("utf-8"))["build-system"]
    pins = read_pins("build.txt")
    for requirement in map(Requirement, build["requires"]):
        version = pins[canonicalize_name(requirement.name)][0].split("==")[1]
        assert requirement.specifier.contains(version, prereleases=True)


@pytest.mark.parametrize("file", ["requirements.txt", "build.txt"])
def test_every_pin_has_hashes_and_nothing_else(file: str) -> None:
    pins = read_pins(file)
    assert len(pins) > 3
    for pin, *hashes in pins.values():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+]*", pin)
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)


@pytest.mark.parametrize("file", ["requirements.txt", "build.txt"])
def test_it_names_no_index(file: str) -> None:
    text = (DOCKER / file).read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash=", ""), re.MULTILINE)


def test_the_image_installs_nothing_else() -> None:
    dockerfile = (DOCKER / "sidecar.Dockerfile").read_text("utf-8").replace("\\\n", " ")
    commands = re.findall(r"/pip (?:install|wheel) [^&\n]*", dockerfile)
    locked = [command for command in commands if "--require-hashes" in command]
    assert [command.split()[-1] for command in locked] == [
        "docker/requirements.txt",
        "docker/build.txt",
    ]
    built, installed = (command.split() for command in commands if command not in locked)
    assert {"--no-deps", "--no-build-isolation"} <= set(built)
    assert {"--no-deps", "--no-index"} <= set(installed)
