import contextlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from plugin.clusters import ClusterError, connect

OPENSEARCH = {"version": {"distribution": "opensearch", "number": "3.8.0"}}


@contextlib.contextmanager
def answering(body: Any, status: int = 200) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Serve one answer to everything; gives the address and the requests that come."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_it_connects_with_user_password_and_prefix() -> None:
    with answering(OPENSEARCH) as (place, asked):
        connect(f"http://us%40er:p%2Fw@{place}/behind/proxy/").close()
    assert asked == [("/behind/proxy/", "Basic dXNAZXI6cC93")]


def test_the_scheme_may_be_left_out() -> None:
    with answering(OPENSEARCH) as (place, _):
        connect(place).close()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"version": {"number": "8.19.0"}}, 200, "is not OpenSearch but version 8.19.0"),
        ({"version": {"distribution": "opensearch", "number": "2.19.1"}}, 200, "version 3 or"),
        ({"hello": "world"}, 200, "is no search cluster: check --url"),
        ([1], 200, "is no search cluster"),
        ({"error": "x"}, 401, "put user and password into the address"),
        ({"error": "x"}, 404, "answers with status 404"),
    ],
)
def test_what_is_no_fit_cluster_is_named(body: Any, status: int, message: str) -> None:
    with answering(body, status) as (place, _), pytest.raises(ClusterError, match=message):
        connect(f"http://{place}")


def test_a_dead_server_is_one_sentence_without_password_or_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ClusterError) as caught:
        connect("http://user:geheim@127.0.0.1:1")
    assert str(caught.value) == (
        "no cluster answers at http://127.0.0.1:1: start one with `titlecast node start`,"
        " or name yours with --url or OPENSEARCH_URL"
    )
    assert not caplog.records


def test_a_plain_server_is_no_https_server() -> None:
    with answering(OPENSEARCH) as (place, _), pytest.raises(ClusterError):
        connect(f"https://{place}")


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://[::1", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ClusterError, match="is no address of a cluster"):
        connect(url)


@pytest.mark.parametrize(
    "password", ["Secret/Part", "12/34", "Secret#Part", "apple?pear", "fig://nut", "[xyz"]
)
@pytest.mark.parametrize("scheme", ["https://", ""])
def test_a_password_that_cuts_an_address_short_is_refused_unseen(
    scheme: str, password: str
) -> None:
    with pytest.raises(ClusterError, match=r"'(https://)?host:9' is no .*%2F for /") as caught:
        connect(f"{scheme}admin:{password}@host:9")
    assert not any(part in str(caught.value) for part in re.split(r"[/#?:]+", password))


def test_a_password_with_any_signs_is_not_shown() -> None:
    with pytest.raises(ClusterError) as caught:
        connect("ftp://user:ge/h@eim@host")
    assert "eim@" not in str(caught.value)
    assert "ge/h" not in str(caught.value)
