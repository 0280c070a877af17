package org.titlecast.opensearch;

import java.io.Closeable;
import java.io.IOException;
import java.net.ConnectException;
import java.net.ProtocolException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpConnectTimeoutException;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.HttpTimeoutException;
import java.nio.channels.UnresolvedAddressException;
import java.time.Duration;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.LongAdder;
import java.util.function.LongPredicate;
import javax.net.ssl.SSLException;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.Logger;
import org.opensearch.common.Nullable;
import org.opensearch.common.settings.Setting;
import org.opensearch.common.unit.TimeValue;
import org.titlecast.opensearch.SidecarException.Failure;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Call;

/**
 * Calls the sidecars over HTTP; one per node.
 *
 * <p>A call never blocks, never takes longer than its limit (the body included), and ends either
 * with a checked answer or with a {@link SidecarException}. It goes to the sidecar with the fewest
 * calls under way; where that one fails another is tried in the time that is left, and one that
 * goes on failing is left alone until it answers probes again ({@link Breaker}).
 */
final class SidecarClient implements Closeable {
  private static final Logger logger = LogManager.getLogger(SidecarClient.class);

  /** What changes together when settings do. */
  private record Setup(SidecarSettings settings, HttpClient http, List<Sidecar> sidecars) {}

  private volatile Setup setup;
  private volatile boolean closed = false;
  private volatile LongPredicate cancelled = task -> false;
  private final AtomicInteger underWay = new AtomicInteger();
  private final AtomicInteger turn = new AtomicInteger();
  private final Map<Long, Exchange> ofTasks = new ConcurrentHashMap<>();

  SidecarClient(SidecarSettings settings) {
    this.setup = new Setup(settings, client(settings), sidecars(settings, List.of()));
  }

  /** Takes over new settings. Calls under way end as they began. */
  synchronized void update(SidecarSettings settings) {
    Setup old = setup;
    boolean same =
        settings.connectTimeout().equals(old.settings.connectTimeout())
            && settings.tls() == old.settings.tls();
    HttpClient http = same ? old.http : client(settings);
    setup = new Setup(settings, http, sidecars(settings, old.sidecars));
    if (!same) {
      retire(old);
    }
  }

  /**
   * Puts a new HTTP client in the place of one that a sidecar has told something else than HTTP.
   *
   * <p>Java's own (seen up to version 25) neither closes that connection nor forgets its request,
   * however the request is cancelled: probes alone would use up the node's file descriptors.
   */
  private synchronized void replace(HttpClient http) {
    Setup old = setup;
    if (old.http == http && !closed) { // else another call was faster
      setup = new Setup(old.settings, client(old.settings), old.sidecars);
      retire(old);
    }
  }

  /** Lets calls under way end as they began, and ends what is left when all must have. */
  private static void retire(Setup old) {
    old.http.shutdown();
    CompletableFuture.delayedExecutor(
            old.settings.timeout().millis(), TimeUnit.MILLISECONDS, Runnable::run)
        .execute(old.http::shutdownNow);
  }

  /** The settings in force. */
  SidecarSettings settings() {
    return setup.settings;
  }

  private static HttpClient client(SidecarSettings settings) {
    HttpClient.Builder http =
        HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .connectTimeout(Duration.ofMillis(settings.connectTimeout().millis()))
            // A redirect could lead to an address that the operator did not name.
            .followRedirects(HttpClient.Redirect.NEVER)
            // Nor a proxy, which the node may have for its snapshots: it would see every search.
            .proxy(HttpClient.Builder.NO_PROXY);
    return settings.tls() == null ? http.build() : http.sslContext(settings.tls()).build();
  }

  /** One for each address; those that are known already stay what they are. */
  private static List<Sidecar> sidecars(SidecarSettings settings, List<Sidecar> known) {
    return settings.urls().stream()
        .distinct()
        .map(
            url ->
                known.stream()
                    .filter(sidecar -> sidecar.url.equals(url))
                    .findFirst()
                    .orElseGet(() -> new Sidecar(url)))
        .toList();
  }

  /** One address, and what is known of it. */
  private static final class Sidecar {
    final URI url;
    final Breaker breaker = new Breaker();
    final AtomicInteger underWay = new AtomicInteger();
    final LongAdder calls = new LongAdder();
    final LongAdder failures = new LongAdder();
    @Nullable volatile String lastFailure; // what spoke against it

    Sidecar(URI url) {
      this.url = url;
    }
  }

  /**
   * Asks for the new order of one search's hits.
   *
   * @param timeout what the pipeline allows; the node's own limit caps it
   * @param executor where answers are read and the returned future completes, so that neither runs
   *     on the HTTP client's threads
   */
  CompletableFuture<Answer> rerank(Call call, TimeValue timeout, Origin origin, Executor executor) {
    SidecarSettings settings = setup.settings;
    if (underWay.incrementAndGet() > settings.maxInFlight()) {
      underWay.decrementAndGet();
      return CompletableFuture.failedFuture(
          new SidecarException(
              Failure.IN_FLIGHT_BOUND,
              settings.maxInFlight()
                  + " calls to the sidecar are under way: add sidecars, or raise "
                  + key(SidecarSettings.MAX_IN_FLIGHT)));
    }
    long limit = Math.min(timeout.millis(), settings.timeout().millis());
    Exchange exchange = new Exchange(call, limit, origin, executor);
    if (origin.task() != null) { // first of all: however soon it ends, it is taken out again
      ofTasks.put(origin.task(), exchange);
    }
    exchange.answer.orTimeout(limit, TimeUnit.MILLISECONDS);
    exchange.answer.whenComplete(
        (answer, error) -> {
          underWay.decrementAndGet();
          if (origin.task() != null) {
            ofTasks.remove(origin.task(), exchange);
          }
          exchange.stop();
        });
    if (origin.task() != null && cancelled.test(origin.task())) { // before it was put there
      cancel(origin.task());
    }
    exchange.send();
    return exchange.answer.handleAsync(
        (answer, error) -> {
          if (error != null) {
            throw explain(error, limit);
          }
          return answer;
        },
        executor);
  }

  /** Tells this client how to ask whether a search's task has been cancelled. */
  void askWhetherCancelled(LongPredicate cancelled) {
    this.cancelled = cancelled;
  }

  /** Ends the call of a search's task, if it has one. */
  void cancel(long task) {
    Exchange exchange = ofTasks.get(task);
    if (exchange != null) {
      exchange.answer.completeExceptionally(
          new SidecarException(Failure.CANCELLED, "The search was cancelled"));
    }
  }

  /**
   * Says hello to every sidecar, so that the first search finds a client that is warm (its classes
   * alone take longer to load than a search may wait) and the log tells whom it will find.
   */
  void greet() {
    for (Sidecar sidecar : setup.sidecars) {
      health(sidecar)
          .whenComplete(
              (ready, error) -> {
                if (error == null) {
                  logger.info("sidecar [{}] is ready", sidecar.url);
                } else {
                  logger.warn(
                      "sidecar [{}] is not ready: searches keep the engine's order until it is ({})",
                      sidecar.url,
                      unwrap(error).toString());
                }
              });
    }
  }

  /** Fails unless the sidecar says in time, its whole answer included, that it is ready. */
  private CompletableFuture<Void> health(Sidecar sidecar) {
    Setup now = setup;
    long limit = now.settings.timeout().millis();
    try {
      CompletableFuture<HttpResponse<Void>> sent =
          now.http.sendAsync(
              authorized(HttpRequest.newBuilder(URI.create(sidecar.url + "/health"))).build(),
              BodyHandlers.discarding());
      return sent.thenAccept(
              reply -> {
                if (reply.statusCode() != 200) {
                  throw new CompletionException(new IOException("HTTP " + reply.statusCode()));
                }
              })
          .orTimeout(limit, TimeUnit.MILLISECONDS)
          .whenComplete(
              (ready, error) -> {
                sent.cancel(true); // which frees the connection where time ran out
                if (error != null && causedBy(error, ProtocolException.class)) {
                  replace(now.http);
                }
              });
    } catch (RuntimeException e) {
      return CompletableFuture.failedFuture(e);
    }
  }

  /** Counts a failure against a sidecar, which is left alone after too many. */
  private void failed(Sidecar sidecar, Failure failure) {
    if (sidecar.breaker.failed(setup.settings.breakerFailures())) {
      logger.warn(
          "sidecar [{}] failed {} times in a row ({}): no search is sent there until it answers",
          sidecar.url,
          sidecar.breaker.failuresInARow(),
          failure.key());
      probeLater(sidecar);
    }
  }

  /**
   * Asks a sidecar whose searches ran out of time, here or in its line, whether it is to blame for
   * that.
   */
  private void probe(Sidecar sidecar) {
    ask(sidecar, () -> failed(sidecar, Failure.TIMEOUT));
  }

  /** Asks a sidecar that is left alone how it is, again and again until it is well. */
  private void probeLater(Sidecar sidecar) {
    CompletableFuture.delayedExecutor(
            setup.settings.breakerCoolDown().millis(), TimeUnit.MILLISECONDS, Runnable::run)
        .execute(
            () -> {
              if (closed || !setup.sidecars.contains(sidecar)) {
                return;
              }
              ask(sidecar, () -> probeLater(sidecar));
            });
  }

  /** Asks a sidecar how it is, and tells its breaker where it is well. */
  private void ask(Sidecar sidecar, Runnable otherwise) {
    health(sidecar)
        .whenComplete(
            (ready, error) -> {
              if (error == null) {
                sidecar.breaker.probed();
              } else {
                otherwise.run();
              }
            });
  }

  /** What is known of every sidecar, as it goes between nodes and into JSON. */
  Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("in_flight", underWay.get());
    map.put(
        "sidecars",
        setup.sidecars.stream()
            .map(
                sidecar -> {
                  Map<String, Object> one = new LinkedHashMap<>();
                  one.put("url", sidecar.url.toString());
                  one.put("breaker", sidecar.breaker.state().key());
                  one.put("failures_in_a_row", sidecar.breaker.failuresInARow());
                  one.put("in_flight", sidecar.underWay.get());
                  one.put("calls", sidecar.calls.sum());
                  one.put("failures", sidecar.failures.sum());
                  return one;
                })
            .toList());
    return map;
  }

  @Override
  public void close() {
    closed = true;
    setup.http.shutdownNow();
  }

  /** One search: its attempts, one after the other, until one of them answers or time is up. */
  private final class Exchange {
    final CompletableFuture<Answer> answer = new CompletableFuture<>();
    private final Call call;
    private final long deadline;
    private final Origin origin;
    private final Executor executor;
    private final int first = turn.getAndIncrement();
    private final Set<Sidecar> tried = new HashSet<>();
    private boolean triedAgain = false;
    private volatile Attempt attempt;

    Exchange(Call call, long limitMillis, Origin origin, Executor executor) {
      this.call = call;
      this.deadline = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(limitMillis);
      this.origin = origin;
      this.executor = executor;
    }

    /** Sends it to the best sidecar. */
    void send() {
      Sidecar sidecar = choose();
      if (sidecar == null) {
        answer.completeExceptionally(
            new SidecarException(
                Failure.BREAKER_OPEN,
                "Every sidecar failed several times in a row and is left alone until it answers"
                    + " again: see their logs and GET "
                    + StatsAction.PATH
                    + lastFailure()));
      } else {
        send(sidecar);
      }
    }

    /** Why the first sidecar is left alone, so that the remedy is told as long as that is so. */
    private String lastFailure() {
      return setup.sidecars.stream()
          .map(sidecar -> sidecar.lastFailure)
          .filter(Objects::nonNull)
          .findFirst()
          .map(said -> " (" + said + ")")
          .orElse("");
    }

    /**
     * The one with the fewest calls under way; among equals they take turns. Null: none is left.
     */
    @Nullable
    private Sidecar choose() {
      List<Sidecar> all = setup.sidecars;
      while (true) {
        Sidecar best = null;
        for (int i = 0; i < all.size(); i++) {
          Sidecar sidecar = all.get(Math.floorMod(first + i, all.size()));
          if (!tried.contains(sidecar)
              && sidecar.breaker.ready()
              && (best == null || sidecar.underWay.get() < best.underWay.get())) {
            best = sidecar;
          }
        }
        if (best == null || best.breaker.admit()) {
          return best;
        }
      }
    }

    private void send(Sidecar sidecar) {
      tried.add(sidecar);
      Setup now = setup;
      long left = Math.max(1, TimeUnit.NANOSECONDS.toMillis(deadline - System.nanoTime()));
      Attempt made = new Attempt(sidecar, now.http);
      // Not all of the setup: a client that a request of its own leads to is never collected.
      int mostBytes = now.settings.maxResponseBytes();
      CompletableFuture<HttpResponse<byte[]>> sent;
      try {
        sent = now.http.sendAsync(request(sidecar, left), info -> new BoundedBody(mostBytes));
      } catch (IOException | RuntimeException e) {
        sent = CompletableFuture.failedFuture(e);
      }
      made.sent = sent;
      attempt = made;
      sent.thenApplyAsync(this::read, executor)
          .whenComplete((read, error) -> received(made, read, error));
      if (answer.isDone()) { // time ran out while this attempt was being made
        stop();
      }
    }

    private Answer read(HttpResponse<byte[]> reply) {
      if (reply.statusCode() != 200) {
        throw refused(reply);
      }
      return SidecarProtocol.read(reply.body(), call.hits().size());
    }

    private void received(Attempt made, @Nullable Answer read, @Nullable Throwable error) {
      if (error == null) {
        made.end(null);
        answer.complete(read);
        return;
      }
      if (causedBy(error, ProtocolException.class)) {
        replace(made.http);
      }
      SidecarException known = explain(error, 0);
      if (known.failure().countsAgainstSidecar()) {
        made.sidecar.lastFailure = known.getMessage();
      }
      made.end(known.failure());
      if (answer.isDone()) {
        return;
      }
      Sidecar next = next(made.sidecar, known.failure());
      if (next == null) {
        answer.completeExceptionally(error);
      } else {
        send(next);
      }
    }

    /**
     * Whom to ask after this failure; null: nobody. A connection that broke is tried once more even
     * with a single sidecar: it may have been an idle one that the other side had just closed.
     */
    @Nullable
    private Sidecar next(Sidecar failed, Failure failure) {
      if (!failure.worthAnother() || deadline - System.nanoTime() <= 0) {
        return null;
      }
      Sidecar other = choose();
      if (other != null) {
        return other;
      }
      boolean again = failure == Failure.CONNECTION && !triedAgain && tried.size() == 1;
      triedAgain = true;
      return again && failed.breaker.admit() ? failed : null;
    }

    private HttpRequest request(Sidecar sidecar, long leftMillis) throws IOException {
      HttpRequest.Builder request =
          authorized(HttpRequest.newBuilder(URI.create(sidecar.url + "/rerank")))
              .timeout(Duration.ofMillis(leftMillis))
              .header("Content-Type", "application/json")
              .header("Accept", "application/json")
              // In the body as well; here a busy sidecar sees it without reading that.
              .header(SidecarProtocol.DEADLINE_HEADER, Long.toString(leftMillis))
              .POST(new WholeBody(SidecarProtocol.write(call, leftMillis)));
      origin.headers().forEach(request::header);
      return request.build();
    }

    /** Frees the connection of an attempt that nobody waits for any more. */
    void stop() {
      Attempt last = attempt;
      if (last == null) {
        return;
      }
      Throwable error = answer.isCompletedExceptionally() ? answer.exceptionNow() : null;
      last.end(error == null ? null : explain(error, 0).failure());
      last.sent.cancel(true);
    }
  }

  /** One request to one sidecar. */
  private final class Attempt {
    final Sidecar sidecar;
    final HttpClient http;
    private final AtomicBoolean ended = new AtomicBoolean();
    private volatile CompletableFuture<?> sent;

    Attempt(Sidecar sidecar, HttpClient http) {
      this.sidecar = sidecar;
      this.http = http;
      sidecar.calls.increment();
      sidecar.underWay.incrementAndGet();
    }

    /** Notes how it ended, once; null: with an answer. */
    void end(@Nullable Failure failure) {
      if (!ended.compareAndSet(false, true)) {
        return;
      }
      sidecar.underWay.decrementAndGet();
      if (failure == null) {
        sidecar.lastFailure = null;
        if (sidecar.breaker.succeeded()) {
          logger.info("sidecar [{}] answers again", sidecar.url);
        }
        return;
      }
      if (failure != Failure.CANCELLED) {
        sidecar.failures.increment();
      }
      if (failure == Failure.TIMEOUT || failure == Failure.POSTPONED) {
        if (sidecar.breaker.late(setup.settings.breakerFailures())) {
          probe(sidecar);
        }
      } else if (failure.countsAgainstSidecar()) {
        failed(sidecar, failure);
      } else {
        sidecar.breaker.undecided();
      }
    }
  }

  private HttpRequest.Builder authorized(HttpRequest.Builder request) {
    String key = setup.settings.key();
    return key.isEmpty() ? request : request.header("Authorization", "Bearer " + key);
  }

  private static Throwable unwrap(Throwable error) {
    return error instanceof CompletionException && error.getCause() != null
        ? error.getCause()
        : error;
  }

  private static boolean causedBy(Throwable error, Class<? extends Throwable> kind) {
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      if (kind.isInstance(cause)) {
        return true;
      }
    }
    return false;
  }

  /**
   * Gives an error its cause and its remedy.
   *
   * @param limit milliseconds that the whole call was allowed to take
   */
  private static SidecarException explain(Throwable wrapped, long limit) {
    Throwable error = unwrap(wrapped);
    if (error instanceof SidecarException known) {
      return known;
    }
    if (causedBy(error, BoundedBody.TooLargeException.class)) {
      return new SidecarException(
          Failure.TOO_LONG,
          "The sidecar's answer is longer than allowed: lower the window, or raise "
              + key(SidecarSettings.MAX_RESPONSE_SIZE),
          error);
    }
    if (causedBy(error, UnresolvedAddressException.class)) {
      return new SidecarException(
          Failure.UNRESOLVED,
          "No sidecar can be reached: a name in "
              + key(SidecarSettings.URLS)
              + " cannot be resolved, check it and the node's DNS",
          error);
    }
    if (causedBy(error, SSLException.class)) {
      return new SidecarException(
          Failure.TLS,
          "The TLS connection to the sidecar failed: check its certificate and "
              + SidecarSettings.PREFIX
              + "tls.*, see the node's log",
          error);
    }
    if (error instanceof ConnectException || error instanceof HttpConnectTimeoutException) {
      return new SidecarException(
          Failure.UNREACHABLE,
          "No sidecar can be reached: check that one runs at the addresses of "
              + key(SidecarSettings.URLS),
          error);
    }
    if (error instanceof TimeoutException
        || error instanceof HttpTimeoutException
        || error instanceof CancellationException) {
      return new SidecarException(
          Failure.TIMEOUT,
          "The sidecar did not answer within "
              + limit
              + " ms: lower window or passage_depth, or raise timeout (in the pipeline, at most "
              + key(SidecarSettings.TIMEOUT)
              + ")",
          error);
    }
    if (error instanceof IOException) {
      return new SidecarException(
          Failure.CONNECTION,
          "The connection to the sidecar failed: see the node's log and the sidecar's",
          error);
    }
    return new SidecarException(
        Failure.INTERNAL, "Reranking failed within the plugin: see the node's log", error);
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
    Failure failure =
        switch (status) {
          case 400, 408, 413, 422 -> Failure.REFUSED;
          case 429 -> Failure.BUSY;
          case 503 ->
              reply.headers().firstValue("Retry-After").isPresent()
                  ? Failure.POSTPONED
                  : Failure.UNAVAILABLE;
          default -> status >= 500 ? Failure.UNAVAILABLE : Failure.MISDIRECTED;
        };
    return new SidecarException(failure, "The sidecar answered HTTP " + status + ": " + remedy);
  }

  private static String key(Setting<?> setting) {
    return setting.getKey();
  }
}
