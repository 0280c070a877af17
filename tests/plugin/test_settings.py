from pathlib import Path

import pytest
import trustme

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


def test_options_come_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings"
    file.write_text("# limits\nTITLECAST_PORT=1\nTITLECAST_MAX_HITS=2\nTITLECAST_WORKERS=3\n")
    monkeypatch.setenv("TITLECAST_MAX_HITS", "20")
    monkeypatch.setenv("TITLECAST_WORKERS", "30")
    settings = load_settings(file, workers=300 - 100)
    assert (settings.port, settings.max_hits, settings.workers) == (1, 20, 200)
    monkeypatch.setenv("TITLECAST_CONFIG", str(file))
    assert load_settings().port == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"TITLECAST_MAX_HIT=7", "no setting TITLECAST_MAX_HIT:"),
        (b"#\n\nAPI_KEY=secret\n", "line 3 of the settings file"),
        (b"API_KEY=secret\n", "names begin with TITLECAST_"),
        (b"TITLECAST_PORT=1\nTITLECAST_API_KEY: secret\n", "line 2"),
        (b"TITLECAST_API_KEY: secret\n", "write it like TITLECAST_PORT=8900"),
        (b"TITLECAST_API_KEY secret\n", "write it like"),
        (b"secret\n", "write it like"),
        (b"TITLECAST_API_KEY='secret\n", "write it like"),
        (b"TITLECAST_API_KEY=\n", "TITLECAST_API_KEY is empty"),
        (b"TITLECAST_API_KEY_FILE=''\n", "TITLECAST_API_KEY_FILE is empty"),
        (b"TITLECAST_MAX_HITS=none", "TITLECAST_MAX_HITS cannot be used"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "settings"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        load_settings(file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_s_lines_are_read_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NAME", "expanded")
    file = tmp_path / "settings"
    file.write_text(
        "\ufeffTITLECAST_PORT=1\n# none\n\nexport titlecast_max_hits=2  # few\nTITLECAST_THREADS=\n"
        "TITLECAST_API_KEY='a${NAME}b' \n",
        "utf-8",
    )
    settings = load_settings(file)
    assert (settings.port, settings.max_hits, settings.threads) == (1, 2, None)
    assert settings.keys.admit(b"Bearer a${NAME}b")


@pytest.mark.parametrize("name", ["TITLECAST_API_KEY", "TITLECAST_API_KEY_FILE"])
def test_an_empty_key_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    with pytest.raises(SettingsError, match=f"{name} is empty"):
        load_settings()


def test_several_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITLECAST_API_KEY", "old  new")
    keys = load_settings().keys
    assert len(keys) == 2
    assert keys.admit(b"Bearer new")
    monkeypatch.setenv("TITLECAST_API_KEY", " ")  # meant to keep somebody out
    with pytest.raises(SettingsError, match="visible ASCII"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_cert": "cert"}, "TLS_CERT and TITLECAST_TLS_KEY together"),
        ({"tls_key": "key"}, "together"),
        ({"tls_client_ca": "ca"}, "TLS_CLIENT_CA needs"),
        ({"tls_cert": "cert", "tls_key": "none"}, "TLS files cannot be used"),
        ({"tls_cert": "text", "tls_key": "key"}, "TLS files cannot be used"),
        ({"tls_cert": "cert", "tls_key": "other"}, "must belong to the certificate"),
        ({"tls_cert": "cert", "tls_key": "key", "tls_client_ca": "text"}, "_TLS_CLIENT_CA"),
    ],
    ids=str,
)
def test_tls_files_are_checked_before_it_starts(
    tmp_path: Path, given: dict[str, str], words: str
) -> None:
    ca = trustme.CA()
    for cert, key in (("cert", "key"), ("another", "other")):
        issued = ca.issue_cert("localhost")
        (tmp_path / cert).write_bytes(issued.cert_chain_pems[0].bytes())
        (tmp_path / key).write_bytes(issued.private_key_pem.bytes())
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(SettingsError) as error:
        load_settings(**{name: tmp_path / file for name, file in given.items()})
    assert words in str(error.value)


def test_every_setting_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for name in (*Settings.model_fields, "config"):
        assert f"`TITLECAST_{name.upper()}`" in text, name
