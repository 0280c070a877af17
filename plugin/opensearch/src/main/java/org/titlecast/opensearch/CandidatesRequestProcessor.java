package org.titlecast.opensearch;

import java.util.Map;
import java.util.Objects;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.Logger;
import org.opensearch.action.search.SearchRequest;
import org.opensearch.common.Nullable;
import org.opensearch.core.xcontent.NamedXContentRegistry;
import org.opensearch.ingest.ConfigurationUtils;
import org.opensearch.search.builder.SearchSourceBuilder;
import org.opensearch.search.fetch.subphase.FetchSourceContext;
import org.opensearch.search.pipeline.AbstractProcessor;
import org.opensearch.search.pipeline.PipelineProcessingContext;
import org.opensearch.search.pipeline.Processor;
import org.opensearch.search.pipeline.SearchRequestProcessor;
import org.opensearch.search.pipeline.StatefulSearchRequestProcessor;

/**
 * Asks for a window of candidates where the client asked for a page, and for the fields that
 * reranking reads. {@link TitleRerankResponseProcessor} gives the page back.
 */
public final class CandidatesRequestProcessor extends AbstractProcessor
    implements StatefulSearchRequestProcessor {
  /** The processor's name in a pipeline. */
  public static final String TYPE = "title_rerank_candidates";

  private static final Logger logger = LogManager.getLogger(CandidatesRequestProcessor.class);
  private static final String WINDOW = "window";
  private static final int DEFAULT_WINDOW = 100;
  private static final int MAX_WINDOW = 10_000; // the engine's own default limit for one page

  private final int window;
  private final TextFields fields;
  private final NamedXContentRegistry registry;

  private CandidatesRequestProcessor(
      String tag,
      String description,
      boolean ignoreFailure,
      int window,
      TextFields fields,
      NamedXContentRegistry registry) {
    super(tag, description, ignoreFailure);
    this.window = window;
    this.fields = fields;
    this.registry = registry;
  }

  /** Makes the processor of a pipeline's configuration. */
  static Processor.Factory<SearchRequestProcessor> factory(NamedXContentRegistry registry) {
    return (factories, tag, description, ignoreFailure, config, context) ->
        create(tag, description, ignoreFailure, config, registry);
  }

  private static CandidatesRequestProcessor create(
      String tag,
      String description,
      boolean ignoreFailure,
      Map<String, Object> config,
      NamedXContentRegistry registry) {
    int window = ConfigurationUtils.readIntProperty(TYPE, tag, config, WINDOW, DEFAULT_WINDOW);
    if (window < 1 || window > MAX_WINDOW) {
      throw ConfigurationUtils.newConfigurationException(
          TYPE, tag, WINDOW, "must be between 1 and " + MAX_WINDOW + ", not " + window);
    }
    TextFields fields =
        Objects.requireNonNullElse(TextFields.read(TYPE, tag, config), TextFields.DEFAULT);
    return new CandidatesRequestProcessor(
        tag, description, ignoreFailure, window, fields, registry);
  }

  @Override
  public String getType() {
    return TYPE;
  }

  @Override
  public SearchRequest processRequest(SearchRequest request, PipelineProcessingContext context) {
    if (Candidates.decided(context)) {
      return request; // a second one would take our window for the client's page
    }
    String untouched = whyUntouched(request);
    if (untouched != null) {
      logger.debug("search left as it is: {}", untouched);
      Candidates.rememberNone(context);
      return request;
    }
    SearchSourceBuilder source = request.source();
    FetchSourceContext view = Candidates.view(source);
    FetchSourceContext wide = Candidates.widen(view, fields);
    boolean wider = !wide.equals(view);
    new Candidates(
            Candidates.from(source),
            Candidates.size(source),
            window,
            QueryText.find(source, registry),
            fields,
            wider ? view : null)
        .remember(context);
    // A page over the window's edge begins with hits that only the window's new order can name: in
    // the engine's order it would repeat some that earlier pages have shown, and others would be
    // on none.
    long end = (long) Candidates.from(source) + Candidates.size(source);
    int size = (int) Math.min(Math.max(window, end), Integer.MAX_VALUE);
    // A copy: the source may still belong to whoever sent the request, on this very node.
    SearchSourceBuilder widened = source.shallowCopy().from(0).size(size);
    return request.source(wider ? widened.fetchSource(wide) : widened);
  }

  @Nullable
  private String whyUntouched(SearchRequest request) {
    String reason = Candidates.whyNot(request);
    if (reason != null) {
      return reason;
    }
    SearchSourceBuilder source = request.source();
    if (Candidates.from(source) >= window) {
      return "its page lies beyond the window of " + window;
    }
    if (QueryText.find(source, registry) == null) {
      return "it has no query text";
    }
    return null;
  }
}
