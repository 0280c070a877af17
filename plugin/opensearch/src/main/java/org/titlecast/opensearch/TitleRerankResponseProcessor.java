package org.titlecast.opensearch;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Function;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.Logger;
import org.opensearch.OpenSearchStatusException;
import org.opensearch.action.search.SearchRequest;
import org.opensearch.action.search.SearchResponse;
import org.opensearch.action.support.ContextPreservingActionListener;
import org.opensearch.common.Nullable;
import org.opensearch.common.unit.TimeValue;
import org.opensearch.common.util.concurrent.ThreadContext;
import org.opensearch.common.xcontent.XContentHelper;
import org.opensearch.core.action.ActionListener;
import org.opensearch.core.common.bytes.BytesReference;
import org.opensearch.core.rest.RestStatus;
import org.opensearch.core.tasks.TaskCancelledException;
import org.opensearch.core.xcontent.MediaType;
import org.opensearch.core.xcontent.NamedXContentRegistry;
import org.opensearch.ingest.ConfigurationUtils;
import org.opensearch.search.SearchHit;
import org.opensearch.search.pipeline.AbstractProcessor;
import org.opensearch.search.pipeline.PipelineProcessingContext;
import org.opensearch.search.pipeline.Processor;
import org.opensearch.search.pipeline.SearchResponseProcessor;
import org.titlecast.opensearch.SidecarException.Failure;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Call;
import org.titlecast.opensearch.SidecarProtocol.Candidate;

/**
 * Sends a search's hits to the sidecar and gives back the asked-for page in the sidecar's order.
 *
 * <p>Whatever goes wrong there, the search answers: with the same page in the engine's own order
 * and the reason in {@code ext.title_rerank}, or, where the pipeline prefers that, with an error.
 */
public final class TitleRerankResponseProcessor extends AbstractProcessor
    implements SearchResponseProcessor {
  /** The processor's name in a pipeline. */
  public static final String TYPE = "title_rerank";

  private static final Logger logger = LogManager.getLogger(TitleRerankResponseProcessor.class);
  private static final String PASSAGE_DEPTH = "passage_depth";
  private static final String TIMEOUT = "timeout";
  private static final String ON_FAILURE = "on_failure";

  private static final long QUIET_NANOS = TimeUnit.MINUTES.toNanos(1);

  // Reading so much of sources takes about a millisecond.
  private static final long READ_AT_ONCE_BYTES = 256 << 10;

  /** The node's, because a pipeline written into a request makes a processor for every search. */
  private static final AtomicLong quietUntil = new AtomicLong(System.nanoTime());

  private enum OnFailure {
    ENGINE_ORDER,
    ERROR
  }

  /** What the processors of one node share. */
  record Node(
      SidecarClient sidecar,
      RerankStats stats,
      ThreadContext threadContext,
      Executor executor,
      NamedXContentRegistry registry) {}

  private final Node node;
  @Nullable private final TextFields fields; // null: those of the request processor
  private final int passageDepth;
  private final TimeValue timeout;
  private final OnFailure onFailure;

  private TitleRerankResponseProcessor(
      String tag,
      String description,
      boolean ignoreFailure,
      Node node,
      @Nullable TextFields fields,
      int passageDepth,
      TimeValue timeout,
      OnFailure onFailure) {
    super(tag, description, ignoreFailure);
    this.node = node;
    this.fields = fields;
    this.passageDepth = passageDepth;
    this.timeout = timeout;
    this.onFailure = onFailure;
  }

  /** Makes the processor of a pipeline's configuration. */
  static Processor.Factory<SearchResponseProcessor> factory(Node node) {
    return (factories, tag, description, ignoreFailure, config, context) ->
        create(tag, description, ignoreFailure, config, node);
  }

  private static TitleRerankResponseProcessor create(
      String tag,
      String description,
      boolean ignoreFailure,
      Map<String, Object> config,
      Node node) {
    int depth = ConfigurationUtils.readIntProperty(TYPE, tag, config, PASSAGE_DEPTH, 20);
    if (depth < 0) {
      throw ConfigurationUtils.newConfigurationException(
          TYPE, tag, PASSAGE_DEPTH, "must be 0 (titles only) or more, not " + depth);
    }
    return new TitleRerankResponseProcessor(
        tag,
        description,
        ignoreFailure,
        node,
        TextFields.read(TYPE, tag, config),
        depth,
        readTimeout(tag, config),
        readOnFailure(tag, config, ignoreFailure));
  }

  private static TimeValue readTimeout(String tag, Map<String, Object> config) {
    String text = ConfigurationUtils.readStringProperty(TYPE, tag, config, TIMEOUT, "500ms");
    TimeValue timeout;
    try {
      timeout = TimeValue.parseTimeValue(text, TIMEOUT);
    } catch (IllegalArgumentException e) {
      throw ConfigurationUtils.newConfigurationException(TYPE, tag, TIMEOUT, e.getMessage());
    }
    if (timeout.millis() < 1) {
      throw ConfigurationUtils.newConfigurationException(
          TYPE, tag, TIMEOUT, "must be 1ms or more, not [" + text + "]");
    }
    return timeout;
  }

  private static OnFailure readOnFailure(
      String tag, Map<String, Object> config, boolean ignoreFailure) {
    String text =
        ConfigurationUtils.readStringProperty(TYPE, tag, config, ON_FAILURE, "engine_order");
    OnFailure onFailure;
    try {
      onFailure = OnFailure.valueOf(text.toUpperCase(Locale.ROOT));
    } catch (IllegalArgumentException e) {
      throw ConfigurationUtils.newConfigurationException(
          TYPE, tag, ON_FAILURE, "must be engine_order or error, not [" + text + "]");
    }
    if (onFailure == OnFailure.ERROR && ignoreFailure) {
      throw ConfigurationUtils.newConfigurationException(
          TYPE,
          tag,
          ON_FAILURE,
          "an error that ignore_failure then hides would show the whole window instead of the"
              + " page: use engine_order");
    }
    return onFailure;
  }

  @Override
  public String getType() {
    return TYPE;
  }

  @Override
  public SearchResponse processResponse(SearchRequest request, SearchResponse response) {
    throw new UnsupportedOperationException(TYPE + " waits for a sidecar: it is asynchronous only");
  }

  @Override
  public void processResponseAsync(
      SearchRequest request,
      SearchResponse response,
      PipelineProcessingContext context,
      ActionListener<SearchResponse> listener) {
    long started = System.nanoTime();
    CompletableFuture<SearchResponse> reranked;
    try {
      Candidates candidates = candidates(request, response, context);
      // A verbose search goes on after a failure, with the whole window instead of the page.
      boolean mayFail =
          request.source() == null || !Boolean.TRUE.equals(request.source().verbosePipeline());
      if (candidates == null) {
        reranked = CompletableFuture.completedFuture(response);
      } else if (sourceBytes(response) <= READ_AT_ONCE_BYTES) {
        reranked = rerank(response, candidates, mayFail, started);
      } else { // where the last shard is on another node, this is a thread of its network's
        reranked =
            CompletableFuture.supplyAsync(
                    () -> rerank(response, candidates, mayFail, started), node.executor())
                .thenCompose(Function.identity());
      }
    } catch (RuntimeException e) {
      reranked = CompletableFuture.failedFuture(e);
    }
    ActionListener<SearchResponse> preserving =
        ContextPreservingActionListener.wrapPreservingContext(listener, node.threadContext());
    reranked.whenComplete(
        (changed, error) -> {
          if (error == null) {
            preserving.onResponse(changed);
          } else {
            preserving.onFailure(asException(error));
          }
        });
  }

  private static long sourceBytes(SearchResponse response) {
    long bytes = 0;
    for (SearchHit hit : response.getHits().getHits()) {
      BytesReference source = hit.getSourceRef();
      bytes += source == null ? 0 : source.length();
    }
    return bytes;
  }

  /** What there is to rerank; null if this search is to be left alone. */
  @Nullable
  private Candidates candidates(
      SearchRequest request, SearchResponse response, PipelineProcessingContext context) {
    Candidates candidates = null;
    if (Candidates.decided(context)) {
      candidates = Candidates.recall(context);
    } else if (Candidates.whyNot(request) == null && Candidates.from(request.source()) == 0) {
      // Without our request processor: the hits that are there, none of them left out.
      String text = QueryText.find(request.source(), node.registry());
      if (text != null) {
        candidates =
            new Candidates(0, Integer.MAX_VALUE, Integer.MAX_VALUE, text, TextFields.DEFAULT, null);
      }
    }
    // A second processor of this kind would cut the page out of the page.
    Candidates.rememberNone(context);
    return response.getHits() == null || response.getHits().getHits().length == 0
        ? null
        : candidates;
  }

  private CompletableFuture<SearchResponse> rerank(
      SearchResponse response, Candidates candidates, boolean mayFail, long started) {
    TextFields read = Objects.requireNonNullElse(fields, candidates.fields());
    CompletableFuture<Answer> answer;
    int cut = 0;
    long asked; // when the texts were read
    try {
      List<Candidate> hits = read(response, candidates.window(), read);
      if (hits.stream().allMatch(hit -> hit.title().isBlank() && hit.passage().isBlank())) {
        node.stats().withoutText();
        return CompletableFuture.completedFuture(
            inEngineOrder(response, candidates, noText(read), started));
      }
      Fitting fitting = Fitting.of(candidates.queryText(), hits);
      cut = fitting.cut();
      asked = System.nanoTime();
      answer =
          node.sidecar()
              .rerank(
                  new Call(fitting.query(), fitting.hits(), passageDepth),
                  timeout,
                  Origin.of(node.threadContext()),
                  node.executor());
    } catch (RuntimeException e) {
      asked = started;
      answer = CompletableFuture.failedFuture(e);
    }
    long readAt = asked;
    int cutTexts = cut;
    return answer
        .thenApply(
            order -> {
              long answered = System.nanoTime();
              SearchResponse reranked =
                  Reordering.reranked(
                      response,
                      order.hits(),
                      candidates,
                      millisSince(started),
                      TitleRerankReport.applied(order, cutTexts, millisSince(started)));
              node.stats()
                  .reranked(
                      order.complete(),
                      new RerankStats.Times(
                          readAt - started, answered - readAt, System.nanoTime() - answered));
              return reranked;
            })
        .exceptionally(
            error -> withoutAnswer(response, candidates, asException(error), mayFail, started));
  }

  private List<Candidate> read(SearchResponse response, int window, TextFields read) {
    List<Candidate> hits = new ArrayList<>();
    SearchHit[] all = response.getHits().getHits();
    for (SearchHit hit : Arrays.asList(all).subList(0, Math.min(window, all.length))) {
      Map<String, Object> source = source(hit.getSourceRef());
      hits.add(
          new Candidate(
              Objects.requireNonNullElse(hit.getId(), ""),
              read.titleOf(source),
              passageDepth == 0 ? "" : read.passageOf(source),
              hit.getScore()));
    }
    return hits;
  }

  /** A matter of these documents and not a failure, so that on_failure has no say in it. */
  private static String noText(TextFields read) {
    return "No hit has text in "
        + read.paths()
        + ": set title_field and passage_field of the processors "
        + CandidatesRequestProcessor.TYPE
        + " and "
        + TYPE;
  }

  /** Not the hit's own map, which the hit would keep. */
  private static Map<String, Object> source(@Nullable BytesReference source) {
    return source == null
        ? Map.of()
        : XContentHelper.convertToMap(source, false, (MediaType) null).v2();
  }

  private SearchResponse withoutAnswer(
      SearchResponse response,
      Candidates candidates,
      Exception error,
      boolean mayFail,
      long started) {
    Failure failure = error instanceof SidecarException known ? known.failure() : Failure.INTERNAL;
    boolean cancelled = failure == Failure.CANCELLED;
    boolean fails = mayFail && (onFailure == OnFailure.ERROR || cancelled);
    long now = System.nanoTime();
    node.stats().failed(failure, fails, now - started);
    if (cancelled && fails) { // as the engine's own phases end; nobody waits for a page any more
      throw new TaskCancelledException(error.getMessage());
    }
    long until = quietUntil.get();
    if (now - until >= 0 && quietUntil.compareAndSet(until, now + QUIET_NANOS)) {
      logger.warn("a search was not reranked; more of these in the next minute stay silent", error);
    } else {
      logger.debug("a search was not reranked", error);
    }
    String reason =
        error instanceof SidecarException
            ? error.getMessage()
            : "Reranking failed within the plugin: see the node's log";
    if (fails) {
      // Without the cause, which may name the sidecar's address.
      throw new OpenSearchStatusException(reason, RestStatus.SERVICE_UNAVAILABLE);
    }
    return inEngineOrder(response, candidates, reason, started);
  }

  private static SearchResponse inEngineOrder(
      SearchResponse response, Candidates candidates, String reason, long started) {
    return Reordering.engineOrder(
        response, candidates, millisSince(started), TitleRerankReport.notApplied(reason));
  }

  private static long millisSince(long started) {
    return TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - started);
  }

  private static Exception asException(Throwable error) {
    Throwable cause =
        error instanceof CompletionException && error.getCause() != null ? error.getCause() : error;
    return cause instanceof Exception exception ? exception : new RuntimeException(cause);
  }
}
