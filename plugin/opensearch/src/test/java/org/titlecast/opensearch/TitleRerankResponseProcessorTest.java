package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.net.URI;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.OpenSearchException;
import org.opensearch.OpenSearchStatusException;
import org.opensearch.action.search.SearchRequest;
import org.opensearch.action.search.SearchResponse;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.unit.TimeValue;
import org.opensearch.common.util.concurrent.ThreadContext;
import org.opensearch.core.action.ActionListener;
import org.opensearch.core.rest.RestStatus;
import org.opensearch.core.tasks.TaskCancelledException;
import org.opensearch.search.SearchHit;
import org.opensearch.search.fetch.subphase.FetchSourceContext;
import org.opensearch.search.pipeline.PipelineProcessingContext;
import org.opensearch.tasks.Task;
import org.opensearch.tasks.TaskResourceTrackingService;

@Timeout(
    value = 30,
    threadMode = Timeout.ThreadMode.SEPARATE_THREAD) // a lost call fails, and hangs nothing
class TitleRerankResponseProcessorTest {
  private static final String MATCH = "'query': {'match': {'title': 'red fox'}}";
  private static final String PATIENT = "'timeout': '20s'";

  private final FakeSidecar sidecar = new FakeSidecar();
  private final ThreadContext threadContext = new ThreadContext(Settings.EMPTY);
  private final ExecutorService executor = Executors.newCachedThreadPool();
  private final PipelineProcessingContext context = Examples.context();
  private final RerankStats stats = new RerankStats();
  private SidecarClient client;

  @BeforeEach
  void open() {
    client =
        new SidecarClient(
            new SidecarSettings(
                List.of(URI.create(sidecar.url())),
                TimeValue.timeValueSeconds(5),
                TimeValue.timeValueSeconds(20),
                100_000,
                4,
                1_000,
                TimeValue.timeValueMillis(50),
                null,
                ""));
  }

  @AfterEach
  void close() {
    client.close();
    sidecar.close();
    executor.shutdownNow();
  }

  private TitleRerankResponseProcessor processor(String config) throws Exception {
    return Examples.create(
        TitleRerankResponseProcessor.factory(
            new TitleRerankResponseProcessor.Node(
                client, stats, threadContext, executor, Examples.REGISTRY)),
        config);
  }

  private static SearchResponse process(
      TitleRerankResponseProcessor processor,
      SearchRequest request,
      SearchResponse response,
      PipelineProcessingContext context)
      throws Exception {
    CompletableFuture<SearchResponse> result = new CompletableFuture<>();
    processor.processResponseAsync(
        request,
        response,
        context,
        ActionListener.wrap(result::complete, result::completeExceptionally));
    try {
      return result.get(25, TimeUnit.SECONDS);
    } catch (ExecutionException e) {
      throw (Exception) e.getCause();
    }
  }

  /** Both processors around an engine that finds this response. */
  private SearchResponse search(
      String requestOptions, String responseOptions, String search, SearchResponse found)
      throws Exception {
    CandidatesRequestProcessor widen =
        Examples.create(CandidatesRequestProcessor.factory(Examples.REGISTRY), requestOptions);
    SearchRequest request = widen.processRequest(Examples.search(search), context);
    return process(processor(responseOptions), request, found, context);
  }

  private SearchResponse search(String search, SearchResponse found) throws Exception {
    return search("{}", "{" + PATIENT + "}", search, found);
  }

  @SuppressWarnings("unchecked")
  private List<Map<String, Object>> sent() {
    assertEquals(1, sidecar.received.size());
    return (List<Map<String, Object>>) sidecar.received.get(0).body().get("hits");
  }

  @Test
  void reranks() throws Exception {
    SearchResponse response =
        search("{" + MATCH + ", 'size': 2}", Examples.response(Examples.hits(4)));
    assertEquals(List.of("id3", "id2"), Examples.ids(response));
    assertEquals(List.of(3f, FakeSidecar.score(1)), Examples.scores(response));
    assertEquals(3f, response.getHits().getMaxScore());
    Map<String, Object> report = Examples.report(response);
    int took = (Integer) report.remove("took_ms");
    assertTrue(took >= 0 && took < 20_000);
    assertTrue(response.getTook().millis() >= 30, "the engine's 30 ms and ours");
    assertEquals(
        Examples.map(
            "{'applied': true, 'stages': [{'name': 'title', 'scored': 4, 'milliseconds': 1.5,"
                + " 'truncated': 0, 'skipped': ''}], 'complete': true, 'model': 'fake', 'cut': 0}"),
        report);
    Map<String, Object> request = sidecar.received.get(0).body();
    assertEquals("red fox", request.get("query"));
    assertEquals(20, request.get("passage_depth"));
    assertEquals(
        Map.of("id", "id0", "title", "title 0", "passage", "passage 0", "score", 20.0),
        sent().get(0));
  }

  @Test
  void pagesOfOneWindowFitTogether() throws Exception {
    SearchHit[] hits = Examples.hits(5);
    for (int from = 0; from < 5; from++) {
      SearchRequest request = Examples.search("{" + MATCH + "}");
      PipelineProcessingContext own = Examples.context();
      new Candidates(from, 1, 100, "fox", TextFields.DEFAULT, null).remember(own);
      SearchResponse page =
          process(processor("{" + PATIENT + "}"), request, Examples.response(hits), own);
      assertEquals(List.of("id" + (4 - from)), Examples.ids(page));
      assertEquals(List.of(FakeSidecar.score(from)), Examples.scores(page));
    }
  }

  @Test
  void pagesFitTogetherOverTheWindowsEdge() throws Exception {
    List<String> shown = new ArrayList<>();
    List<Float> scores = new ArrayList<>();
    for (int from = 0; from < 4; from += 3) { // the second shows one of the window, and two more
      SearchRequest request = Examples.search("{" + MATCH + "}");
      PipelineProcessingContext own = Examples.context();
      new Candidates(from, 3, 4, "fox", TextFields.DEFAULT, null).remember(own);
      SearchResponse page =
          process(
              processor("{" + PATIENT + "}"),
              request,
              Examples.response(Examples.hits(Math.max(4, from + 3))),
              own);
      assertEquals(true, Examples.report(page).get("applied"));
      shown.addAll(Examples.ids(page));
      scores.addAll(Examples.scores(page));
    }
    assertEquals(List.of("id3", "id2", "id1", "id0", "id4", "id5"), shown);
    assertEquals(scores.stream().sorted(Comparator.reverseOrder()).toList(), scores);
    for (FakeSidecar.Received received : sidecar.received) {
      assertEquals(4, ((List<?>) received.body().get("hits")).size());
    }
  }

  @Test
  void aPageOverTheWindowsEdgeIsTheEnginesWhereTheSidecarFails() throws Exception {
    sidecar.willSay(500, "");
    SearchResponse response =
        search(
            "{'window': 2}",
            "{" + PATIENT + "}",
            "{" + MATCH + ", 'from': 1, 'size': 2, '_source': ['x']}",
            Examples.response(Examples.hits(3)));
    assertEngineOrder(response, "HTTP 500");
  }

  @Test
  void sendsWhatItFinds() throws Exception {
    search(
        "{'title_field': 'doc.t', 'passage_field': ['p', 'q']}",
        "{" + PATIENT + ", 'passage_depth': 3}",
        "{" + MATCH + "}",
        Examples.response(
            Examples.hit(0, "{'doc': {'t': 'T'}, 'p': 'P', 'q': ['Q', 'R']}"),
            Examples.hit(1, "{'doc': {'t': 5}, 'p': {'no': 'text'}}"),
            Examples.hit(2, "{}"),
            Examples.hit(3, null)));
    assertEquals(
        List.of("T|P\nQ\nR", "5|", "|", "|"),
        sent().stream().map(hit -> hit.get("title") + "|" + hit.get("passage")).toList());
    assertEquals(3, sidecar.received.get(0).body().get("passage_depth"));
  }

  @Test
  void sendsTheBeginningOfABook() throws Exception {
    String words = "word ".repeat(300_000);
    SearchResponse response =
        search(
            "{" + MATCH + ", '_source': true}",
            Examples.response(
                Examples.hit(0, "{'title': '" + words + "', 'passage': 'P'}"),
                Examples.hit(1, "{'title': 'T', 'passage': '" + words + "'}")));
    assertEquals(words.substring(0, Fitting.TITLE_CHARACTERS), sent().get(0).get("title"));
    assertEquals(words.substring(0, Fitting.PASSAGE_CHARACTERS), sent().get(1).get("passage"));
    assertEquals(2, Examples.report(response).get("cut"));
    assertEquals(words, response.getHits().getAt(0).getSourceAsMap().get("passage"));
  }

  @Test
  void itsOwnFieldsComeFirst() throws Exception {
    search(
        "{'title_field': 'a'}",
        "{" + PATIENT + ", 'title_field': 'b'}",
        "{" + MATCH + "}",
        Examples.response(Examples.hit(0, "{'a': 'A', 'b': 'B'}")));
    assertEquals("B", sent().get(0).get("title"));
  }

  @Test
  void sendsNoPassagesForTitlesOnly() throws Exception {
    search(
        "{}",
        "{" + PATIENT + ", 'passage_depth': 0}",
        "{" + MATCH + "}",
        Examples.response(Examples.hits(1)));
    assertEquals("", sent().get(0).get("passage"));
    assertEquals(0, sidecar.received.get(0).body().get("passage_depth"));
  }

  @Test
  void sendsNoScoreWhereThereIsNone() throws Exception {
    SearchHit hit = Examples.hit(0, "{'title': 'T'}");
    hit.score(Float.NaN);
    search("{" + MATCH + "}", Examples.response(hit));
    assertNull(sent().get(0).get("score"));
  }

  @Test
  void leavesAloneWhatTheRequestProcessorLeftAlone() throws Exception {
    SearchResponse found = Examples.response(Examples.hits(3));
    assertSame(found, search("{" + MATCH + ", 'from': 100}", found));
    assertEquals(List.of(), sidecar.received);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'query': {'match_all': {}}}",
        "{MATCH, 'from': 1}",
        "{MATCH, 'sort': ['year']}",
        "{MATCH, 'size': 0}",
      })
  void leavesAloneByItself(String search) throws Exception {
    SearchResponse found = Examples.response(Examples.hits(3));
    SearchRequest request = Examples.search(search.replace("MATCH", MATCH));
    assertSame(found, process(processor("{" + PATIENT + "}"), request, found, context));
    assertEquals(List.of(), sidecar.received);
  }

  @Test
  void leavesAnEmptyResultAlone() throws Exception {
    SearchResponse found = Examples.response();
    assertSame(found, search("{" + MATCH + "}", found));
    assertEquals(List.of(), sidecar.received);
  }

  @Test
  void worksWithoutTheRequestProcessor() throws Exception {
    SearchRequest request =
        Examples.search("{" + MATCH + ", 'size': 2}"); // more hits came: oversample was there
    SearchResponse response =
        process(
            processor("{" + PATIENT + "}"), request, Examples.response(Examples.hits(6)), context);
    assertEquals(List.of("id5", "id4", "id3", "id2", "id1", "id0"), Examples.ids(response));
  }

  @Test
  void theFirstOfTwoDecides() throws Exception {
    SearchResponse once =
        search("{" + MATCH + ", 'from': 1, 'size': 2}", Examples.response(Examples.hits(4)));
    SearchRequest request = Examples.search("{" + MATCH + "}");
    assertSame(once, process(processor("{" + PATIENT + "}"), request, once, context));
    assertEquals(1, sidecar.received.size());
  }

  private void assertEngineOrder(SearchResponse response, String reason) {
    assertEquals(List.of("id1", "id2"), Examples.ids(response));
    assertEquals(List.of(19f, 18f), Examples.scores(response));
    assertEquals(20f, response.getHits().getMaxScore());
    assertEquals("{\"x\":1.5}", response.getHits().getAt(0).getSourceAsString());
    Map<String, Object> report = Examples.report(response);
    assertEquals(false, report.remove("applied"));
    String said = (String) report.remove("reason");
    assertTrue(said.contains(reason), said);
    assertEquals(Map.of(), report);
  }

  private static final String PAGE = "{" + MATCH + ", 'from': 1, 'size': 2, '_source': ['x']}";

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "[]",
        "null",
        "{\"hits\": []}",
        "not json",
        "<html></html>",
        "{\"error\": \"x\"}"
      })
  void answersInEngineOrderWhereTheSidecarTalksNonsense(String body) throws Exception {
    sidecar.willSay(200, body);
    assertEngineOrder(search(PAGE, Examples.response(Examples.hits(4))), "unusable");
  }

  @ParameterizedTest
  @ValueSource(ints = {204, 302, 400, 401, 404, 413, 429, 500, 503})
  void answersInEngineOrderWhereTheSidecarRefuses(int status) throws Exception {
    sidecar.willSay(status, "");
    assertEngineOrder(search(PAGE, Examples.response(Examples.hits(4))), "HTTP " + status);
  }

  @Test
  void answersInEngineOrderWhereTheSidecarIsSlow() throws Exception {
    sidecar.will((exchange, request) -> Thread.sleep(20_000));
    long started = System.nanoTime();
    SearchResponse response =
        search("{}", "{'timeout': '300ms'}", PAGE, Examples.response(Examples.hits(4)));
    assertEngineOrder(response, "did not answer within 300 ms");
    assertTrue(response.getTook().millis() >= 330, "our waiting is part of it");
    assertTrue(System.nanoTime() - started < TimeUnit.SECONDS.toNanos(10));
  }

  @Test
  void answersInEngineOrderWhereTheSidecarIsDown() throws Exception {
    sidecar.close();
    assertEngineOrder(search(PAGE, Examples.response(Examples.hits(4))), "No sidecar");
  }

  @Test
  void answersInEngineOrderWhereNoHitHasText() throws Exception {
    SearchResponse response =
        search(
            "{}",
            "{'title_field': 'a', 'passage_field': ['b', 'c'], 'on_failure': 'error'}",
            PAGE,
            Examples.response(Examples.hits(4)));
    assertEngineOrder(response, "No hit has text in [a, b, c]");
    assertEquals(List.of(), sidecar.received);
  }

  @Test
  void answersInEngineOrderWhereASourceIsBroken() throws Exception {
    SearchHit[] hits = Examples.hits(4);
    hits[3] = Examples.hit(3, "{'title': ");
    assertEngineOrder(search(PAGE, Examples.response(hits)), "within the plugin");
  }

  @Test
  void failsWhereThePipelinePrefersThat() throws Exception {
    sidecar.willSay(500, "{\"error\": \"Broken: mend it.\"}");
    OpenSearchStatusException failed =
        assertThrows(
            OpenSearchStatusException.class,
            () ->
                search(
                    "{}",
                    "{'on_failure': 'error', 'timeout': '20s'}",
                    PAGE,
                    Examples.response(Examples.hits(4))));
    assertEquals(RestStatus.SERVICE_UNAVAILABLE, failed.status());
    assertEquals("The sidecar answered HTTP 500: Broken: mend it.", failed.getMessage());
  }

  /** There the engine goes on after a failure with what it has: the whole window. */
  @Test
  void aVerboseSearchHasItsPageInAnyCase() throws Exception {
    sidecar.willSay(500, "");
    SearchResponse response =
        search(
            "{}",
            "{'on_failure': 'error', 'timeout': '20s'}",
            "{" + MATCH + ", 'from': 1, 'size': 2, '_source': ['x'], 'verbose_pipeline': true}",
            Examples.response(Examples.hits(4)));
    assertEngineOrder(response, "HTTP 500");
  }

  @Test
  void largeSourcesAreReadByTheExecutor() throws Exception {
    BlockingQueue<Runnable> held = new LinkedBlockingQueue<>();
    TitleRerankResponseProcessor processor =
        Examples.create(
            TitleRerankResponseProcessor.factory(
                new TitleRerankResponseProcessor.Node(
                    client, stats, threadContext, held::add, Examples.REGISTRY)),
            "{" + PATIENT + "}");
    String large = "{'title': 'T', 'passage': '" + "word ".repeat(60_000) + "'}";
    new Candidates(0, 10, 100, "fox", TextFields.DEFAULT, null).remember(context);
    CompletableFuture<SearchResponse> result = new CompletableFuture<>();
    processor.processResponseAsync(
        Examples.search("{" + MATCH + "}"),
        Examples.response(Examples.hit(0, large), Examples.hit(1, large)),
        context,
        ActionListener.wrap(result::complete, result::completeExceptionally));
    assertEquals(1, held.size());
    assertEquals(List.of(), sidecar.received);
    while (!result.isDone()) {
      Runnable next = held.poll(20, TimeUnit.MILLISECONDS);
      if (next != null) {
        next.run();
      }
    }
    assertEquals(List.of("id1", "id0"), Examples.ids(result.get()));
    assertEquals(32_000, sent().get(0).get("passage").toString().length());
  }

  @Test
  void changesNothingOfTheResponseItGot() throws Exception {
    SearchResponse found = Examples.response(Examples.hits(4));
    Map<String, Object> before = Examples.json(found);
    search(PAGE, found);
    assertEquals(before, Examples.json(found));
  }

  @Test
  void keepsTheThreadContext() throws Exception {
    threadContext.putHeader(Task.X_OPAQUE_ID, "me");
    threadContext.putHeader("user", "alice");
    CompletableFuture<String> user = new CompletableFuture<>();
    CompletableFuture<Thread> thread = new CompletableFuture<>();
    new Candidates(0, 10, 100, "fox", TextFields.DEFAULT, null).remember(context);
    processor("{" + PATIENT + "}")
        .processResponseAsync(
            Examples.search("{" + MATCH + "}"),
            Examples.response(Examples.hits(2)),
            context,
            ActionListener.wrap(
                response -> {
                  thread.complete(Thread.currentThread());
                  user.complete(threadContext.getHeader("user"));
                },
                user::completeExceptionally));
    assertEquals("alice", user.get(20, TimeUnit.SECONDS));
    assertFalse(thread.get() == Thread.currentThread());
    assertEquals("me", sidecar.received.get(0).headers().getFirst("X-Opaque-Id"));
  }

  @Test
  void callsTheListenerOnceEvenWhereThatThrows() throws Exception {
    AtomicInteger calls = new AtomicInteger();
    CountDownLatch called = new CountDownLatch(1);
    ActionListener<SearchResponse> listener =
        new ActionListener<>() {
          @Override
          public void onResponse(SearchResponse response) {
            calls.incrementAndGet();
            called.countDown();
            throw new IllegalStateException("of the next processor");
          }

          @Override
          public void onFailure(Exception e) {
            calls.incrementAndGet();
          }
        };
    new Candidates(0, 10, 100, "fox", TextFields.DEFAULT, null).remember(context);
    processor("{" + PATIENT + "}")
        .processResponseAsync(
            Examples.search("{" + MATCH + "}"),
            Examples.response(Examples.hits(2)),
            context,
            listener);
    assertTrue(called.await(20, TimeUnit.SECONDS));
    Thread.sleep(200);
    assertEquals(1, calls.get());
  }

  @Test
  void isAsynchronousOnly() {
    assertThrows(
        UnsupportedOperationException.class,
        () -> processor("{}").processResponse(Examples.search("{}"), Examples.response(), context));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'passage_depth': -1}",
        "{'passage_depth': 'deep'}",
        "{'timeout': 'soon'}",
        "{'timeout': '0ms'}",
        "{'timeout': '-1'}",
        "{'timeout': '10micros'}",
        "{'on_failure': 'ignore'}",
        "{'title_field': 'ti*'}",
      })
  void refusesAConfiguration(String config) {
    assertThrows(OpenSearchException.class, () -> processor(config));
  }

  @Test
  void refusesAnErrorThatIsIgnored() {
    assertThrows(
        OpenSearchException.class,
        () ->
            Examples.create(
                TitleRerankResponseProcessor.factory(null), "{'on_failure': 'error'}", true));
  }

  @Test
  void refusesAnAddressInAPipeline() {
    assertThrows(IllegalArgumentException.class, () -> processor("{'url': 'http://elsewhere'}"));
  }

  @Test
  void showsNothingThatWasNotAskedFor() throws Exception {
    SearchResponse response =
        search("{" + MATCH + ", '_source': false}", Examples.response(Examples.hits(2)));
    assertFalse(response.getHits().getAt(0).hasSource());
    assertEquals("title 0", sent().get(0).get("title"));
    assertEquals(
        FetchSourceContext.DO_NOT_FETCH_SOURCE,
        Examples.source("{'_source': false}").fetchSource());
  }

  @ParameterizedTest
  @ValueSource(strings = {"engine_order", "error"})
  void aCancelledSearchEndsAsTheEnginesOwnPhasesDo(String onFailure) throws Exception {
    CountDownLatch never = new CountDownLatch(1);
    sidecar.will((exchange, request) -> never.await());
    threadContext.putTransient(TaskResourceTrackingService.TASK_ID, 7L);
    Thread canceller =
        new Thread(
            () -> {
              while (!Thread.currentThread().isInterrupted()) {
                if (!sidecar.received.isEmpty()) {
                  client.cancel(7);
                }
                LockSupport.parkNanos(1_000_000);
              }
            });
    canceller.start();
    try {
      assertThrows(
          TaskCancelledException.class,
          () ->
              search(
                  "{}",
                  "{'timeout': '20s', 'on_failure': '" + onFailure + "'}",
                  PAGE,
                  Examples.response(Examples.hits(4))));
    } finally {
      canceller.interrupt();
      canceller.join();
    }
    assertEquals(1L, ((Map<?, ?>) stats.toMap().get("failures")).get("cancelled"));
  }

  @Test
  void countsWhatBecomesOfSearches() throws Exception {
    String lenient = "{" + PATIENT + "}";
    once(lenient, Examples.hits(4));
    sidecar.willSay(429, "");
    once(lenient, Examples.hits(4));
    assertThrows(
        OpenSearchStatusException.class,
        () -> once("{'timeout': '20s', 'on_failure': 'error'}", Examples.hits(4)));
    SearchHit[] broken = Examples.hits(4);
    broken[3] = Examples.hit(3, "{'title': ");
    once(lenient, broken);
    once(lenient, new SearchHit[] {Examples.hit(0, "{}")});
    Map<String, Object> counted = stats.toMap();
    assertEquals(4L, counted.get("calls"));
    assertEquals(1L, counted.get("reranked"));
    assertEquals(3L, counted.get("engine_order"));
    assertEquals(1L, counted.get("without_text"));
    assertEquals(1L, counted.get("errors"));
    assertEquals(2L, ((Map<?, ?>) counted.get("failures")).get("busy"));
    assertEquals(1L, ((Map<?, ?>) counted.get("failures")).get("internal"));
  }

  private void once(String config, SearchHit[] found) throws Exception {
    process(
        processor(config),
        Examples.search("{" + MATCH + "}"),
        Examples.response(found),
        Examples.context());
  }
}
