package org.titlecast.opensearch;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.opensearch.action.search.SearchResponse;
import org.opensearch.action.search.SearchResponseSections;
import org.opensearch.common.Nullable;
import org.opensearch.common.collect.Tuple;
import org.opensearch.common.xcontent.XContentHelper;
import org.opensearch.core.common.bytes.BytesReference;
import org.opensearch.core.xcontent.MediaType;
import org.opensearch.core.xcontent.XContentBuilder;
import org.opensearch.search.SearchExtBuilder;
import org.opensearch.search.SearchHit;
import org.opensearch.search.SearchHits;
import org.opensearch.search.aggregations.InternalAggregations;
import org.opensearch.search.fetch.subphase.FetchSourceContext;
import org.opensearch.search.internal.InternalSearchResponse;
import org.opensearch.search.profile.ProfileShardResult;
import org.opensearch.search.profile.SearchProfileShardResults;
import org.titlecast.opensearch.SidecarProtocol.Placed;

/**
 * Makes the response that the client sees out of the one that the engine gave. Pure: the engine's
 * response and its hits stay as they are, because a pipeline hands them on where a processor fails.
 */
final class Reordering {
  private Reordering() {}

  /**
   * The asked-for page in the new order, with the new scores.
   *
   * @param order the response's first hits, the window, best first; those behind it follow as they
   *     are
   * @param tookMillis our own time, added to the engine's
   */
  static SearchResponse reranked(
      SearchResponse response,
      List<Placed> order,
      Candidates candidates,
      long tookMillis,
      TitleRerankReport report) {
    List<Placed> page = page(followed(order, response.getHits()), candidates);
    float maxScore = order.isEmpty() ? response.getHits().getMaxScore() : order.get(0).score();
    SearchHits hits =
        select(response.getHits(), page.stream().map(Placed::index).toList(), maxScore, candidates);
    for (int i = 0; i < page.size(); i++) {
      hits.getAt(i).score(page.get(i).score());
    }
    return rebuild(response, hits, tookMillis, report);
  }

  /** The asked-for page in the engine's order, with the engine's scores. */
  static SearchResponse engineOrder(
      SearchResponse response, Candidates candidates, long tookMillis, TitleRerankReport report) {
    SearchHits all = response.getHits();
    List<Integer> order = IntStream.range(0, all.getHits().length).boxed().toList();
    SearchHits hits = select(all, page(order, candidates), all.getMaxScore(), candidates);
    return rebuild(response, hits, tookMillis, report);
  }

  /**
   * The window's order, and behind it the other hits in the engine's: their scores are to the last
   * of the window's as the engine has them, so that they go on descending.
   */
  private static List<Placed> followed(List<Placed> order, SearchHits hits) {
    int window = order.size();
    if (window == 0 || window == hits.getHits().length) {
      return order;
    }
    List<Placed> all = new ArrayList<>(order);
    float last = order.get(window - 1).score();
    double engines = hits.getAt(window - 1).getScore();
    float above = last;
    for (int i = window; i < hits.getHits().length; i++) {
      float score = (float) (last * (hits.getAt(i).getScore() / engines));
      above = score < above ? score : above; // a rescoring may not descend, and 0 / 0 is no number
      all.add(new Placed(i, above));
    }
    return all;
  }

  private static <T> List<T> page(List<T> order, Candidates candidates) {
    int from = Math.min(candidates.from(), order.size());
    int to = (int) Math.min((long) from + candidates.size(), order.size());
    return order.subList(from, to);
  }

  /** Deep copies of some hits, less what the client did not ask to see of them. */
  private static SearchHits select(
      SearchHits all, List<Integer> positions, float maxScore, Candidates candidates) {
    SearchHit[] hits = positions.stream().map(all::getAt).toArray(SearchHit[]::new);
    // One value per hit, where hits were collapsed.
    Object[] collapsed = all.getCollapseValues();
    if (collapsed != null && collapsed.length == all.getHits().length) {
      collapsed = positions.stream().map(i -> all.getCollapseValues()[i]).toArray();
    }
    SearchHits selected;
    try {
      selected =
          new SearchHits(
                  hits,
                  all.getTotalHits(),
                  maxScore,
                  all.getSortFields(),
                  all.getCollapseField(),
                  collapsed)
              .deepCopy();
    } catch (IOException e) {
      throw new UncheckedIOException("a hit cannot be copied", e);
    }
    if (candidates.shown() != null) {
      for (SearchHit hit : selected) {
        hit.sourceRef(show(hit.getSourceRef(), candidates.shown()));
      }
    }
    return selected;
  }

  /** What the engine's fetch phase would have given for this view. */
  @Nullable
  static BytesReference show(@Nullable BytesReference source, FetchSourceContext view) {
    if (source == null || !view.fetchSource()) {
      return null;
    }
    Tuple<? extends MediaType, Map<String, Object>> parsed =
        XContentHelper.convertToMap(source, true, (MediaType) null);
    try (XContentBuilder builder = XContentBuilder.builder(parsed.v1().xContent())) {
      builder.map(view.getFilter().apply(parsed.v2()));
      return BytesReference.bytes(builder);
    } catch (IOException e) {
      throw new UncheckedIOException("a hit's _source cannot be filtered", e);
    }
  }

  private static SearchResponse rebuild(
      SearchResponse response, SearchHits hits, long tookMillis, TitleRerankReport report) {
    List<SearchExtBuilder> exts =
        new ArrayList<>(response.getInternalResponse().getSearchExtBuilders());
    exts.add(report);
    // No profile comes as an empty one, and an empty one would be shown.
    Map<String, ProfileShardResult> profile = response.getProfileResults();
    SearchResponseSections sections =
        new InternalSearchResponse(
            hits,
            (InternalAggregations) response.getAggregations(),
            response.getSuggest(),
            profile.isEmpty() ? null : new SearchProfileShardResults(profile),
            response.isTimedOut(),
            response.isTerminatedEarly(),
            response.getNumReducePhases(),
            exts,
            response.getInternalResponse().getProcessorResult());
    return new SearchResponse(
        sections,
        response.getScrollId(),
        response.getTotalShards(),
        response.getSuccessfulShards(),
        response.getSkippedShards(),
        response.getTook().millis() + tookMillis,
        response.getPhaseTook(),
        response.getShardFailures(),
        response.getClusters(),
        response.pointInTimeId());
  }
}
