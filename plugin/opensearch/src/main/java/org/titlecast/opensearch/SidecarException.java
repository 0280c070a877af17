package org.titlecast.opensearch;

/**
 * Why a search could not be reranked, in one sentence that names the remedy.
 *
 * <p>The sentence goes into search responses, so it never holds an address or a key.
 */
final class SidecarException extends RuntimeException {
  SidecarException(String reason) {
    super(reason);
  }

  SidecarException(String reason, Throwable cause) {
    super(reason, cause);
  }
}
