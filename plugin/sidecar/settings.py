"""The sidecar's settings: environment variables `TITLECAST_…`, checked once, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from reranker.runtime import usable_cores

PREFIX = "TITLECAST_"


class SettingsError(ValueError):
    """A setting that cannot be; the text names it and the remedy."""


class Settings(BaseSettings):
    """What the sidecar listens to, runs and refuses.

    Every field is read from the variable of its name, `TITLECAST_MAX_HITS` for `max_hits`, unless
    it is given; make one with `load_settings`. Titles and passages have no limit of their own:
    what lies beyond the model's window is not read and is counted, and `max_body_bytes` bounds
    the whole.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,  # one of them is the key
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8900, ge=0, le=65535)  # 0: any free one
    model: Path | None = None  # a model folder; None: the shipped models
    threads: int | None = Field(default=None, ge=1)  # of one model run; None: every usable core

    api_key: SecretStr | None = None  # asked of callers as `Authorization: Bearer …`
    api_key_file: Path | None = None  # the same, as the content of a file

    max_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    max_hits: int = Field(default=1000, ge=1)
    max_query_characters: int = Field(default=10_000, ge=1)
    max_concurrent: int = Field(default_factory=usable_cores, ge=1)  # searches computed at a time
    max_waiting: int = Field(default=64, ge=0)  # searches in line behind those

    _key: str = PrivateAttr(default="")

    @property
    def key(self) -> str:
        """The key that callers must give; empty if none is asked for."""
        return self._key

    @model_validator(mode="after")
    def _read_key(self) -> Settings:
        if self.api_key and self.api_key_file:
            raise ValueError(f"give {PREFIX}API_KEY or {PREFIX}API_KEY_FILE, not both")
        key = self.api_key.get_secret_value() if self.api_key else None
        if self.api_key_file:
            try:
                key = self.api_key_file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"the key file {self.api_key_file} cannot be read "
                    f"({getattr(error, 'strerror', None) or 'it is no text'}): name a readable "
                    f"file in {PREFIX}API_KEY_FILE"
                ) from error
        if key is not None:
            # An empty key would let everybody in who was meant to be kept out.
            if not key or not all("!" <= sign <= "~" for sign in key):
                raise ValueError(
                    "the key must be visible ASCII without spaces, as a header carries it: "
                    "make one with `openssl rand -hex 32`"
                )
            self._key = key
        return self


def load_settings(**given: Any) -> Settings:
    """Read the settings; what is given here, and not None, comes before the environment.

    Raises `SettingsError` for the first that cannot be.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # said by the settings themselves
        return first["msg"].removeprefix("Value error, ")
    name = f"{PREFIX}{str(first['loc'][0]).upper()}"
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"the setting {name} cannot be used: {message}"
