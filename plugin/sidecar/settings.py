"""The sidecar's settings: options, environment variables and a file, checked before it starts."""

from __future__ import annotations

import io
import os
import ssl
from pathlib import Path
from typing import Any, Literal

from dotenv.parser import parse_stream
from pydantic import Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from plugin.sidecar.keys import Keys
from reranker.cores import usable_cores

PREFIX = "TITLECAST_"
# Whoever gives these means to keep somebody out: empty ones are no oversight to be passed over.
_NEVER_EMPTY = ("api_key", "api_key_file")


class SettingsError(ValueError):
    """A setting that cannot be; the text names it and the remedy."""


class Settings(BaseSettings):
    """What the sidecar listens to, runs and refuses.

    Every field is read from the variable of its name, `TITLECAST_MAX_HITS` for `max_hits`, unless
    it is given; make one with `load_settings`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,  # one of them is the key
        extra="forbid",
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8900, ge=0, le=65535)  # 0: any free one
    model: Path | None = None  # a model folder; None: the shipped models
    threads: int | None = Field(default=None, ge=1)  # of one model run; None: every usable core
    cache_mb: float = Field(default=64, ge=0)  # of titles read before, about 5 KB each
    passage_cache_mb: float = Field(default=0, ge=0)  # of passages, about 120 KB each
    workers: int = Field(default=1, ge=1, le=256)  # processes that share the port
    log_format: Literal["json", "text"] = "json"

    api_key: SecretStr | None = None  # of callers, `Authorization: Bearer …`; several by spaces
    api_key_file: Path | None = None  # the same, one a line; read again when it changes

    tls_cert: Path | None = None  # PEM, the chain from the server's certificate on
    tls_key: Path | None = None  # PEM
    tls_client_ca: Path | None = None  # PEM; callers must show a certificate that it signed

    max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    max_header_bytes: int = Field(default=16 * 1024, ge=1024)
    max_hits: int = Field(default=1000, ge=1)
    max_query_characters: int = Field(default=10_000, ge=1)
    # What lies beyond the models' windows is not read, and counted; these stop what is no title
    # and no passage at all.
    max_title_characters: int = Field(default=100_000, ge=1)
    max_passage_characters: int = Field(default=1_000_000, ge=1)
    max_request_tokens: int = Field(default=200_000, ge=1)  # estimated, of what would be read

    max_concurrent: int = Field(default_factory=usable_cores, ge=1)  # searches computed at a time
    max_waiting: int = Field(default=64, ge=0)  # searches in line behind those, ...
    max_waiting_tokens: int = Field(default=100_000, ge=0)  # ... and the work that they are

    read_seconds: float = Field(default=10, gt=0)  # for a request's head, and for its body
    write_seconds: float = Field(default=10, gt=0)  # for a caller to take up what it is sent
    drain_seconds: float = Field(default=1, ge=0)  # served on after SIGTERM, no longer ready
    grace_seconds: int = Field(default=10, ge=1)  # then, for what is under way

    _keys: Keys = PrivateAttr(default_factory=Keys)

    @property
    def keys(self) -> Keys:
        """The keys of which callers must give one."""
        return self._keys

    def ssl_options(self) -> dict[str, Any]:
        """Give the options of uvicorn for TLS; none without a certificate."""
        if self.tls_cert is None:
            return {}
        options: dict[str, Any] = {"ssl_certfile": self.tls_cert, "ssl_keyfile": self.tls_key}
        if self.tls_client_ca is not None:
            options |= {"ssl_ca_certs": self.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return options

    @model_validator(mode="after")
    def _read_keys(self) -> Settings:
        if self.api_key and self.api_key_file:
            raise ValueError(f"give {PREFIX}API_KEY or {PREFIX}API_KEY_FILE, not both")
        if self.api_key is not None:
            # An empty key would let everybody in who was meant to be kept out.
            self._keys = Keys(self.api_key.get_secret_value().split() or [""])
        elif self.api_key_file is not None:
            try:
                self._keys = Keys(file=self.api_key_file)
            except ValueError as error:
                raise ValueError(f"{PREFIX}API_KEY_FILE: {error}") from error
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError(f"give {PREFIX}TLS_CERT and {PREFIX}TLS_KEY together")
        if self.tls_cert is None or self.tls_key is None:
            if self.tls_client_ca is not None:
                raise ValueError(f"{PREFIX}TLS_CLIENT_CA needs {PREFIX}TLS_CERT and _TLS_KEY")
            return self
        check_tls(self.tls_cert, self.tls_key, self.tls_client_ca)
        return self


def check_tls(cert: Path, key: Path, client_ca: Path | None = None) -> None:
    """Raise ValueError where the files cannot be used, or not together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password function OpenSSL would ask at the terminal.
        context.load_cert_chain(cert, key, lambda: b"")
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(
            f"the TLS files cannot be used ({error.strerror or error}): {PREFIX}TLS_CERT, "
            "_TLS_KEY (without a password) and _TLS_CLIENT_CA must be readable PEM files, "
            "and the key must belong to the certificate"
        ) from error


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """Read the settings: what is given here and not None, else the environment, else the file.

    The file (`config`, or what TITLECAST_CONFIG names) has lines like the environment's,
    `TITLECAST_PORT=8900`. Raises `SettingsError` for the first that cannot be.
    """
    environ = {name.upper(): text for name, text in os.environ.items()}
    _refuse_empty_keys(environ)
    if config is None and os.environ.get(f"{PREFIX}CONFIG"):
        config = Path(os.environ[f"{PREFIX}CONFIG"])
    filed = {} if config is None else _read_file(config)
    _refuse_empty_keys(filed)
    # What the environment says goes before the file; an empty variable says nothing, as compose
    # files leave them.
    used = {
        name.removeprefix(PREFIX).lower(): text
        for name, text in filed.items()
        if text and not environ.get(name)
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**{**used, **given})
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from error


def _refuse_empty_keys(variables: dict[str, str]) -> None:
    for name in (f"{PREFIX}{name.upper()}" for name in _NEVER_EMPTY):
        if variables.get(name) == "":
            raise SettingsError(
                f"{name} is empty, and would let everybody in: fill it in, or take it out"
            )


def _read_file(path: Path) -> dict[str, str]:
    """Read a file of settings, by their whole names.

    Raises `SettingsError` for a line that gives none, without what is in it: it may be a key.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the settings file {path} cannot be read: name a text file with lines like "
            f"{PREFIX}PORT=8900"
        ) from error
    found = {}
    for line in parse_stream(io.StringIO(text)):
        read = line.original.string  # from the end of the line before on, empty ones with it
        empty = read[: len(read) - len(read.lstrip())].count("\n")
        where = f"line {line.original.line + empty} of the settings file {path}"
        if line.error or (line.key is not None and line.value is None):
            raise SettingsError(f"{where} cannot be read: write it like {PREFIX}PORT=8900")
        if line.key is None or line.value is None:  # a comment
            continue
        name = line.key.upper()
        if not name.startswith(PREFIX):
            raise SettingsError(f"{where} gives no setting: their names begin with {PREFIX}")
        if name.removeprefix(PREFIX).lower() not in Settings.model_fields:
            raise SettingsError(f"there is no setting {name}: check its spelling in {where}")
        found[name] = line.value
    return found


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # said by the settings themselves
        return first["msg"].removeprefix("Value error, ")
    name = f"{PREFIX}{str(first['loc'][0]).upper()}"
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"the setting {name} cannot be used: {message}"
