package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.InputStream;
import java.net.URI;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.common.settings.SecureSettings;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.unit.TimeValue;
import org.opensearch.core.common.settings.SecureString;

class SidecarSettingsTest {
  private static final Path HERE = Path.of(".");

  private static SidecarSettings read(String key, String... values) {
    return SidecarSettings.of(Settings.builder().putList(key, values).build(), HERE);
  }

  @Test
  void hasDefaults() {
    SidecarSettings settings = SidecarSettings.of(Settings.EMPTY, HERE);
    assertEquals(
        new SidecarSettings(
            List.of(URI.create("http://localhost:8900")),
            TimeValue.timeValueMillis(200),
            TimeValue.timeValueSeconds(2),
            4 * 1024 * 1024,
            64,
            5,
            TimeValue.timeValueSeconds(1),
            null,
            ""),
        settings);
  }

  @Test
  void readsUrls() {
    assertEquals(
        List.of(URI.create("http://a:1"), URI.create("https://b/rerankers/x")),
        read("title_rerank.sidecar.urls", "http://a:1/", " https://b/rerankers/x// ").urls());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "localhost:8900",
        "ftp://a",
        "http://",
        "http:///path",
        "http://user:secret@a",
        "http://a?b=c",
        "http://a#b",
        "http://a b",
        "file:///etc/passwd",
        "http://a:0",
        "http://a:89000",
      })
  void refusesAnAddress(String url) {
    IllegalArgumentException refused =
        assertThrows(IllegalArgumentException.class, () -> read("title_rerank.sidecar.urls", url));
    assertTrue(refused.getMessage().contains("http://localhost:8900"), "an example is the remedy");
  }

  @ParameterizedTest
  @CsvSource({
    "http://user:s3cret@a:8900/x, http://...@a:8900/x",
    "user:s3/c@ret@a, ...@a",
    "http://user:s?3#cret@a, http://...@a",
    "http://a/x?key=s3cret@b, http://...@b",
    "http://a/x?key=s3cret, http://a/x?...",
    "ftp://a, ftp://a",
  })
  void saysNothingSecretOfAnAddress(String url, String shown) {
    IllegalArgumentException refused =
        assertThrows(IllegalArgumentException.class, () -> read("title_rerank.sidecar.urls", url));
    assertTrue(refused.getMessage().contains("holds [" + shown + "]"), refused.getMessage());
  }

  @Test
  void refusesNoAddress() {
    assertThrows(
        IllegalArgumentException.class, () -> read("title_rerank.sidecar.urls", new String[0]));
  }

  @ParameterizedTest
  @CsvSource({
    "connect_timeout, 0ms",
    "timeout, 0ms",
    "timeout, -1",
    "max_response_size, 1b",
    "max_response_size, 1gb",
    "max_in_flight, 0",
    "breaker.failures, 0",
    "breaker.cool_down, 0ms",
    "tls.certificate, node.pem",
    "tls.key, node.key",
    "tls.certificate_authorities, no-such-file.pem"
  })
  void refusesWhatCannotWork(String name, String value) {
    Settings settings = Settings.builder().put(SidecarSettings.PREFIX + name, value).build();
    assertThrows(IllegalArgumentException.class, () -> SidecarSettings.of(settings, HERE));
  }

  @Test
  void readsTheKeyFromTheKeystoreAndShowsItToNobody() {
    Settings settings = Settings.builder().setSecureSettings(new Keystore("s3cret")).build();
    assertEquals("s3cret", SidecarSettings.of(settings, HERE).key());
    assertFalse(SidecarSettings.of(settings, HERE).toString().contains("s3cret"));
    Settings plain = Settings.builder().put("title_rerank.sidecar.key", "s3cret").build();
    assertThrows(IllegalArgumentException.class, () -> SidecarSettings.of(plain, HERE));
  }

  @Test
  void refusesAKeyThatNoHeaderCanCarry() {
    Settings padded = Settings.builder().setSecureSettings(new Keystore("s3cret\n")).build();
    assertEquals("s3cret", SidecarSettings.of(padded, HERE).key());
    for (String key : List.of("two words", "a\nb", "schlüssel")) {
      Settings settings = Settings.builder().setSecureSettings(new Keystore(key)).build();
      assertThrows(IllegalArgumentException.class, () -> SidecarSettings.of(settings, HERE));
    }
  }

  record Keystore(String key) implements SecureSettings {
    @Override
    public boolean isLoaded() {
      return true;
    }

    @Override
    public Set<String> getSettingNames() {
      return Set.of("title_rerank.sidecar.key");
    }

    @Override
    public SecureString getString(String setting) {
      return new SecureString(key.toCharArray());
    }

    @Override
    public InputStream getFile(String setting) {
      throw new UnsupportedOperationException();
    }

    @Override
    public byte[] getSHA256Digest(String setting) {
      return new byte[0];
    }

    @Override
    public void close() {}
  }
}
