"""The sidecar's settings: options, environment variables and a file, checked before it starts."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as _SourceError

from plugin.sidecar.keys import Keys
from reranker.runtime import usable_cores

PREFIX = "TITLECAST_"


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
        extra="forbid",  # a misspelt name in a file
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
    if config is None and os.environ.get(f"{PREFIX}CONFIG"):
        config = Path(os.environ[f"{PREFIX}CONFIG"])
    given = {name: value for name, value in given.items() if value is not None}
    try:
        if config is not None:
            config.read_text("utf-8")  # a missing one would be passed over
            given["_env_file"] = config
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from error
    except (OSError, UnicodeDecodeError, _SourceError) as error:
        raise SettingsError(
            f"the settings file {config} cannot be read: name a text file with lines like "
            f"{PREFIX}PORT=8900"
        ) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # said by the settings themselves
        return first["msg"].removeprefix("Value error, ")
    name = str(first["loc"][0]).upper()
    name = name if name.startswith(PREFIX) else f"{PREFIX}{name}"
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name}: check its spelling"
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"the setting {name} cannot be used: {message}"
