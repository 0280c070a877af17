package org.titlecast.opensearch;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.opensearch.action.search.SearchRequest;
import org.opensearch.common.Nullable;
import org.opensearch.search.builder.SearchSourceBuilder;
import org.opensearch.search.fetch.StoredFieldsContext;
import org.opensearch.search.fetch.subphase.FetchSourceContext;
import org.opensearch.search.pipeline.PipelineProcessingContext;
import org.opensearch.search.sort.ScoreSortBuilder;
import org.opensearch.search.sort.SortBuilder;
import org.opensearch.search.sort.SortOrder;

/**
 * What the request processor hands to the response processor of the same search.
 *
 * @param from first hit of the page that the client asked for
 * @param size hits of that page
 * @param window hits that are reranked; the page may reach beyond them
 * @param queryText the words to rank by, taken from the query before the engine rewrote it
 * @param fields the fields that were asked for
 * @param shown the client's own view of {@code _source}, where more of it was fetched than the
 *     client may see; null where nothing is to be hidden
 */
record Candidates(
    int from,
    int size,
    int window,
    String queryText,
    TextFields fields,
    @Nullable FetchSourceContext shown) {

  private static final String KEY = "title_rerank.candidates";
  private static final Object NONE = "none";
  private static final int DEFAULT_SIZE = 10;

  void remember(PipelineProcessingContext context) {
    context.setAttribute(KEY, this);
  }

  /** From here on the response processor leaves this search alone. */
  static void rememberNone(PipelineProcessingContext context) {
    context.setAttribute(KEY, NONE);
  }

  /** Whether a request processor has already decided on this search. */
  static boolean decided(PipelineProcessingContext context) {
    return context.getAttribute(KEY) != null;
  }

  /** What was remembered; null if this search is to be left alone. */
  @Nullable
  static Candidates recall(PipelineProcessingContext context) {
    return context.getAttribute(KEY) instanceof Candidates candidates ? candidates : null;
  }

  static int from(SearchSourceBuilder source) {
    return Math.max(source.from(), 0);
  }

  static int size(SearchSourceBuilder source) {
    return source.size() < 0 ? DEFAULT_SIZE : source.size();
  }

  /** Why a search is none that relevance orders, or null if it is one. */
  @Nullable
  static String whyNot(SearchRequest request) {
    SearchSourceBuilder source = request.source();
    if (source == null) {
      return "it has no body";
    }
    if (request.scroll() != null || source.slice() != null) {
      return "it reads the whole result";
    }
    if (source.searchAfter() != null) {
      return "it goes on after a hit of another page";
    }
    if (!byScore(source.sorts())) {
      return "it has a sort order of its own";
    }
    if (size(source) == 0) {
      return "it asks for no hits";
    }
    if (source.collapse() != null && !source.collapse().getInnerHits().isEmpty()) {
      // The engine runs one more search for every hit of the window, not only of the page. (Those
      // searches go through the index's default pipeline, and nothing tells them from a client's.)
      return "it collapses with inner_hits";
    }
    StoredFieldsContext stored = source.storedFields();
    if (stored != null && !stored.fetchFields()) {
      return "it asks for hits without their fields";
    }
    return null;
  }

  /** Any second sort key stands for deep paging with search_after, which reranking would break. */
  private static boolean byScore(@Nullable List<SortBuilder<?>> sorts) {
    return sorts == null
        || sorts.isEmpty()
        || (sorts.size() == 1
            && sorts.get(0) instanceof ScoreSortBuilder score
            && score.order() == SortOrder.DESC);
  }

  /** The view of {@code _source} that a search asks for, as the engine's fetch phase reads it. */
  static FetchSourceContext view(SearchSourceBuilder source) {
    FetchSourceContext asked = source.fetchSource();
    List<String> stored = source.storedFields() == null ? null : source.storedFields().fieldNames();
    if (stored != null && stored.contains("_source")) {
      return asked == null
          ? FetchSourceContext.FETCH_SOURCE
          : new FetchSourceContext(true, asked.includes(), asked.excludes());
    }
    if (asked != null) {
      return asked;
    }
    boolean scripts = source.scriptFields() != null && !source.scriptFields().isEmpty();
    return stored == null && !scripts
        ? FetchSourceContext.FETCH_SOURCE
        : FetchSourceContext.DO_NOT_FETCH_SOURCE;
  }

  /** The smallest view that has all of {@code view} and the fields as well. */
  static FetchSourceContext widen(FetchSourceContext view, TextFields fields) {
    if (!view.fetchSource()) {
      return new FetchSourceContext(true, fields.paths().toArray(String[]::new), null);
    }
    Set<String> includes = new LinkedHashSet<>(Arrays.asList(view.includes()));
    if (!includes.isEmpty()) {
      includes.addAll(fields.paths());
    }
    List<String> excludes = new ArrayList<>(Arrays.asList(view.excludes()));
    excludes.removeIf(pattern -> hidesAny(pattern, fields));
    return new FetchSourceContext(
        true, includes.toArray(String[]::new), excludes.toArray(String[]::new));
  }

  /** The engine's own filter decides, on a document that has the field and nothing else. */
  private static boolean hidesAny(String exclude, TextFields fields) {
    FetchSourceContext view = new FetchSourceContext(true, null, new String[] {exclude});
    return fields.paths().stream()
        .anyMatch(path -> !view.getFilter().apply(Map.of(path, "")).containsKey(path));
  }
}
