"""The connection to an OpenSearch cluster, and what kind of cluster it is."""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import unquote, urlsplit

from opensearchpy import OpenSearch
from opensearchpy.exceptions import (
    AuthenticationException,
    AuthorizationException,
    SSLError,
    TransportError,
)
from opensearchpy.exceptions import ConnectionError as NoConnectionError

_log = logging.getLogger(__name__)

INSECURE_VARIABLE = "OPENSEARCH_INSECURE"
_NAMED = "--url or OPENSEARCH_URL"  # the demo has the variable only
_SECONDS = 30.0


class ClusterError(OSError):
    """The cluster cannot be used as it is; the text names the remedy."""


def connect(
    url: str, *, insecure: bool | None = None, seconds: float = _SECONDS, connections: int = 1
) -> OpenSearch:
    """Connect to the OpenSearch cluster at a URL (`https://user:password@host:9200/prefix`).

    `connections` are kept open for as many threads. `insecure` accepts any certificate; if it is
    None, the variable OPENSEARCH_INSECURE decides.
    Raises `ClusterError` if the URL is none, or if no OpenSearch of version 3 or later answers
    there.
    """
    host = _host(url)
    shown = shown_address(url)
    if insecure is None:
        insecure = os.environ.get(INSECURE_VARIABLE, "").lower() in ("1", "true", "yes")
    transport_log = logging.getLogger("opensearch")
    if not transport_log.isEnabledFor(logging.DEBUG):
        # It logs every failed request with its trace; the exceptions say as much.
        transport_log.setLevel(logging.ERROR)
    options: dict[str, Any] = {"pool_maxsize": connections}
    if host["use_ssl"]:
        options |= {"verify_certs": not insecure, "ssl_show_warn": False}
        if insecure:
            options["ssl_assert_hostname"] = False
    client = OpenSearch(hosts=[host], timeout=seconds, max_retries=2, **options)
    try:
        _check(client.info(), shown)
    except BaseException as error:
        client.close()
        if isinstance(error, TransportError):
            raise ClusterError(_sentence(error, shown)) from error
        raise
    return client


def _check(info: object, shown: str) -> None:
    version = info.get("version") if isinstance(info, dict) else None
    if not isinstance(version, dict) or "number" not in version:
        raise ClusterError(f"what answers at {shown} is no search cluster: check {_NAMED}")
    number = str(version["number"])
    if version.get("distribution") != "opensearch":
        raise ClusterError(
            f"what answers at {shown} is not OpenSearch but version {number} of another engine:"
            f" search pipelines need OpenSearch 3, name one with {_NAMED}"
        )
    major = number.partition(".")[0]
    if not major.isdigit() or int(major) < 3:
        raise ClusterError(f"{shown} runs OpenSearch {number}: version 3 or later is needed")
    _log.debug("connected to %s, OpenSearch %s", shown, number)


def _host(url: str) -> dict[str, Any]:
    try:
        parts = urlsplit(with_scheme(url))
        port = parts.port
        # An @ behind what is read as the host: that was the beginning of a password.
        cut_short = "@" in parts.path + parts.query + parts.fragment
        named = parts.scheme in ("http", "https") and parts.hostname and not cut_short
    except ValueError:  # whose text may hold a part of the password
        named = False
    if not named:
        raise ClusterError(
            f"{shown_address(url)!r} is no address of a cluster: write http://HOST:PORT or https://…,"
            " and in a user or password %2F for /, %23 for #, %3F for ?, %40 for @, %25 for %"
        )
    secure = parts.scheme == "https"
    host: dict[str, Any] = {
        "host": parts.hostname,
        "port": port or (443 if secure else 9200),
        "use_ssl": secure,
    }
    if parts.path.strip("/"):
        host["url_prefix"] = parts.path.strip("/")
    if parts.username is not None:
        host["http_auth"] = (unquote(parts.username), unquote(parts.password or ""))
    return host


def with_scheme(url: str) -> str:
    """Give the URL with the scheme that it may lack."""
    return url if "://" in url else f"http://{url}"


def shown_address(url: str) -> str:
    """Give the URL without user and password: it goes into messages and logs."""
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isalpha():  # else it is a part of user or password
        scheme, separator, rest = "", "", url
    # Up to the last @, as a password may hold unescaped signs of any kind.
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _sentence(error: TransportError, shown: str) -> str:
    if isinstance(error, SSLError):
        return (
            f"the certificate of {shown} is not trusted: add its authority to the machine's,"
            f" or set {INSECURE_VARIABLE}=true to accept any"
        )
    if isinstance(error, NoConnectionError):
        return (
            f"no cluster answers at {shown}: start one with `titlecast node start`,"
            f" or name yours with {_NAMED}"
        )
    if isinstance(error, (AuthenticationException, AuthorizationException)):
        return (
            f"{shown} refuses this user (status {error.status_code}):"
            " put user and password into the address, https://USER:PASSWORD@HOST:9200"
        )
    return f"{shown} answers with status {error.status_code} to a plain request: check {_NAMED}"
