package org.titlecast.opensearch;

import java.util.Locale;

/**
 * Keeps searches away from a sidecar that fails.
 *
 * <p>Closed until so many calls in a row have failed; then open, and no search is sent there. A
 * probe that is no search ({@code GET /health}) makes it half open: one search at a time may try,
 * and its end closes or opens it again. So no search waits for a sidecar that is still gone.
 */
final class Breaker {
  enum State {
    CLOSED,
    OPEN,
    HALF_OPEN;

    /** The name in the statistics. */
    String key() {
      return name().toLowerCase(Locale.ROOT);
    }
  }

  private State state = State.CLOSED;
  private int failures = 0; // in a row
  private boolean trying = false; // half open, and a search is under way

  synchronized State state() {
    return state;
  }

  synchronized int failuresInARow() {
    return failures;
  }

  /** Whether {@link #admit} would let a search through. */
  synchronized boolean ready() {
    return state == State.CLOSED || (state == State.HALF_OPEN && !trying);
  }

  /** Lets a search through, whose end has to be told. */
  synchronized boolean admit() {
    boolean admitted = ready();
    trying |= admitted && state == State.HALF_OPEN;
    return admitted;
  }

  /**
   * A search was answered.
   *
   * @return whether this closed it
   */
  synchronized boolean succeeded() {
    boolean closed = state != State.CLOSED;
    state = State.CLOSED;
    failures = 0;
    trying = false;
    return closed;
  }

  /**
   * A search failed, and it was the sidecar's fault; or a probe did.
   *
   * @param threshold failures in a row that open it
   * @return whether this opened it: it is to be probed from now on
   */
  synchronized boolean failed(int threshold) {
    failures++;
    trying = false;
    boolean opened = state == State.HALF_OPEN || (state == State.CLOSED && failures >= threshold);
    if (opened) {
      state = State.OPEN;
    }
    return opened;
  }

  /**
   * A search ran out of time: by the sidecar's fault, or by that of a pipeline that asks for more
   * than its time allows, which must not cost all others their reranking.
   *
   * @param threshold failures in a row at which it matters, while this is closed
   * @return whether the sidecar is to be asked how it is, for {@link #probed} or {@link #failed}
   */
  synchronized boolean late(int threshold) {
    failures++;
    return state == State.HALF_OPEN || (state == State.CLOSED && failures % threshold == 0);
  }

  /** A search ended in a way that says nothing of the sidecar. */
  synchronized void undecided() {
    trying = false;
  }

  /** The probe was answered. */
  synchronized void probed() {
    if (state == State.OPEN) {
      state = State.HALF_OPEN;
    } else { // so searches that were late were so by their own fault
      failures = 0;
      trying = false;
    }
  }
}
