package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.OpenSearchException;
import org.opensearch.action.search.SearchRequest;
import org.opensearch.common.unit.TimeValue;
import org.opensearch.core.common.bytes.BytesArray;
import org.opensearch.core.common.bytes.BytesReference;
import org.opensearch.search.builder.SearchSourceBuilder;
import org.opensearch.search.fetch.subphase.FetchSourceContext;
import org.opensearch.search.pipeline.PipelineProcessingContext;

class CandidatesRequestProcessorTest {
  private static final String MATCH = "'query': {'match': {'title': 'red fox'}}";

  private final PipelineProcessingContext context = Examples.context();

  private static CandidatesRequestProcessor processor(String config) throws Exception {
    return Examples.create(CandidatesRequestProcessor.factory(Examples.REGISTRY), config);
  }

  @Test
  void asksForAWindow() throws Exception {
    SearchRequest request = Examples.search("{" + MATCH + ", 'from': 20, 'size': 5}");
    SearchSourceBuilder before = request.source();
    SearchRequest changed = processor("{}").processRequest(request, context);
    assertSame(request, changed, "a pipeline needs its own kind of request back");
    assertEquals(0, changed.source().from());
    assertEquals(100, changed.source().size());
    assertEquals(
        new Candidates(20, 5, 100, "red fox", TextFields.DEFAULT, null),
        Candidates.recall(context));
    assertNotSame(before, changed.source());
    assertEquals(20, before.from());
    assertEquals(5, before.size());
  }

  @Test
  void changesNothingElse() throws Exception {
    String rest =
        MATCH
            + ", 'aggs': {'a': {'terms': {'field': 'f'}}}, 'highlight': {'fields': {'title': {}}},"
            + " 'explain': true, 'min_score': 1, 'track_total_hits': false, 'timeout': '1s',"
            + " 'post_filter': {'term': {'a': 'b'}}, 'profile': true, 'fields': ['f'],"
            + " 'docvalue_fields': ['f'], 'collapse': {'field': 'f'}, 'sort': ['_score'],"
            + " 'rescore': {'query': {'rescore_query': {'match': {'title': 'fox'}}}},"
            + " 'ext': {'title_rerank': {'query_text': 'den'}}, 'verbose_pipeline': true";
    SearchRequest changed =
        processor("{'window': 30}").processRequest(Examples.search("{" + rest + "}"), context);
    assertEquals(Examples.source("{" + rest + ", 'from': 0, 'size': 30}"), changed.source());
    assertEquals(true, changed.source().verbosePipeline());
    assertEquals("den", Candidates.recall(context).queryText());
  }

  @Test
  void knowsTheDefaultPage() throws Exception {
    processor("{}").processRequest(Examples.search("{" + MATCH + "}"), context);
    assertEquals(0, Candidates.recall(context).from());
    assertEquals(10, Candidates.recall(context).size());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{}",
        "{'query': {'match_all': {}}}",
        "{MATCH, 'size': 0}",
        "{MATCH, 'from': 100, 'size': 10}",
        "{MATCH, 'from': 2147483647}",
        "{MATCH, 'sort': ['year']}",
        "{MATCH, 'sort': [{'year': 'desc'}]}",
        "{MATCH, 'sort': [{'_score': 'asc'}]}",
        "{MATCH, 'sort': ['_score', 'year']}",
        "{MATCH, 'sort': ['_score'], 'search_after': [1.5]}",
        "{MATCH, 'slice': {'id': 0, 'max': 2}, 'pit': {'id': 'p'}}",
        "{MATCH, 'collapse': {'field': 'f', 'inner_hits': {'name': 'n'}}}",
        "{MATCH, 'stored_fields': '_none_', '_source': false}",
      })
  void leavesAlone(String json) throws Exception {
    SearchRequest request = Examples.search(json.replace("MATCH", MATCH));
    SearchSourceBuilder source = request.source();
    SearchSourceBuilder copy = source.shallowCopy();
    assertSame(request, processor("{}").processRequest(request, context));
    assertSame(source, request.source());
    assertEquals(copy, source);
    assertTrue(Candidates.decided(context));
    assertNull(Candidates.recall(context));
  }

  @Test
  void leavesScrollsAndEmptyRequestsAlone() throws Exception {
    SearchRequest scroll = Examples.search("{" + MATCH + "}").scroll(TimeValue.timeValueMinutes(1));
    processor("{}").processRequest(scroll, context);
    assertEquals(-1, scroll.source().size());
    assertNull(Candidates.recall(context));

    SearchRequest empty = new SearchRequest("docs").source(new SearchSourceBuilder());
    assertSame(empty, processor("{}").processRequest(empty, Examples.context()));
  }

  @ParameterizedTest
  @CsvSource({
    "90, 10, 100",
    "91, 10, 101",
    "99, 2, 101",
    "99, 1, 100",
    "0, 101, 101",
    "0, 2147483647, 2147483647",
    "99, 2147483647, 2147483647", // the engine refuses it, as it would have
  })
  void asksForThePageAsWellWhereItReachesBeyondTheWindow(int from, int size, int asked)
      throws Exception {
    SearchRequest request =
        Examples.search("{" + MATCH + ", 'from': " + from + ", 'size': " + size + "}");
    processor("{}").processRequest(request, context);
    assertEquals(0, request.source().from());
    assertEquals(asked, request.source().size());
    assertEquals(from, Candidates.recall(context).from());
    assertEquals(size, Candidates.recall(context).size());
    assertEquals(100, Candidates.recall(context).window());
  }

  @Test
  void theFirstOfTwoDecides() throws Exception {
    SearchRequest request = Examples.search("{" + MATCH + ", 'size': 5}");
    processor("{}").processRequest(request, context);
    processor("{'window': 50}").processRequest(request, context);
    assertEquals(100, request.source().size());
    assertEquals(5, Candidates.recall(context).size());
  }

  /** What is asked for, what is fetched for it, and what is shown of the document below. */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '~',
      value = {
        "true                    | true                            | all",
        "false                   | ['t.x', 'p']                    | null",
        "'year'                  | ['year', 't.x', 'p']            | {'year': 1.50}",
        "['year', 't.x']         | ['year', 't.x', 'p']            | {'t': {'x': 'T'}, 'year': 1.50}",
        "['t.x', 'p']            | ['t.x', 'p']                    | all",
        "['*']                   | ['*', 't.x', 'p']               | all",
        "['y*']                  | ['y*', 't.x', 'p']              | {'year': 1.50}",
        "['nothing']             | ['nothing', 't.x', 'p']         | {}",
        "{'excludes': ['year']}  | {'excludes': ['year']}          | all",
        "{'excludes': ['p']}     | true                            | {'t': {'x': 'T', 'z': 'Z'}, 'year': 1.50}",
        "{'excludes': ['t']}     | true                            | {'p': 'P', 'year': 1.50}",
        "{'excludes': ['t.*']}   | true                            | {'t': {}, 'p': 'P', 'year': 1.50}",
        "{'excludes': ['t.z']}   | {'excludes': ['t.z']}           | all",
        "{'excludes': ['*']}     | true                            | {}",
        "{'excludes': ['t.z', 'p']} | {'excludes': ['t.z']}        | {'t': {'x': 'T'}, 'year': 1.50}",
        "{'includes': ['t.*'], 'excludes': ['*.x']}"
            + " | {'includes': ['t.*', 't.x', 'p']} | {'t': {'z': 'Z'}}",
      })
  void fetchesTheFieldsAndHidesThem(String asked, String fetched, String shown) throws Exception {
    String document = "{'t': {'x': 'T', 'z': 'Z'}, 'p': 'P', 'year': 1.50}";
    SearchRequest request = Examples.search("{" + MATCH + ", '_source': " + asked + "}");
    processor("{'title_field': 't.x', 'passage_field': 'p'}").processRequest(request, context);
    FetchSourceContext view = Examples.source("{'_source': " + fetched + "}").fetchSource();
    if (request.source().fetchSource() != null) {
      assertEquals(view, request.source().fetchSource());
    }
    FetchSourceContext show = Candidates.recall(context).shown();
    if (shown.equals("all")) {
      if (show == null) {
        return;
      }
      shown = document;
    }
    assertNotNull(show);
    BytesReference source = new BytesArray(document.replace('\'', '"'));
    BytesReference left = Reordering.show(source, show);
    assertEquals(
        shown.equals("null") ? null : Examples.map(shown),
        left == null ? null : Examples.map(left.utf8ToString()));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '~',
      value = {
        "'stored_fields': ['year']                                       | true",
        "'stored_fields': ['year', '_source']                            | false",
        "'script_fields': {'s': {'script': '1'}}                         | true",
        "'script_fields': {'s': {'script': '1'}}, '_source': true        | false",
        "'fields': ['year'], 'docvalue_fields': ['year']                 | false",
      })
  void knowsWhenTheEngineShowsNoSource(String asked, boolean hidden) throws Exception {
    SearchRequest request = Examples.search("{" + MATCH + ", " + asked + "}");
    processor("{}").processRequest(request, context);
    FetchSourceContext shown = Candidates.recall(context).shown();
    assertEquals(hidden, shown != null && !shown.fetchSource());
    if (hidden) {
      assertArrayEquals(
          new String[] {"title", "passage"}, request.source().fetchSource().includes());
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'window': 0}",
        "{'window': -1}",
        "{'window': 10001}",
        "{'window': 'wide'}",
        "{'passage_field': 5}",
      })
  void refusesAConfiguration(String config) {
    assertThrows(OpenSearchException.class, () -> processor(config));
  }

  @Test
  void refusesAnUnknownOption() {
    assertThrows(IllegalArgumentException.class, () -> processor("{'windows': 5}"));
  }

  @Test
  void takesTheWidestWindow() throws Exception {
    SearchRequest request = Examples.search("{" + MATCH + "}");
    processor("{'window': 10000}").processRequest(request, context);
    assertEquals(10_000, request.source().size());
  }
}
