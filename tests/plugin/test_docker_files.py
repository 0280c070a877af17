"""The images and the compose file: what can be checked without a Docker engine, and with one."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from opensearchpy import OpenSearch
from opensearchpy.exceptions import OpenSearchException
from starlette.responses import JSONResponse

from plugin.engines import why_no_container
from plugin.node import OPENSEARCH_VERSION
from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from tests.plugin.sidecar.fakes import Gated, serving

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(dockerfile: Path) -> list[tuple[str, list[str]]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(words[0], words[1:]) for words in map(str.split, lines) if words]


def copied(dockerfile: Path) -> list[str]:
    return [
        source
        for name, words in instructions(dockerfile)
        if name == "COPY" and not any(word.startswith("--from=") for word in words)
        for source in [word for word in words if not word.startswith("--")][:-1]
    ]


def image_environment() -> dict[str, str]:
    """What the sidecar's image sets for its commands, less its search path."""
    steps = instructions(ROOT / "docker" / "sidecar.Dockerfile")
    words = [word for name, words in steps if name == "ENV" for word in words]
    pairs = dict(word.split("=", 1) for word in words)
    return {name: text for name, text in pairs.items() if name != "PATH"}


def services() -> dict[str, dict[str, object]]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def test_there_are_the_two_images() -> None:
    assert [path.name for path in DOCKERFILES] == ["opensearch.Dockerfile", "sidecar.Dockerfile"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_all_that_is_copied_is_there_and_sent_to_the_engine(dockerfile: Path) -> None:
    sources = copied(dockerfile)
    assert sources
    rules = [line for line in (ROOT / ".dockerignore").read_text().split() if line != "#"]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in rules
        assert not any(fnmatch.fnmatch(source, rule) for rule in rules if rule not in ("*",))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_stages_that_are_copied_from_exist(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    stages = {words[2] for name, words in steps if name == "FROM" and words[1:2] == ["AS"]}
    used = {
        word.removeprefix("--from=")
        for name, words in steps
        if name == "COPY"
        for word in words
        if word.startswith("--from=")
    }
    assert used == stages
    assert steps[0][0] in ("ARG", "FROM")


def test_the_image_has_the_version_that_the_plugin_is_built_for() -> None:
    steps = instructions(ROOT / "docker" / "opensearch.Dockerfile")
    assert ("ARG", [f"OPENSEARCH_VERSION={OPENSEARCH_VERSION}"]) in steps
    assert ("FROM", ["opensearchproject/opensearch:${OPENSEARCH_VERSION}"]) in steps


def test_the_sidecar_image_serves_as_a_user_of_its_own() -> None:
    steps = instructions(ROOT / "docker" / "sidecar.Dockerfile")
    last = [words for name, words in steps if name == "USER"][-1]
    assert last[0] not in ("root", "0")
    text = (ROOT / "docker" / "sidecar.Dockerfile").read_text()
    # The address is a variable, so that another can be given.
    assert ("CMD", ['["titlecast",', '"serve"]']) in steps
    assert image_environment()["TITLECAST_HOST"] == "0.0.0.0"
    assert "[train]" not in text  # the serving install


@pytest.mark.parametrize("tls", [False, True])
def test_the_image_is_healthy_with_tls_and_without(tmp_path: Path, tls: bool) -> None:
    options = {}
    if tls:
        issued = trustme.CA().issue_cert("titlecast")
        options = {name: tmp_path / name for name in ("ssl_certfile", "ssl_keyfile")}
        options["ssl_certfile"].write_bytes(issued.cert_chain_pems[0].bytes())
        options["ssl_keyfile"].write_bytes(issued.private_key_pem.bytes())
    text = (ROOT / "docker" / "sidecar.Dockerfile").read_text()
    found = re.search(r"HEALTHCHECK [^\[]*CMD (\[.*\])", text)
    assert found
    command = [sys.executable, *json.loads(found[1])[1:]]
    environ = {**os.environ, **image_environment()}
    with serving(build_app(gated := Gated(), load_settings()), **options) as client:
        gated.open.set()
        environ["TITLECAST_PORT"] = str(client.base_url.port)
        assert subprocess.run(command, cwd=ROOT, env=environ).returncode == 0
    assert subprocess.run(command, cwd=ROOT, env=environ).returncode == 1


def test_the_image_is_healthy_where_a_file_says_where_it_listens(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plugin.sidecar.health"]
    config = tmp_path / "titlecast.env"
    environ = {name: text for name, text in os.environ.items() if "TITLECAST" not in name}
    environ |= {**image_environment(), "TITLECAST_CONFIG": str(config)}
    with serving(build_app(gated := Gated(), load_settings())) as client:
        gated.open.set()
        config.write_text(f'export TITLECAST_PORT="{client.base_url.port}"\n')
        assert subprocess.run(command, cwd=ROOT, env=environ).returncode == 0
        environ["TITLECAST_PORT"] = "1"  # which goes before the file
        assert subprocess.run(command, cwd=ROOT, env=environ).returncode == 1


async def empty_cluster(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that says it is OpenSearch, and that there is nothing in it."""
    version = {"number": OPENSEARCH_VERSION, "distribution": "opensearch"}
    known = scope["path"] == "/"
    found = {"cluster_uuid": "u", "version": version} if known else {"error": "nothing"}
    await JSONResponse(found, 200 if known else 404)(scope, receive, send)


def test_the_image_keeps_where_a_load_is_without_a_home_folder(tmp_path: Path) -> None:
    source, state = tmp_path / "source.tsv", Path(image_environment()["XDG_STATE_HOME"])
    source.write_text("1\tmerge sorted inputs\n")
    assert state.is_relative_to("/tmp")  # noqa: S108 - where everybody may write
    mine = tmp_path / state.relative_to("/")
    environ = {**os.environ, "HOME": "/dev/null", "XDG_STATE_HOME": str(mine)}
    with serving(empty_cluster, lifespan="off") as client:  # type: ignore[arg-type]
        command = [sys.executable, "-m", "plugin.cli.main", "index", str(source)]
        command += ["--index", "pydoc", "--url", str(client.base_url)]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert list(mine.glob("titlecast/loads/pydoc-*")), done.stderr
    assert "/dev/null" not in done.stderr


def test_compose_builds_what_is_there() -> None:
    for service in services().values():
        build = service["build"]
        assert isinstance(build, dict)
        context = (COMPOSE.parent / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]) in DOCKERFILES


def test_compose_ties_the_services_together() -> None:
    found = services()
    opensearch, sidecar, setup = (found[name] for name in ("opensearch", "sidecar", "setup"))
    environment = opensearch["environment"]
    assert environment["title_rerank.sidecar.urls"] == "http://sidecar:8900"
    assert environment["DISABLE_SECURITY_PLUGIN"] == "true"
    assert ("EXPOSE", ["8900"]) in instructions(ROOT / "docker" / "sidecar.Dockerfile")
    # Without security, nobody but this machine may come in.
    assert opensearch["ports"] == ["127.0.0.1:9200:9200"]
    assert sidecar["ports"] == ["127.0.0.1:8900:8900"]
    assert set(setup["depends_on"]) == {"opensearch", "sidecar"}
    for name, dependency in setup["depends_on"].items():
        assert dependency["condition"] == "service_healthy"
        own = "healthcheck" in found[name]
        assert own or "HEALTHCHECK" in (ROOT / found[name]["build"]["dockerfile"]).read_text()


@pytest.mark.docker
def test_compose_gives_a_reranked_search() -> None:
    if reason := why_no_container():
        pytest.skip(reason)
    from testcontainers.compose import DockerCompose

    compose = DockerCompose(ROOT, compose_file_name="docker/compose.yaml", build=True, wait=False)
    with (
        compose,
        contextlib.closing(OpenSearch(["http://127.0.0.1:9200"], timeout=30)) as client,
    ):
        limit = time.monotonic() + 500
        answer: dict[str, object] = {}
        while time.monotonic() < limit and "title_rerank" not in answer.get("ext", {}):
            time.sleep(5)
            with contextlib.suppress(OpenSearchException):  # not up, or not indexed yet
                answer = client.search(index="pydoc", q="merge sorted inputs")
    assert "title_rerank" in answer["ext"]
    assert answer["hits"]["hits"]
