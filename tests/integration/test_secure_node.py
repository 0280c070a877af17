"""A node of its own: certificates are read when it starts, and it restarts under load."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization as forms
from opensearchpy import OpenSearch
from opensearchpy.exceptions import OpenSearchException

from plugin.node import LocalCluster, NodeError
from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from tests.integration import corpus
from tests.integration.corpus import INDEX, hits_of, ids, pipeline, report, unpiped
from tests.integration.fakes import PATIENT, Backwards, Recorder, SidecarPort
from tests.integration.faults import World, addresses, search
from tests.waiting import wait_until

PAGE: dict[str, Any] = corpus.body_of(from_=3, size=4, _source=["group"])


def test_certificates_and_a_restart_under_load(needs_local_node: None, tmp_path: Path) -> None:
    authority = trustme.CA()
    ours = authority.issue_cert("node.example")
    files = {
        "ca.pem": authority.cert_pem.bytes().decode(),
        "node.pem": "".join(pem.bytes().decode() for pem in ours.cert_chain_pems),
        "node.key": _pkcs8(ours),
    }

    def serving(port: SidecarPort, name: str, issuer: trustme.CA) -> Any:
        folder = tmp_path / str(port.port)
        folder.mkdir(exist_ok=True)
        issuer.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        return port.serving(
            build_app(Recorder(Backwards()), load_settings()),
            ssl_certfile=folder / "server.pem",
            ssl_ca_certs=folder / "ca.pem",
            ssl_cert_reqs=2,  # the node has to show its own
        )

    with contextlib.ExitStack() as stack:
        ports = [SidecarPort() for _ in range(3)]
        for port in ports:
            stack.callback(port.close)
        right, other_host, other_authority = ports
        right_url, *wrong_urls = (f"https://127.0.0.1:{port.port}" for port in ports)
        stack.enter_context(serving(right, "127.0.0.1", authority))
        stack.enter_context(serving(other_host, "elsewhere.example", authority))
        stack.enter_context(serving(other_authority, "127.0.0.1", trustme.CA()))
        data = Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        data.chmod(0o755)  # the node may run as another user
        node = LocalCluster(
            heap="512m",
            data=data,
            java_options=["-XX:TieredStopAtLevel=1"],
            sidecar_urls=[right_url],
            settings={
                **PATIENT,
                "title_rerank.sidecar.tls.certificate_authorities": "ca.pem",
                "title_rerank.sidecar.tls.certificate": "node.pem",
                "title_rerank.sidecar.tls.key": "node.key",
            },
            secure_settings={"title_rerank.sidecar.key": "a-key"},
            config_files=files,
        )
        stack.callback(node.stop)
        node.start()
        with contextlib.closing(OpenSearch([node.url], timeout=60)) as client:
            corpus.make_index(client, default=None)
            world = World(client, right)
            assert report(search(client, PAGE, "60s").found)["applied"]
            for url in wrong_urls:
                with addresses(world, url):
                    outcome = search(client, PAGE, "60s")
                assert outcome.causes == ["tls"]
                assert hits_of(outcome.found) == hits_of(unpiped(client, **PAGE))
            answer = client.transport.perform_request("POST", "/_nodes/reload_secure_settings")
            assert all("reload_exception" not in one for one in answer["nodes"].values())
            assert report(search(client, PAGE, "60s").found)["applied"]
            own = ids(unpiped(client, **PAGE))
            window = unpiped(client, **{**PAGE, "from": 0, "size": corpus.WINDOW})
            pages = {True: ids(window)[::-1][3:7], False: own}

        stop = threading.Event()
        answered: list[dict[str, Any]] = []

        def load() -> None:
            while not stop.is_set():
                # It goes away meanwhile, and comes back at another address.
                with (
                    contextlib.suppress(OpenSearchException, NodeError),
                    contextlib.closing(OpenSearch([node.url], timeout=60, max_retries=0)) as client,
                ):
                    while not stop.is_set():
                        body = {**PAGE, "search_pipeline": pipeline()}
                        answered.append(client.search(index=INDEX, body=body))
                stop.wait(0.1)

        def reranked() -> int:
            return sum(report(found)["applied"] for found in list(answered))

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: reranked() > 10)
            node.stop()
            before = reranked()
            node.start()
            wait_until(lambda: reranked() > before + 10)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        for found in answered:  # a whole page each, whether or not the node was just going
            assert ids(found) == pages[report(found)["applied"]]
            assert found["_shards"]["failed"] == 0


def _pkcs8(issued: trustme.LeafCert) -> str:
    key = forms.load_pem_private_key(issued.private_key_pem.bytes(), None)
    return key.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    ).decode()
