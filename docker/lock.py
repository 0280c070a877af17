"""Write docker/requirements.txt and build.txt: what the sidecar's image installs and is built with.

Exactly, and with hashes.

    python docker/lock.py

For CPython 3.12 on Linux, x86-64 and ARM, as the image is; pip resolves, this only writes down
what it chose. Needs Python 3.11 or later.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomllib

PLATFORMS = ("x86_64", "aarch64")
HERE = Path(__file__).parent
HEAD = """\
# {what} of the sidecar's image, for CPython 3.12 on Linux (x86-64, ARM).
# Written by `python docker/lock.py`; installed with `pip install --require-hashes`.
"""


def resolve(dependencies: list[str], machine: str) -> list[dict[str, Any]]:
    """What pip would install on a machine."""
    tags = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (17, 27, 28)]
    tags.append(f"--platform=manylinux2014_{machine}")
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report=-"]
        command += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp", *tags]
        command += [f"--target={target}", *dependencies]
        report = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(report)["install"]


def write(name: str, what: str, dependencies: list[str]) -> None:
    """Resolve for all platforms, and write a file."""
    hashes: dict[str, set[str]] = {}
    for machine in PLATFORMS:
        for item in resolve(dependencies, machine):
            package = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
            found = item["download_info"]["archive_info"]["hashes"]["sha256"]
            hashes.setdefault(f"{package}=={item['metadata']['version']}", set()).add(found)
    lines = [
        " \\\n".join([pin, *(f"    --hash=sha256:{found}" for found in sorted(hashes[pin]))])
        for pin in sorted(hashes)
    ]
    (HERE / name).write_text(HEAD.format(what=what) + "\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Write both files."""
    read = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))
    write("requirements.txt", "The serving install", read["project"]["dependencies"])
    write("build.txt", "What builds the package", read["build-system"]["requires"])


if __name__ == "__main__":
    main()
