package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Flow.Subscriber;
import java.util.concurrent.Flow.Subscription;
import org.junit.jupiter.api.Test;

class WholeBodyTest {
  private final WholeBody body = new WholeBody(new byte[100_000]);

  /** Notes what it is given. */
  private static final class Reader implements Subscriber<ByteBuffer> {
    final List<Integer> pieces = new ArrayList<>();
    final List<Object> ends = new ArrayList<>();
    Subscription subscription;

    @Override
    public void onSubscribe(Subscription subscription) {
      this.subscription = subscription;
    }

    @Override
    public void onNext(ByteBuffer piece) {
      pieces.add(piece.remaining());
      piece.position(piece.limit()); // as one who writes it out
    }

    @Override
    public void onError(Throwable error) {
      ends.add(error);
    }

    @Override
    public void onComplete() {
      ends.add("complete");
    }
  }

  private Reader reader() {
    Reader reader = new Reader();
    body.subscribe(reader);
    return reader;
  }

  @Test
  void isOnePieceForEachWhoAsks() {
    assertEquals(100_000, body.contentLength());
    for (int i = 0; i < 2; i++) { // the client may have to send it twice
      Reader reader = reader();
      assertEquals(List.of(), reader.pieces);
      reader.subscription.request(1);
      reader.subscription.request(1);
      assertEquals(List.of(100_000), reader.pieces);
      assertEquals(List.of("complete"), reader.ends);
    }
  }

  @Test
  void isNotSentWhenCancelled() {
    Reader reader = reader();
    reader.subscription.cancel();
    reader.subscription.request(1);
    assertEquals(List.of(), reader.pieces);
    assertEquals(List.of(), reader.ends);
  }

  @Test
  void refusesARequestForNothing() {
    Reader reader = reader();
    reader.subscription.request(0);
    assertInstanceOf(IllegalArgumentException.class, reader.ends.get(0));
    assertEquals(List.of(), reader.pieces);
  }
}
