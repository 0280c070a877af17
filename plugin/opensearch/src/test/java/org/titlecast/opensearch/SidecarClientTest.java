package org.titlecast.opensearch;

import static java.nio.charset.StandardCharsets.US_ASCII;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.net.URI;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.BooleanSupplier;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.unit.TimeValue;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Call;
import org.titlecast.opensearch.SidecarProtocol.Candidate;
import org.titlecast.opensearch.SidecarProtocol.Placed;

@Timeout(
    value = 30,
    threadMode = Timeout.ThreadMode.SEPARATE_THREAD) // a lost call fails, and hangs nothing
class SidecarClientTest {
  /** Long enough for any test that does not wait for it. */
  private static final TimeValue LONG = TimeValue.timeValueSeconds(20);

  private static final long TASK = 7;

  private static final Call CALL =
      new Call(
          "fox",
          List.of(new Candidate("a", "A", "", 2f), new Candidate("b", "B", "text", Float.NaN)),
          7);

  private final FakeSidecar sidecar = new FakeSidecar();
  private final List<SidecarClient> clients = new ArrayList<>();
  private final ExecutorService executor =
      Executors.newSingleThreadExecutor(task -> new Thread(task, "continuation"));

  @AfterEach
  void close() {
    clients.forEach(SidecarClient::close);
    sidecar.close();
    executor.shutdownNow();
  }

  private SidecarClient client(TimeValue timeout, int bytes, int inFlight, String... urls) {
    SidecarClient client =
        new SidecarClient(
            new SidecarSettings(
                Stream.of(urls).map(URI::create).toList(),
                TimeValue.timeValueSeconds(5),
                timeout,
                bytes,
                inFlight,
                1_000,
                TimeValue.timeValueMillis(50),
                null,
                "s3cret"));
    clients.add(client);
    return client;
  }

  private SidecarClient client(String... urls) {
    return client(LONG, 100_000, 4, urls);
  }

  private CompletableFuture<Answer> ask(SidecarClient client, TimeValue timeout) {
    return client.rerank(CALL, timeout, origin("opaque"), executor);
  }

  private static Origin origin(String id) {
    Map<String, String> headers = new HashMap<>();
    headers.put("X-Opaque-Id", id);
    headers.put("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    return new Origin(TASK, headers);
  }

  /** A client that leaves a sidecar alone after two failures. */
  private SidecarClient wary(String... urls) {
    SidecarClient client = client(urls);
    client.update(
        client
            .settings()
            .withDynamic(
                Settings.builder()
                    .putList("title_rerank.sidecar.urls", urls)
                    .put("title_rerank.sidecar.timeout", "20s")
                    .put("title_rerank.sidecar.breaker.failures", 2)
                    .put("title_rerank.sidecar.breaker.cool_down", "20ms")
                    .build()));
    return client;
  }

  @SuppressWarnings("unchecked")
  private static Object known(SidecarClient client, int sidecar, String what) {
    return ((List<Map<String, Object>>) client.toMap().get("sidecars")).get(sidecar).get(what);
  }

  private static void waitUntil(BooleanSupplier condition) throws InterruptedException {
    while (!condition.getAsBoolean()) { // the class has a time limit
      Thread.sleep(5);
    }
  }

  private String failure(SidecarClient client, TimeValue timeout) {
    CompletionException failed =
        assertThrows(CompletionException.class, () -> ask(client, timeout).join());
    return assertThrows(
            SidecarException.class,
            () -> {
              throw failed.getCause();
            })
        .getMessage();
  }

  private String failure() {
    return failure(client(sidecar.url()), LONG);
  }

  @Test
  void sendsAllInOneCall() {
    Answer answer = ask(client(sidecar.url()), TimeValue.timeValueSeconds(9)).join();
    assertEquals(
        List.of(new Placed(1, FakeSidecar.score(0)), new Placed(0, FakeSidecar.score(1))),
        answer.hits());
    assertEquals("fake", answer.model());
    assertEquals(1, sidecar.received.size());
    FakeSidecar.Received request = sidecar.received.get(0);
    assertEquals("Bearer s3cret", request.headers().getFirst("Authorization"));
    assertEquals("opaque", request.headers().getFirst("X-Opaque-Id"));
    assertTrue(request.headers().getFirst("traceparent").startsWith("00-0af7651916cd43dd"));
    assertEquals("application/json", request.headers().getFirst("Content-Type"));
    assertEquals("fox", request.body().get("query"));
    assertEquals(7, request.body().get("passage_depth"));
    assertEquals(
        Examples.map(
                "{'hits': [{'id': 'a', 'title': 'A', 'passage': '', 'score': 2.0},"
                    + " {'id': 'b', 'title': 'B', 'passage': 'text', 'score': null}]}")
            .get("hits"),
        request.body().get("hits"));
    int deadline = (Integer) request.body().get("deadline_ms");
    assertTrue(deadline > 4000 && deadline <= 9000, "time left: " + deadline);
    assertEquals(
        Integer.toString(deadline), request.headers().getFirst(SidecarProtocol.DEADLINE_HEADER));
  }

  @Test
  void usesItsConnectionAgain() {
    SidecarClient client = client(sidecar.url());
    for (int n = 0; n < 20; n++) {
      ask(client, LONG).join();
    }
    assertEquals(20, sidecar.received.size());
    assertEquals(1, sidecar.callers.size());
  }

  @Test
  void sendsALongRequestWhole() {
    String passage = "0123456789".repeat(100_000);
    List<Candidate> hits = List.of(new Candidate("a", "A", passage, 1f));
    client(sidecar.url()).rerank(new Call("fox", hits, 1), LONG, origin("x"), executor).join();
    Map<?, ?> sent = (Map<?, ?>) ((List<?>) sidecar.received.get(0).body().get("hits")).get(0);
    assertEquals(passage, sent.get("passage"));
  }

  @Test
  void keepsPathsOfAddresses() {
    sidecar.close();
    try (FakeSidecar other = new FakeSidecar()) {
      String message = failure(client(other.url() + "/no/such"), LONG);
      assertTrue(message.contains("404") && message.contains("sidecar.urls"), message);
    }
  }

  @Test
  void theNodesLimitCapsThePipelines() {
    SidecarClient client = client(TimeValue.timeValueMillis(200), 100_000, 4, sidecar.url());
    sidecar.will((exchange, request) -> Thread.sleep(20_000));
    String message = failure(client, LONG);
    assertTrue(message.contains("200 ms"), message);
  }

  @Test
  void givesUpOnASlowSidecar() {
    sidecar.will((exchange, request) -> Thread.sleep(20_000));
    String message = failure(client(sidecar.url()), TimeValue.timeValueMillis(300));
    assertTrue(message.contains("did not answer within 300 ms"), message);
    assertEquals(1, sidecar.received.size(), "a slow one is not asked again");
  }

  @Test
  void givesUpOnABodyThatTrickles() throws Exception {
    CountDownLatch gone = new CountDownLatch(1);
    sidecar.will(FakeSidecar.trickling(gone));
    String message = failure(client(sidecar.url()), TimeValue.timeValueMillis(400));
    assertTrue(message.contains("did not answer within 400 ms"), message);
    assertTrue(gone.await(10, TimeUnit.SECONDS), "the connection is closed");
  }

  @Test
  void givesUpOnALongBody() {
    sidecar.willSay(200, " ".repeat(200_000) + FakeSidecar.answer(List.of(0, 1)));
    String message = failure();
    assertTrue(message.contains("max_response_size"), message);
    assertEquals(1, sidecar.received.size(), "it would be as long again");
  }

  @Test
  void takesABodyThatJustFits() {
    String body = FakeSidecar.answer(List.of(0, 1));
    sidecar.willSay(200, body);
    int fits = body.length();
    assertEquals(2, ask(client(LONG, fits, 4, sidecar.url()), LONG).join().hits().size());
    assertTrue(
        failure(client(LONG, fits - 1, 4, sidecar.url()), LONG).contains("max_response_size"));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '~',
      value = {
        "500 | {\"error\": \"The model is gone: see the log.\"} | HTTP 500: The model is gone: see the log.",
        "500 | <html>          | HTTP 500: see its log",
        "429 | {\"error\": \"Full: add sidecars.\"} | HTTP 429: Full: add sidecars.",
        "503 | ~~              | HTTP 503",
        "400 | ~~              | HTTP 400",
        "401 | ~~              | title_rerank.sidecar.key",
        "403 | ~~              | title_rerank.sidecar.key",
        "404 | ~~              | title_rerank.sidecar.urls",
        "413 | {\"error\": \"Too many hits.\"} | HTTP 413: Too many hits.",
        "204 | ~~              | HTTP 204",
        "307 | ~~              | redirects are not followed",
      })
  void explainsARefusal(int status, String body, String expected) {
    sidecar.willSay(status, body);
    String message = failure();
    assertTrue(message.contains(expected), message);
    assertEquals(1, sidecar.received.size());
  }

  @Test
  void followsNoRedirect() {
    try (FakeSidecar elsewhere = new FakeSidecar()) {
      sidecar.will(
          (exchange, request) -> {
            exchange.getResponseHeaders().add("Location", elsewhere.url() + "/rerank");
            exchange.sendResponseHeaders(307, -1);
          });
      assertTrue(failure().contains("HTTP 307"));
      assertEquals(List.of(), elsewhere.received);
    }
  }

  @Test
  void goesThroughNoProxy() {
    Map<String, String> before = new HashMap<>();
    try (FakeSidecar proxy = new FakeSidecar()) {
      URI address = URI.create(proxy.url());
      Map.of(
              "http.proxyHost", address.getHost(),
              "http.proxyPort", String.valueOf(address.getPort()),
              "http.nonProxyHosts", "")
          .forEach((name, value) -> before.put(name, System.setProperty(name, value)));
      ask(client(sidecar.url()), LONG).join();
      assertEquals(1, sidecar.received.size());
      assertEquals(List.of(), proxy.received);
    } finally {
      before.forEach(
          (name, value) -> {
            if (value == null) {
              System.clearProperty(name);
            } else {
              System.setProperty(name, value);
            }
          });
    }
  }

  @Test
  void refusesNonsense() {
    sidecar.willSay(200, "[]");
    assertTrue(failure().contains("same version"));
  }

  @Test
  void saysThatNobodyIsThere() {
    String message = failure(client(FakeSidecar.nobody()), LONG);
    assertTrue(message.contains("title_rerank.sidecar.urls"), message);
    assertFalse(message.contains("localhost:"), "addresses are the operator's business");
  }

  @Test
  void sidecarsTakeTurns() {
    try (FakeSidecar second = new FakeSidecar()) {
      SidecarClient client = client(sidecar.url(), second.url());
      for (int i = 0; i < 6; i++) {
        ask(client, LONG).join();
      }
      assertEquals(3, sidecar.received.size());
      assertEquals(3, second.received.size());
    }
  }

  @Test
  void triesTheNextSidecar() {
    SidecarClient client = client(FakeSidecar.nobody(), sidecar.url(), FakeSidecar.nobody());
    for (int i = 0; i < 6; i++) {
      assertEquals("fake", ask(client, LONG).join().model());
    }
    assertEquals(6, sidecar.received.size());
  }

  /** One that refuses at once has the fewest calls under way: it must not draw all searches. */
  @ParameterizedTest
  @ValueSource(ints = {204, 301, 401, 403, 404, 405})
  void leavesAloneWhatTakesNoSearches(int status) {
    try (FakeSidecar wrong = new FakeSidecar().willSay(status, "")) {
      wrong.ready = false; // no sidecar's address, say
      SidecarClient client = wary(wrong.url(), sidecar.url());
      for (int i = 0; i < 12; i++) {
        assertEquals("fake", ask(client, LONG).join().model());
      }
      assertEquals("open", known(client, 0, "breaker"));
      assertEquals(2, wrong.received.size());
    }
  }

  @Test
  void theRemedyIsToldAsLongAsNobodyIsAsked() {
    sidecar.ready = false;
    sidecar.willSay(401, "");
    SidecarClient client = wary(sidecar.url());
    for (int i = 0; i < 4; i++) {
      String message = failure(client, LONG);
      assertTrue(message.contains("title_rerank.sidecar.key"), message);
    }
    assertEquals(2, sidecar.received.size());
  }

  @Test
  void triesEverySidecarOnce() {
    String message = failure(client(FakeSidecar.nobody(), FakeSidecar.nobody()), LONG);
    assertTrue(message.contains("No sidecar can be reached"), message);
  }

  @Test
  void triesABrokenConnectionOnceMore() {
    sidecar.will(
        (exchange, request) -> {
          if (sidecar.received.size() == 1) {
            exchange.close(); // as a server does that has just closed an idle connection
          } else {
            FakeSidecar.reverse(exchange, request);
          }
        });
    assertEquals("fake", ask(client(sidecar.url()), LONG).join().model());
    assertEquals(2, sidecar.received.size());
  }

  @Test
  void givesUpOnConnectionsThatBreak() {
    sidecar.will((exchange, request) -> exchange.close());
    assertTrue(failure().contains("connection to the sidecar failed"));
    assertEquals(2, sidecar.received.size());
  }

  @Test
  void hangsUpOnWhatIsNotHttp() throws Exception {
    try (ServerSocket other = new ServerSocket(0, 0, InetAddress.getLoopbackAddress())) {
      SidecarClient client =
          client(
              TimeValue.timeValueSeconds(2),
              100_000,
              4,
              "http://localhost:" + other.getLocalPort());
      CompletableFuture<Answer> asked = ask(client, LONG);
      for (int attempt = 0; attempt < 2; attempt++) {
        try (Socket connection = other.accept()) {
          connection.getInputStream().read();
          connection.getOutputStream().write("220 mail ESMTP\r\n".getBytes(US_ASCII));
          // It stays open on this side; what is read to its end was closed on the other.
          connection.getInputStream().transferTo(OutputStream.nullOutputStream());
        } catch (SocketException reset) {
          // Closed over unread bytes.
        }
      }
      assertThrows(CompletionException.class, asked::join);
      // Its successor is as good, and who else called meanwhile is not cut off.
      client.update(
          client
              .settings()
              .withDynamic(
                  Settings.builder()
                      .putList("title_rerank.sidecar.urls", sidecar.url())
                      .put("title_rerank.sidecar.connect_timeout", "5s")
                      .build()));
      assertEquals("fake", ask(client, LONG).join().model());
    }
  }

  @Test
  void capsTheCallsUnderWay() throws Exception {
    CountDownLatch go = new CountDownLatch(1);
    sidecar.will(
        (exchange, request) -> {
          go.await();
          FakeSidecar.reverse(exchange, request);
        });
    SidecarClient client = client(LONG, 100_000, 2, sidecar.url());
    CompletableFuture<Answer> first = ask(client, LONG);
    CompletableFuture<Answer> second = ask(client, LONG);
    String message = failure(client, LONG);
    assertTrue(message.contains("max_in_flight"), message);
    go.countDown();
    assertEquals("fake", first.join().model());
    assertEquals("fake", second.join().model());
    assertEquals("fake", ask(client, LONG).join().model(), "the places are free again");
  }

  @Test
  void everyFailureFreesItsPlace() {
    SidecarClient client = client(LONG, 100_000, 1, sidecar.url(), FakeSidecar.nobody());
    sidecar.will((exchange, request) -> Thread.sleep(20_000));
    failure(client, TimeValue.timeValueMillis(50));
    sidecar.willSay(500, "");
    failure(client, LONG);
    sidecar.willSay(200, "nonsense");
    failure(client, LONG);
    sidecar.will(FakeSidecar::reverse);
    assertEquals("fake", ask(client, LONG).join().model());
  }

  @Test
  void continuesOnTheGivenExecutor() {
    for (boolean slow : new boolean[] {false, true}) {
      sidecar.will(
          (exchange, request) -> {
            Thread.sleep(slow ? 20_000 : 100);
            FakeSidecar.reverse(exchange, request);
          });
      AtomicReference<String> thread = new AtomicReference<>();
      ask(client(sidecar.url()), TimeValue.timeValueMillis(slow ? 200 : 20_000))
          .handle((answer, error) -> thread.getAndSet(Thread.currentThread().getName()))
          .join();
      assertEquals("continuation", thread.get());
    }
  }

  @Test
  void anExecutorThatIsShutDownDoesNotSwallowTheCall() {
    executor.shutdownNow();
    assertThrows(CompletionException.class, () -> ask(client(sidecar.url()), LONG).join());
  }

  @Test
  void handsOnOnlyHarmlessIds() {
    SidecarClient client = client(sidecar.url());
    for (String id : new String[] {null, "", "a\r\nX-Evil: 1", "é", "x".repeat(600)}) {
      client.rerank(CALL, LONG, origin(id), executor).join();
      FakeSidecar.Received last = sidecar.received.get(sidecar.received.size() - 1);
      assertNull(last.headers().getFirst("X-Opaque-Id"));
    }
  }

  @Test
  void greetsEverySidecar() throws Exception {
    client(FakeSidecar.nobody(), sidecar.url()).greet();
    for (int i = 0; i < 100 && sidecar.greeted.isEmpty(); i++) {
      Thread.sleep(50);
    }
    assertEquals(1, sidecar.greeted.size());
    assertEquals("Bearer s3cret", sidecar.greeted.get(0).getFirst("Authorization"));
  }

  @ParameterizedTest
  @CsvSource({
    "429, 2", "503, 2", "500, 2", "400, 1", "413, 1", "422, 1", "408, 1", "404, 2", "401, 2"
  })
  void asksAnotherWhereThatMayHelp(int status, int asked) {
    try (FakeSidecar second = new FakeSidecar()) {
      sidecar.willSay(status, "");
      second.willSay(status, "");
      assertTrue(failure(client(sidecar.url(), second.url()), LONG).contains("HTTP " + status));
      assertEquals(asked, sidecar.received.size() + second.received.size());
    }
  }

  @Test
  void anAnswerOfAnotherIsTaken() {
    try (FakeSidecar second = new FakeSidecar()) {
      second.willSay(429, "");
      SidecarClient client = client(sidecar.url(), second.url());
      for (int i = 0; i < 4; i++) {
        assertEquals("fake", ask(client, LONG).join().model());
      }
      assertEquals(4, sidecar.received.size());
      assertEquals(2, second.received.size());
      second.willSay(200, "nonsense");
      for (int i = 0; i < 4; i++) {
        assertEquals("fake", ask(client, LONG).join().model());
      }
    }
  }

  @Test
  void theLeastBusySidecarIsAsked() throws Exception {
    CountDownLatch go = new CountDownLatch(1);
    sidecar.will(
        (exchange, request) -> {
          go.await();
          FakeSidecar.reverse(exchange, request);
        });
    try (FakeSidecar second = new FakeSidecar()) {
      SidecarClient client = client(sidecar.url(), second.url());
      CompletableFuture<Answer> held = ask(client, LONG);
      waitUntil(() -> sidecar.received.size() == 1);
      for (int i = 0; i < 5; i++) {
        ask(client, LONG).join();
      }
      assertEquals(5, second.received.size());
      assertEquals(1, known(client, 0, "in_flight"));
      go.countDown();
      held.join();
    }
  }

  @Test
  void leavesAFailingSidecarAloneUntilItIsWell() throws Exception {
    SidecarClient client = wary(sidecar.url());
    sidecar.willSay(500, "");
    sidecar.ready = false;
    failure(client, LONG);
    assertEquals("closed", known(client, 0, "breaker"));
    failure(client, LONG);
    assertEquals("open", known(client, 0, "breaker"));
    assertTrue(failure(client, LONG).contains("left alone"));
    assertEquals(2, sidecar.received.size(), "no search is sent there");
    waitUntil(() -> sidecar.greeted.size() >= 2); // it is probed, and not well
    assertEquals("open", known(client, 0, "breaker"));

    sidecar.ready = true; // but its answers are as bad as before
    waitUntil(() -> known(client, 0, "breaker").equals("half_open"));
    assertTrue(failure(client, LONG).contains("HTTP 500"));
    assertEquals("open", known(client, 0, "breaker"), "one failure is enough by now");

    sidecar.will(FakeSidecar::reverse);
    waitUntil(() -> known(client, 0, "breaker").equals("half_open"));
    assertEquals("fake", ask(client, LONG).join().model());
    assertEquals("closed", known(client, 0, "breaker"));
    assertEquals(0, known(client, 0, "failures_in_a_row"));
    assertEquals(3L, known(client, 0, "failures"));
    assertEquals(4L, known(client, 0, "calls"));
  }

  @Test
  void whatTheCallerIsToBlameForOpensNoBreaker() {
    SidecarClient client = wary(sidecar.url());
    for (int status : new int[] {400, 413, 422, 429, 408, 400, 413, 422, 429}) {
      sidecar.willSay(status, "");
      assertTrue(failure(client, LONG).contains("HTTP " + status));
    }
    assertEquals("closed", known(client, 0, "breaker"));
  }

  @Test
  void aGreedyPipelineCostsNobodyElseTheirReranking() throws Exception {
    SidecarClient client = wary(sidecar.url());
    for (int limit : new int[] {20, 100}) {
      sidecar.will((exchange, request) -> Thread.sleep(20_000));
      for (int i = 0; i < 6; i++) {
        failure(client, TimeValue.timeValueMillis(limit));
        assertEquals("closed", known(client, 0, "breaker"));
      }
      waitUntil(() -> known(client, 0, "failures_in_a_row").equals(0)); // it answered the probe
      sidecar.will(FakeSidecar::reverse);
      assertEquals("fake", ask(client, LONG).join().model());
    }
  }

  /** As all those are at once that stood in line behind a search which took too long. */
  @Test
  void searchesThatWerePostponedCostNobodyElseTheirReranking() throws Exception {
    SidecarClient client = wary(sidecar.url());
    sidecar.will(
        (exchange, request) -> {
          exchange.getResponseHeaders().add("Retry-After", "1");
          FakeSidecar.send(exchange, 503, "{\"error\": \"its time passed\"}");
        });
    for (int i = 0; i < 3; i++) {
      assertTrue(failure(client, LONG).contains("HTTP 503: its time passed"));
      assertTrue(failure(client, LONG).contains("HTTP 503: its time passed"));
      waitUntil(() -> known(client, 0, "failures_in_a_row").equals(0)); // it answered the probe
      assertEquals("closed", known(client, 0, "breaker"));
    }
    sidecar.ready = false; // and a sidecar that says so of its models is left alone
    failure(client, LONG);
    failure(client, LONG);
    waitUntil(() -> known(client, 0, "breaker").equals("open"));
  }

  @Test
  void aGreedyPipelinesTrialDecidesNothing() throws Exception {
    SidecarClient client = wary(sidecar.url());
    sidecar.willSay(500, "");
    failure(client, LONG);
    failure(client, LONG);
    waitUntil(() -> known(client, 0, "breaker").equals("half_open"));
    int probes = sidecar.greeted.size();
    sidecar.will((exchange, request) -> Thread.sleep(20_000));
    failure(client, TimeValue.timeValueMillis(200));
    waitUntil(() -> known(client, 0, "failures_in_a_row").equals(0));
    assertEquals("half_open", known(client, 0, "breaker"));
    assertEquals(probes + 1, sidecar.greeted.size());
    sidecar.will(FakeSidecar::reverse);
    assertEquals("fake", ask(client, LONG).join().model());
    assertEquals("closed", known(client, 0, "breaker"));
  }

  @Test
  void aSidecarThatHangsIsLeftAlone() throws Exception {
    SidecarClient client = wary(sidecar.url());
    sidecar.will((exchange, request) -> Thread.sleep(20_000));
    sidecar.ready = false;
    failure(client, TimeValue.timeValueMillis(300));
    assertEquals(0, sidecar.greeted.size());
    failure(client, TimeValue.timeValueMillis(300));
    waitUntil(() -> known(client, 0, "breaker").equals("open"));
    assertTrue(failure(client, LONG).contains("left alone"));
    sidecar.ready = true; // for a while only
    waitUntil(() -> known(client, 0, "breaker").equals("half_open"));
    sidecar.ready = false;
    failure(client, TimeValue.timeValueMillis(300));
    waitUntil(() -> known(client, 0, "breaker").equals("open"));
  }

  @Test
  void aCancelledSearchHangsUp() throws Exception {
    CountDownLatch gone = new CountDownLatch(1);
    sidecar.will(FakeSidecar.trickling(gone));
    SidecarClient client = client(sidecar.url());
    CompletableFuture<Answer> answer = ask(client, LONG);
    waitUntil(() -> sidecar.received.size() == 1);
    client.cancel(TASK + 1); // somebody else
    assertFalse(answer.isDone());
    client.cancel(TASK);
    CompletionException failed = assertThrows(CompletionException.class, answer::join);
    assertEquals(
        SidecarException.Failure.CANCELLED, ((SidecarException) failed.getCause()).failure());
    assertTrue(gone.await(10, TimeUnit.SECONDS), "the connection is closed");
    assertEquals(0, client.toMap().get("in_flight"));
    client.cancel(TASK); // late
  }

  @Test
  void aSearchThatIsCancelledAlreadyIsNotSentOn() {
    SidecarClient client = client(sidecar.url());
    client.askWhetherCancelled(task -> task == TASK);
    assertTrue(failure(client, LONG).contains("cancelled"));
  }

  @Test
  void takesOverNewSettings() throws Exception {
    SidecarClient client = client(FakeSidecar.nobody());
    failure(client, LONG);
    try (FakeSidecar second = new FakeSidecar()) {
      for (String connect : new String[] {"5s", "4s"}) { // the second needs a client of its own
        client.update(
            client
                .settings()
                .withDynamic(
                    Settings.builder()
                        .putList("title_rerank.sidecar.urls", sidecar.url(), second.url())
                        .put("title_rerank.sidecar.connect_timeout", connect)
                        .build()));
        ask(client, LONG).join();
        ask(client, LONG).join();
      }
      assertEquals(2, sidecar.received.size());
      assertEquals(2, second.received.size());
      assertEquals(2L, known(client, 0, "calls"), "an address that stays keeps its figures");
      assertEquals("s3cret", client.settings().key());
    }
  }

  @Test
  void namesThatNobodyKnowsAreTold() {
    String message = failure(client("http://no-such-host.invalid:1"), LONG);
    assertTrue(message.contains("cannot be resolved"), message);
    assertFalse(message.contains("no-such-host"), message);
  }
}
