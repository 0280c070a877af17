package org.titlecast.opensearch;

import java.io.Closeable;
import java.io.IOException;
import java.net.ConnectException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpConnectTimeoutException;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.HttpTimeoutException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Executor;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Pattern;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.Logger;
import org.opensearch.common.Nullable;
import org.opensearch.common.settings.Setting;
import org.opensearch.common.unit.TimeValue;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Call;

/**
 * Calls the sidecars over HTTP; one per node.
 *
 * <p>A call never blocks, never takes longer than its limit (the body included), and ends either
 * with a checked answer or with a {@link SidecarException}. Several sidecars take turns; where one
 * cannot be reached the next is tried in the time that is left.
 */
final class SidecarClient implements Closeable {
  private static final Logger logger = LogManager.getLogger(SidecarClient.class);
  private static final Pattern PRINTABLE = Pattern.compile("[\\x20-\\x7e]{1,512}");

  private final SidecarSettings settings;
  private final HttpClient http;
  private final Semaphore permits;
  private final AtomicInteger turn = new AtomicInteger();

  SidecarClient(SidecarSettings settings) {
    this.settings = settings;
    this.permits = new Semaphore(settings.maxInFlight());
    this.http =
        HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .connectTimeout(Duration.ofMillis(settings.connectTimeout().millis()))
            // A redirect could lead to an address that the operator did not name.
            .followRedirects(HttpClient.Redirect.NEVER)
            .build();
  }

  /**
   * Asks for the new order of one search's hits.
   *
   * @param timeout what the pipeline allows; the node's own limit caps it
   * @param opaqueId the search's X-Opaque-Id, handed on for tracing; may be null
   * @param executor where the answer is read and the returned future completes, so that neither
   *     runs on the HTTP client's threads
   */
  CompletableFuture<Answer> rerank(
      Call call, TimeValue timeout, @Nullable String opaqueId, Executor executor) {
    if (!permits.tryAcquire()) {
      return CompletableFuture.failedFuture(
          new SidecarException(
              settings.maxInFlight()
                  + " calls to the sidecar are under way: add sidecars, or raise "
                  + SidecarSettings.MAX_IN_FLIGHT.getKey()));
    }
    long limit = Math.min(timeout.millis(), settings.timeout().millis());
    Exchange exchange = new Exchange(call, limit, opaqueId);
    exchange.reply.orTimeout(limit, TimeUnit.MILLISECONDS);
    exchange.reply.whenComplete(
        (reply, error) -> {
          permits.release();
          exchange.stop();
        });
    exchange.send(0);
    return exchange.reply.handleAsync(
        (reply, error) -> {
          if (error != null) {
            throw explain(error, limit);
          }
          if (reply.statusCode() != 200) {
            throw refused(reply);
          }
          return SidecarProtocol.read(reply.body(), call.hits().size());
        },
        executor);
  }

  /**
   * Says hello to every sidecar, so that the first search finds a client that is warm (its classes
   * alone take longer to load than a search may wait) and the log tells whom it will find.
   */
  void greet() {
    for (URI url : settings.urls()) {
      http.sendAsync(
              authorized(HttpRequest.newBuilder(URI.create(url + "/health")))
                  .timeout(Duration.ofMillis(settings.timeout().millis()))
                  .build(),
              BodyHandlers.discarding())
          .whenComplete(
              (reply, error) -> {
                if (error == null && reply.statusCode() == 200) {
                  logger.info("sidecar [{}] is ready", url);
                } else {
                  logger.warn(
                      "sidecar [{}] is not ready: searches keep the engine's order until it is ({})",
                      url,
                      error == null ? "HTTP " + reply.statusCode() : unwrap(error).toString());
                }
              });
    }
  }

  @Override
  public void close() {
    http.shutdownNow();
  }

  /** One call: its attempts, one after the other, until one of them answers or time is up. */
  private final class Exchange {
    final CompletableFuture<HttpResponse<byte[]>> reply = new CompletableFuture<>();
    private final Call call;
    private final long deadline;
    @Nullable private final String opaqueId;
    private final int first = turn.getAndIncrement();
    private volatile CompletableFuture<?> attempt;

    Exchange(Call call, long limitMillis, @Nullable String opaqueId) {
      this.call = call;
      this.deadline = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(limitMillis);
      this.opaqueId = opaqueId;
    }

    void send(int tried) {
      try {
        CompletableFuture<HttpResponse<byte[]>> sent =
            http.sendAsync(request(tried), info -> new BoundedBody(settings.maxResponseBytes()));
        attempt = sent;
        sent.whenComplete((response, error) -> received(tried, response, error));
        if (reply.isDone()) { // time ran out while this attempt was being made
          stop();
        }
      } catch (IOException | RuntimeException e) {
        reply.completeExceptionally(e);
      }
    }

    private void received(int tried, HttpResponse<byte[]> response, Throwable error) {
      if (error == null) {
        reply.complete(response);
      } else if (!reply.isDone() && worthAnother(tried, unwrap(error))) {
        send(tried + 1);
      } else {
        reply.completeExceptionally(error);
      }
    }

    /**
     * An unreachable sidecar sends us to the next. A connection that broke is tried once more even
     * with a single sidecar: it may have been an idle one that the other side had just closed.
     */
    private boolean worthAnother(int tried, Throwable error) {
      if (tried + 1 < settings.urls().size()) {
        return unreachable(error) || broken(error);
      }
      return tried == 0 && broken(error);
    }

    private HttpRequest request(int tried) throws IOException {
      List<URI> urls = settings.urls();
      URI url = urls.get(Math.floorMod(first + tried, urls.size()));
      long left = Math.max(1, TimeUnit.NANOSECONDS.toMillis(deadline - System.nanoTime()));
      HttpRequest.Builder request =
          authorized(HttpRequest.newBuilder(URI.create(url + "/rerank")))
              .timeout(Duration.ofMillis(left))
              .header("Content-Type", "application/json")
              .header("Accept", "application/json")
              .POST(BodyPublishers.ofByteArray(SidecarProtocol.write(call, left)));
      // Whatever the client wrote there must not be able to break the call.
      if (opaqueId != null && PRINTABLE.matcher(opaqueId).matches()) {
        request.header("X-Opaque-Id", opaqueId);
      }
      return request.build();
    }

    /** Frees the connection of an attempt that nobody waits for any more. */
    void stop() {
      CompletableFuture<?> current = attempt;
      if (current != null) {
        current.cancel(true);
      }
    }
  }

  private HttpRequest.Builder authorized(HttpRequest.Builder request) {
    return settings.key().isEmpty()
        ? request
        : request.header("Authorization", "Bearer " + settings.key());
  }

  private static boolean unreachable(Throwable error) {
    return error instanceof ConnectException || error instanceof HttpConnectTimeoutException;
  }

  private static boolean broken(Throwable error) {
    return error instanceof IOException
        && !unreachable(error)
        && !(error instanceof HttpTimeoutException)
        && !(error.getCause() instanceof BoundedBody.TooLargeException);
  }

  private static Throwable unwrap(Throwable error) {
    return error instanceof CompletionException && error.getCause() != null
        ? error.getCause()
        : error;
  }

  private SidecarException explain(Throwable wrapped, long limit) {
    Throwable error = unwrap(wrapped);
    if (error instanceof BoundedBody.TooLargeException
        || error.getCause() instanceof BoundedBody.TooLargeException) {
      return new SidecarException(
          "The sidecar's answer is longer than allowed: lower the window, or raise "
              + SidecarSettings.MAX_RESPONSE_SIZE.getKey(),
          error);
    }
    if (unreachable(error)) {
      return new SidecarException(
          "No sidecar can be reached: check that one runs at the addresses of "
              + SidecarSettings.URLS.getKey(),
          error);
    }
    if (error instanceof TimeoutException
        || error instanceof HttpTimeoutException
        || error instanceof CancellationException) {
      return new SidecarException(
          "The sidecar did not answer within "
              + limit
              + " ms: lower window or passage_depth, or raise timeout (in the pipeline, at most "
              + SidecarSettings.TIMEOUT.getKey()
              + ")",
          error);
    }
    return new SidecarException(
        "The connection to the sidecar failed: see the node's log and the sidecar's", error);
  }

  private static SidecarException refused(HttpResponse<byte[]> reply) {
    int status = reply.statusCode();
    String said = SidecarProtocol.readError(reply.body());
    String remedy;
    if (said != null) {
      remedy = said;
    } else if (status / 100 == 3) {
      remedy = "redirects are not followed, give its final address in " + key(SidecarSettings.URLS);
    } else if (status == 401 || status == 403) {
      remedy = "check " + key(SidecarSettings.KEY) + " in the node's keystore";
    } else if (status == 404) {
      remedy = "check that " + key(SidecarSettings.URLS) + " names a Titlecast sidecar";
    } else {
      remedy = "see its log";
    }
    return new SidecarException("The sidecar answered HTTP " + status + ": " + remedy);
  }

  private static String key(Setting<?> setting) {
    return setting.getKey();
  }
}
