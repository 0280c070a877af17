package org.titlecast.opensearch;

import java.util.Locale;
import org.opensearch.common.Nullable;

/**
 * Why a search could not be reranked, in one sentence that names the remedy.
 *
 * <p>The sentence goes into search responses, so it never holds an address or a key.
 */
final class SidecarException extends RuntimeException {
  /** The kinds of failure that the statistics tell apart. */
  enum Failure {
    /** No connection could be made. */
    UNREACHABLE,
    /** The address has a name that no resolver knows. */
    UNRESOLVED,
    /** A certificate was not accepted, by either side. */
    TLS,
    /** The connection broke, or carried no HTTP. */
    CONNECTION,
    /** No whole answer came in time. */
    TIMEOUT,
    /** HTTP 429. */
    BUSY,
    /** HTTP 503 with Retry-After: its time passed in line there, or that sidecar is not ready. */
    POSTPONED,
    /** Any other HTTP 5xx. */
    UNAVAILABLE,
    /** HTTP 400, 408, 413 or 422: it is this search that is refused. */
    REFUSED,
    /** Any other status but 200: the key is wrong, or no sidecar is at that address. */
    MISDIRECTED,
    /** An answer that does not keep to the contract. */
    UNUSABLE,
    /** An answer beyond {@link SidecarSettings#MAX_RESPONSE_SIZE}. */
    TOO_LONG,
    /** Every sidecar's breaker is open. */
    BREAKER_OPEN,
    /** As many calls as allowed were under way. */
    IN_FLIGHT_BOUND,
    /** The search was cancelled. */
    CANCELLED,
    /** A fault of the plugin itself. */
    INTERNAL;

    /**
     * Whether it speaks against the sidecar by itself; what a caller may be to blame for never
     * does.
     */
    boolean countsAgainstSidecar() {
      return switch (this) {
        case UNREACHABLE,
            UNRESOLVED,
            TLS,
            CONNECTION,
            UNAVAILABLE,
            MISDIRECTED,
            UNUSABLE,
            TOO_LONG ->
            true;
        case TIMEOUT,
            BUSY,
            POSTPONED,
            REFUSED,
            BREAKER_OPEN,
            IN_FLIGHT_BOUND,
            CANCELLED,
            INTERNAL ->
            false;
      };
    }

    /** Whether another sidecar may do better. */
    boolean worthAnother() {
      return switch (this) {
        case UNREACHABLE,
            UNRESOLVED,
            TLS,
            CONNECTION,
            BUSY,
            POSTPONED,
            UNAVAILABLE,
            MISDIRECTED,
            UNUSABLE ->
            true;
        case TIMEOUT, REFUSED, TOO_LONG, BREAKER_OPEN, IN_FLIGHT_BOUND, CANCELLED, INTERNAL ->
            false;
      };
    }

    /** The name in the statistics. */
    String key() {
      return name().toLowerCase(Locale.ROOT);
    }
  }

  private final Failure failure;

  SidecarException(Failure failure, String reason) {
    this(failure, reason, null);
  }

  SidecarException(Failure failure, String reason, @Nullable Throwable cause) {
    super(reason, cause);
    this.failure = failure;
  }

  Failure failure() {
    return failure;
  }
}
