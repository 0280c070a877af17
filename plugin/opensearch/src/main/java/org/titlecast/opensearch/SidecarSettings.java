package org.titlecast.opensearch;

import java.net.URI;
import java.net.URISyntaxException;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import javax.net.ssl.SSLContext;
import org.opensearch.common.Nullable;
import org.opensearch.common.settings.SecureSetting;
import org.opensearch.common.settings.Setting;
import org.opensearch.common.settings.Setting.Property;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.unit.TimeValue;
import org.opensearch.core.common.settings.SecureString;
import org.opensearch.core.common.unit.ByteSizeUnit;
import org.opensearch.core.common.unit.ByteSizeValue;

/**
 * Where the sidecar is and what a call to it may cost.
 *
 * <p>These are settings of the node and not of the pipeline: whoever may create a pipeline must not
 * be able to make the cluster call an address of their choice.
 *
 * @param urls the sidecars' base addresses, at least one, without a slash at the end
 * @param connectTimeout limit for making one connection
 * @param timeout limit for a whole call, whatever a pipeline asks for
 * @param maxResponseBytes limit for the body of an answer
 * @param maxInFlight limit for the calls under way at one time
 * @param breakerFailures failed calls in a row after which a sidecar is left alone
 * @param breakerCoolDown time between two probes of a sidecar that is left alone
 * @param tls of {@code https} addresses; null: as Java does it by default
 * @param key bearer token; empty if the sidecar asks for none
 */
record SidecarSettings(
    List<URI> urls,
    TimeValue connectTimeout,
    TimeValue timeout,
    int maxResponseBytes,
    int maxInFlight,
    int breakerFailures,
    TimeValue breakerCoolDown,
    @Nullable SSLContext tls,
    String key) {

  static final String PREFIX = "title_rerank.sidecar.";

  static final Setting<List<URI>> URLS =
      Setting.listSetting(
          PREFIX + "urls",
          List.of("http://localhost:8900"),
          SidecarSettings::parseUrl,
          urls -> {
            if (urls.isEmpty()) {
              throw new IllegalArgumentException(
                  "[" + PREFIX + "urls] is empty: name at least one sidecar, or leave it out");
            }
          },
          Property.NodeScope,
          Property.Dynamic);

  static final Setting<TimeValue> CONNECT_TIMEOUT =
      Setting.timeSetting(
          PREFIX + "connect_timeout",
          TimeValue.timeValueMillis(200),
          TimeValue.timeValueMillis(1),
          Property.NodeScope,
          Property.Dynamic);

  static final Setting<TimeValue> TIMEOUT =
      Setting.timeSetting(
          PREFIX + "timeout",
          TimeValue.timeValueSeconds(2),
          TimeValue.timeValueMillis(1),
          Property.NodeScope,
          Property.Dynamic);

  static final Setting<ByteSizeValue> MAX_RESPONSE_SIZE =
      Setting.byteSizeSetting(
          PREFIX + "max_response_size",
          new ByteSizeValue(4, ByteSizeUnit.MB),
          new ByteSizeValue(1, ByteSizeUnit.KB),
          new ByteSizeValue(256, ByteSizeUnit.MB),
          Property.NodeScope,
          Property.Dynamic);

  static final Setting<Integer> MAX_IN_FLIGHT =
      Setting.intSetting(PREFIX + "max_in_flight", 64, 1, Property.NodeScope, Property.Dynamic);

  static final Setting<Integer> BREAKER_FAILURES =
      Setting.intSetting(PREFIX + "breaker.failures", 5, 1, Property.NodeScope, Property.Dynamic);

  static final Setting<TimeValue> BREAKER_COOL_DOWN =
      Setting.timeSetting(
          PREFIX + "breaker.cool_down",
          TimeValue.timeValueSeconds(1),
          TimeValue.timeValueMillis(10),
          Property.NodeScope,
          Property.Dynamic);

  /** PEM files, relative to the node's configuration folder. */
  static final Setting<String> TLS_AUTHORITIES = file("tls.certificate_authorities");

  static final Setting<String> TLS_CERTIFICATE = file("tls.certificate");

  static final Setting<String> TLS_KEY = file("tls.key");

  static final Setting<SecureString> KEY = SecureSetting.secureString(PREFIX + "key", null);

  /** Those that may be changed while the node runs. */
  static final List<Setting<?>> DYNAMIC =
      List.of(
          URLS,
          CONNECT_TIMEOUT,
          TIMEOUT,
          MAX_RESPONSE_SIZE,
          MAX_IN_FLIGHT,
          BREAKER_FAILURES,
          BREAKER_COOL_DOWN);

  static List<Setting<?>> all() {
    return Stream.concat(
            DYNAMIC.stream(), Stream.of(TLS_AUTHORITIES, TLS_CERTIFICATE, TLS_KEY, KEY))
        .toList();
  }

  private static Setting<String> file(String name) {
    return Setting.simpleString(PREFIX + name, Property.NodeScope);
  }

  /** Reads them all, while the keystore is open. */
  static SidecarSettings of(Settings settings, Path configuration) {
    return read(settings, tls(settings, configuration), key(settings));
  }

  /** These, but for the dynamic settings, which are as given or have their defaults. */
  SidecarSettings withDynamic(Settings settings) {
    return read(settings, tls, key);
  }

  /** These, with the keystore's key and the certificates' files read again. */
  SidecarSettings withSecrets(Settings settings, Path configuration) {
    return new SidecarSettings(
        urls,
        connectTimeout,
        timeout,
        maxResponseBytes,
        maxInFlight,
        breakerFailures,
        breakerCoolDown,
        tls(settings, configuration),
        key(settings));
  }

  private static SidecarSettings read(Settings settings, @Nullable SSLContext tls, String key) {
    return new SidecarSettings(
        URLS.get(settings),
        CONNECT_TIMEOUT.get(settings),
        TIMEOUT.get(settings),
        Math.toIntExact(MAX_RESPONSE_SIZE.get(settings).getBytes()),
        MAX_IN_FLIGHT.get(settings),
        BREAKER_FAILURES.get(settings),
        BREAKER_COOL_DOWN.get(settings),
        tls,
        key);
  }

  @Nullable
  private static SSLContext tls(Settings settings, Path configuration) {
    Path authorities = path(TLS_AUTHORITIES, settings, configuration);
    Path certificate = path(TLS_CERTIFICATE, settings, configuration);
    Path key = path(TLS_KEY, settings, configuration);
    if ((certificate == null) != (key == null)) {
      throw new IllegalArgumentException(
          "set both [" + TLS_CERTIFICATE.getKey() + "] and [" + TLS_KEY.getKey() + "], or neither");
    }
    return authorities == null && certificate == null
        ? null
        : Tls.context(authorities, certificate, key);
  }

  @Nullable
  private static Path path(Setting<String> setting, Settings settings, Path configuration) {
    String name = setting.get(settings);
    return name.isEmpty() ? null : configuration.resolve(name);
  }

  private static String key(Settings settings) {
    try (SecureString key = KEY.get(settings)) {
      return header(key.toString().strip());
    }
  }

  /** A key that no HTTP header can carry would otherwise fail every call. */
  private static String header(String key) {
    if (!key.chars().allMatch(c -> c > ' ' && c < 127)) {
      throw new IllegalArgumentException(
          "[" + KEY.getKey() + "] in the keystore may hold visible ASCII only, and no spaces");
    }
    return key;
  }

  private static URI parseUrl(String text) {
    URI url;
    try {
      url = new URI(text.strip().replaceAll("/+$", ""));
    } catch (URISyntaxException e) {
      throw unusable(text);
    }
    boolean http = "http".equalsIgnoreCase(url.getScheme());
    boolean https = "https".equalsIgnoreCase(url.getScheme());
    // No connection can be tried at other ports, so that every call there would be a fault of ours.
    boolean port = url.getPort() == -1 || (url.getPort() >= 1 && url.getPort() <= 65_535);
    if ((!http && !https)
        || url.getHost() == null
        || !port
        || url.getUserInfo() != null
        || url.getQuery() != null
        || url.getFragment() != null) {
      throw unusable(text);
    }
    return url;
  }

  /** A log must see neither user and password nor what a query may hold. */
  private static IllegalArgumentException unusable(String text) {
    String shown = text.replaceAll("(?s)^(\\w+://)?.*@", "$1...@").replaceAll("(?s)[?#].*", "?...");
    return new IllegalArgumentException(
        "["
            + PREFIX
            + "urls] holds ["
            + shown
            + "]: give http or https addresses such as http://localhost:8900, without user, query"
            + " or fragment (a key belongs into the keystore as "
            + PREFIX
            + "key)");
  }

  /** Without the key, which a log must never see. */
  @Override
  public String toString() {
    return "SidecarSettings" + urls;
  }
}
