package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;
import org.titlecast.opensearch.Breaker.State;

class BreakerTest {
  private final Breaker breaker = new Breaker();

  private void open() {
    assertFalse(breaker.failed(2));
    assertTrue(breaker.failed(2));
    assertEquals(State.OPEN, breaker.state());
  }

  @Test
  void opensAfterFailuresInARow() {
    breaker.failed(2);
    breaker.succeeded();
    breaker.failed(2);
    assertEquals(State.CLOSED, breaker.state());
    assertTrue(breaker.admit());
    assertTrue(breaker.admit(), "closed, it counts nobody");
    assertTrue(breaker.failed(2));
    assertFalse(breaker.admit());
  }

  @Test
  void isOpenedOnce() {
    open();
    assertFalse(breaker.failed(2), "a call that began before");
    assertEquals(State.OPEN, breaker.state());
  }

  @Test
  void letsOneSearchTryAfterAProbe() {
    open();
    breaker.probed();
    assertTrue(breaker.ready());
    assertTrue(breaker.admit());
    assertFalse(breaker.ready());
    assertFalse(breaker.admit());
    assertTrue(breaker.succeeded());
    assertEquals(State.CLOSED, breaker.state());
    assertEquals(0, breaker.failuresInARow());
  }

  @Test
  void oneFailureOpensItAgain() {
    open();
    breaker.probed();
    breaker.admit();
    assertTrue(breaker.failed(2));
    assertEquals(State.OPEN, breaker.state());
  }

  @Test
  void aTrialThatSaysNothingGivesWayToTheNext() {
    open();
    breaker.probed();
    breaker.admit();
    breaker.undecided();
    assertEquals(State.HALF_OPEN, breaker.state());
    assertTrue(breaker.admit());
  }

  @Test
  void lateSearchesAloneNeverOpenIt() {
    for (int i = 0; i < 3; i++) {
      assertFalse(breaker.late(2));
      assertTrue(breaker.late(2), "the sidecar is asked");
      breaker.probed();
      assertEquals(State.CLOSED, breaker.state());
      assertEquals(0, breaker.failuresInARow());
    }
  }

  @Test
  void lateSearchesAndAFailedProbeOpenIt() {
    breaker.late(2);
    breaker.late(2);
    assertTrue(breaker.failed(2));
    assertEquals(State.OPEN, breaker.state());
    assertFalse(breaker.late(2), "a call that began before");
    assertFalse(breaker.late(2), "it is probed already");
  }

  @Test
  void aSearchThatIsAnsweredMeanwhileOutweighsAFailedProbe() {
    breaker.late(2);
    breaker.late(2);
    breaker.succeeded();
    assertFalse(breaker.failed(2));
    assertEquals(State.CLOSED, breaker.state());
  }

  @Test
  void aLateTrialWaitsForTheProbe() {
    open();
    breaker.probed();
    breaker.admit();
    assertTrue(breaker.late(2));
    assertFalse(breaker.ready(), "no other search waits for a sidecar that may be gone");
    breaker.probed();
    assertEquals(State.HALF_OPEN, breaker.state());
    assertTrue(breaker.admit());
    assertTrue(breaker.late(2));
    assertTrue(breaker.failed(2));
    assertEquals(State.OPEN, breaker.state());
  }
}
