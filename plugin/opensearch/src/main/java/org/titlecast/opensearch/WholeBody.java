package org.titlecast.opensearch;

import java.net.http.HttpRequest.BodyPublisher;
import java.nio.ByteBuffer;
import java.util.concurrent.Flow.Subscriber;
import java.util.concurrent.Flow.Subscription;

/**
 * A request's body, handed to the HTTP client in one piece. The client's own publisher cuts it into
 * pieces of 16 KB, each of which it passes between its threads, writes, and waits for.
 */
final class WholeBody implements BodyPublisher {
  private final byte[] body;

  /**
   * @param body not empty, and not to be changed any more
   */
  WholeBody(byte[] body) {
    this.body = body;
  }

  @Override
  public long contentLength() {
    return body.length;
  }

  @Override
  public void subscribe(Subscriber<? super ByteBuffer> subscriber) {
    subscriber.onSubscribe(
        new Subscription() {
          private boolean done = false;

          @Override
          public void request(long pieces) {
            if (done) {
              return;
            }
            done = true;
            if (pieces < 1) {
              subscriber.onError(new IllegalArgumentException(pieces + " pieces were asked for"));
              return;
            }
            subscriber.onNext(ByteBuffer.wrap(body).asReadOnlyBuffer());
            subscriber.onComplete();
          }

          @Override
          public void cancel() {
            done = true;
          }
        });
  }
}
