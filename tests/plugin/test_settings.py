from pathlib import Path

import pytest

from plugin.sidecar.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TITLECAST_{name.upper()}", raising=False)


def test_without_any_setting_it_listens_to_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8900)
    assert settings.model is None
    assert len(settings.keys) == 0
    assert settings.max_concurrent >= 1


def test_the_environment_is_read_and_options_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITLECAST_PORT", "9000")
    monkeypatch.setenv("TITLECAST_MAX_HITS", "77")
    monkeypatch.setenv("TITLECAST_MODEL", "/models")
    monkeypatch.setenv("TITLECAST_THREADS", "")  # as compose files leave it
    settings = load_settings(port=9001, host=None)
    assert settings.port == 9001
    assert settings.max_hits == 77
    assert settings.model == Path("/models")
    assert settings.threads is None
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", "http"),
        ("MAX_HITS", "0"),
        ("MAX_BODY_BYTES", "-1"),
        ("THREADS", "0"),
        ("MAX_WAITING", "-1"),
    ],
)
def test_what_cannot_be_is_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TITLECAST_{name}", value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert f"TITLECAST_{name}" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_key_is_read_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITLECAST_API_KEY", "open-sesame")
    settings = load_settings()
    assert settings.keys.admit(b"Bearer open-sesame")
    assert not settings.keys.admit(b"Bearer sesame")
    assert "sesame" not in repr(settings)
    assert "sesame" not in settings.model_dump_json()


def test_the_key_is_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("open-sesame\n")
    monkeypatch.setenv("TITLECAST_API_KEY_FILE", str(file))
    settings = load_settings()
    assert settings.keys.admit(b"Bearer open-sesame")
    assert not settings.keys.admit(b"Bearer sesame")
    assert "sesame" not in repr(settings)


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", "schlüssel".encode(), b"\xff\xfe"])
def test_a_file_without_a_usable_key_lets_nobody_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    monkeypatch.setenv("TITLECAST_API_KEY_FILE", str(file))
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "key" in str(error.value)
    assert "words" not in str(error.value)


def test_a_missing_key_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TITLECAST_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="TITLECAST_API_KEY_FILE"):
        load_settings()


def test_a_key_and_a_key_file_are_one_too_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TITLECAST_API_KEY", "a")
    monkeypatch.setenv("TITLECAST_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="not both"):
        load_settings()
