package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.apache.lucene.search.SortField;
import org.apache.lucene.search.TotalHits;
import org.junit.jupiter.api.Test;
import org.opensearch.action.search.SearchResponse;
import org.opensearch.action.search.ShardSearchFailure;
import org.opensearch.search.SearchHit;
import org.opensearch.search.SearchHits;
import org.opensearch.search.fetch.subphase.FetchSourceContext;
import org.opensearch.search.internal.InternalSearchResponse;
import org.titlecast.opensearch.SidecarProtocol.Placed;

class ReorderingTest {
  private static final TitleRerankReport REPORT = TitleRerankReport.notApplied("A test.");
  private static final FetchSourceContext ALL = null;

  private static Candidates page(int from, int size, FetchSourceContext shown) {
    return new Candidates(from, size, 100, "text", TextFields.DEFAULT, shown);
  }

  private static List<Placed> backwards(int count) {
    return IntStream.range(0, count).mapToObj(i -> new Placed(count - 1 - i, 3f - i)).toList();
  }

  private static SearchResponse reranked(SearchResponse response, int from, int size) {
    return Reordering.reranked(
        response,
        backwards(response.getHits().getHits().length),
        page(from, size, ALL),
        70,
        REPORT);
  }

  @Test
  void putsHitsIntoTheNewOrder() {
    SearchResponse changed = reranked(Examples.response(Examples.hits(3)), 0, 10);
    assertEquals(List.of("id2", "id1", "id0"), Examples.ids(changed));
    assertEquals(List.of(3f, 2f, 1f), Examples.scores(changed));
    assertEquals(3f, changed.getHits().getMaxScore());
  }

  @Test
  void cutsOutThePage() {
    SearchResponse response = Examples.response(Examples.hits(5));
    assertEquals(List.of("id4", "id3"), Examples.ids(reranked(response, 0, 2)));
    assertEquals(List.of("id2", "id1"), Examples.ids(reranked(response, 2, 2)));
    assertEquals(List.of("id0"), Examples.ids(reranked(response, 4, 2)));
    assertEquals(List.of(), Examples.ids(reranked(response, 5, 2)));
    assertEquals(List.of(), Examples.ids(reranked(response, 80, 2)));
    assertEquals(3f, reranked(response, 2, 2).getHits().getMaxScore(), "of the whole result");
    assertEquals(5, Examples.ids(reranked(response, 0, Integer.MAX_VALUE)).size());
  }

  private static List<Float> scoresBehindAWindowOfTwo(SearchHit... hits) {
    SearchResponse changed =
        Reordering.reranked(
            Examples.response(hits), backwards(2), page(0, hits.length, ALL), 70, REPORT);
    assertEquals(List.of("id1", "id0", "id2", "id3"), Examples.ids(changed));
    assertEquals(3f, changed.getHits().getMaxScore());
    return Examples.scores(changed).subList(2, 4);
  }

  @Test
  void whatIsBehindTheWindowFollows() {
    SearchHit[] hits = Examples.hits(4); // the engine's scores are 20, 19, 18, 17
    assertEquals(List.of(2f * 18 / 19, 2f * 17 / 19), scoresBehindAWindowOfTwo(hits));
    hits[2].score(19);
    hits[3].score(19);
    assertEquals(List.of(2f, 2f), scoresBehindAWindowOfTwo(hits));
    hits[2].score(9.5f); // as a rescoring leaves them
    hits[3].score(100);
    assertEquals(List.of(1f, 1f), scoresBehindAWindowOfTwo(hits));
    for (SearchHit hit : hits) {
      hit.score(0);
    }
    assertEquals(List.of(2f, 2f), scoresBehindAWindowOfTwo(hits));
    hits[2].score(Float.NaN);
    assertEquals(List.of(2f, 2f), scoresBehindAWindowOfTwo(hits));
  }

  @Test
  void keepsTheRestOfEveryHit() {
    SearchResponse response = Examples.response(Examples.hits(3));
    Map<String, Object> before = Examples.json(response.getHits().getAt(1));
    Map<String, Object> after = Examples.json(reranked(response, 1, 1).getHits().getAt(0));
    assertEquals(19.0, before.put("_score", null));
    assertEquals(2.0, after.put("_score", null));
    assertEquals(before, after);
    for (String key :
        List.of(
            "_index",
            "_id",
            "_version",
            "_seq_no",
            "_primary_term",
            "_ignored",
            "_source",
            "fields",
            "highlight",
            "matched_queries",
            "_explanation",
            "inner_hits",
            "_shard")) {
      assertTrue(after.containsKey(key), key);
    }
  }

  @Test
  void keepsTheRestOfTheResponse() {
    SearchResponse response = Examples.response(Examples.hits(3));
    Map<String, Object> before = Examples.json(response);
    for (SearchResponse changed :
        List.of(
            reranked(response, 0, 3),
            Reordering.engineOrder(response, page(0, 3, ALL), 70, REPORT))) {
      Map<String, Object> after = Examples.json(changed);
      assertEquals(100, after.put("took", before.get("took")));
      for (Map.Entry<String, Object> entry : before.entrySet()) {
        if (!List.of("hits", "ext").contains(entry.getKey())) {
          assertEquals(entry.getValue(), after.get(entry.getKey()), entry.getKey());
        }
      }
      for (String key :
          List.of(
              "pit_id",
              "phase_took",
              "_shards",
              "_clusters",
              "profile",
              "suggest",
              "timed_out",
              "terminated_early",
              "num_reduce_phases")) {
        assertTrue(after.containsKey(key), key);
      }
      assertEquals(response.getAggregations(), changed.getAggregations());
      assertEquals(response.getHits().getTotalHits(), changed.getHits().getTotalHits());
      assertEquals(
          List.of(Examples.FOREIGN_EXT, REPORT),
          changed.getInternalResponse().getSearchExtBuilders());
    }
  }

  @Test
  void leavesTheOriginalAlone() {
    SearchResponse response = Examples.response(Examples.hits(3));
    Map<String, Object> before = Examples.json(response);
    SearchResponse changed =
        Reordering.reranked(
            response, backwards(3), page(0, 3, FetchSourceContext.DO_NOT_FETCH_SOURCE), 70, REPORT);
    changed.getHits().getAt(0).getInnerHits().clear();
    changed.getHits().getAt(1).getInnerHits().get("parts").getAt(0).score(99);
    assertEquals(before, Examples.json(response));
  }

  @Test
  void engineOrderKeepsScores() {
    SearchResponse response = Examples.response(Examples.hits(5));
    SearchResponse changed = Reordering.engineOrder(response, page(1, 2, ALL), 70, REPORT);
    assertEquals(List.of("id1", "id2"), Examples.ids(changed));
    assertEquals(List.of(19f, 18f), Examples.scores(changed));
    assertEquals(20f, changed.getHits().getMaxScore());
  }

  @Test
  void hidesWhatWasNotAskedFor() {
    SearchResponse response = Examples.response(Examples.hits(2));
    SearchResponse none =
        Reordering.engineOrder(
            response, page(0, 2, FetchSourceContext.DO_NOT_FETCH_SOURCE), 0, REPORT);
    assertFalse(Examples.json(none.getHits().getAt(0)).containsKey("_source"));
    FetchSourceContext some = new FetchSourceContext(true, new String[] {"x"}, null);
    for (SearchResponse changed :
        List.of(
            Reordering.reranked(response, backwards(2), page(0, 2, some), 0, REPORT),
            Reordering.engineOrder(response, page(0, 2, some), 0, REPORT))) {
      assertEquals("{\"x\":1.5}", changed.getHits().getAt(0).getSourceAsString());
      assertEquals(Map.of("x", 1.5), changed.getHits().getAt(1).getSourceAsMap());
    }
    assertEquals(
        "{}",
        Reordering.engineOrder(
                response,
                page(0, 1, new FetchSourceContext(true, new String[] {"none"}, null)),
                0,
                REPORT)
            .getHits()
            .getAt(0)
            .getSourceAsString());
  }

  @Test
  void showsSourcesByteForByteWhereNothingIsHidden() {
    SearchResponse changed = reranked(Examples.response(Examples.hits(1)), 0, 1);
    assertEquals(
        "{\"title\": \"title 0\", \"passage\": \"passage 0\", \"x\": 1.50}",
        changed.getHits().getAt(0).getSourceRef().utf8ToString());
  }

  @Test
  void hitsWithoutASourceHaveNone() {
    SearchResponse response = Examples.response(Examples.hit(0, null), Examples.hit(1, null));
    FetchSourceContext some = new FetchSourceContext(true, new String[] {"x"}, null);
    SearchResponse changed =
        Reordering.reranked(response, backwards(2), page(0, 2, some), 0, REPORT);
    assertFalse(changed.getHits().getAt(0).hasSource());
  }

  @Test
  void movesCollapseValuesWithTheirHits() {
    SearchHits hits =
        new SearchHits(
            Examples.hits(3),
            new TotalHits(3, TotalHits.Relation.EQUAL_TO),
            20f,
            new SortField[] {SortField.FIELD_SCORE},
            "group",
            new Object[] {"a", "b", "c"});
    SearchHits changed = reranked(Examples.response(hits), 0, 2).getHits();
    assertEquals("group", changed.getCollapseField());
    assertArrayEquals(new Object[] {"c", "b"}, changed.getCollapseValues());
    assertArrayEquals(hits.getSortFields(), changed.getSortFields());
  }

  @Test
  void inventsNothing() {
    SearchHits hits = new SearchHits(Examples.hits(1), null, 20f);
    SearchResponse bare =
        new SearchResponse(
            new InternalSearchResponse(hits, null, null, null, false, null, 1),
            null,
            1,
            1,
            0,
            5,
            ShardSearchFailure.EMPTY_ARRAY,
            SearchResponse.Clusters.EMPTY);
    Map<String, Object> after = Examples.json(reranked(bare, 0, 1));
    assertEquals(
        List.of("took", "timed_out", "_shards", "hits", "ext"), List.copyOf(after.keySet()));
    assertFalse(((Map<?, ?>) after.get("hits")).containsKey("total"));
  }
}
