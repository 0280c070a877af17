package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.nio.charset.StandardCharsets;
import java.util.Base64;
import org.apache.lucene.search.BooleanClause.Occur;
import org.apache.lucene.search.Query;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.core.common.io.stream.StreamOutput;
import org.opensearch.core.xcontent.XContentBuilder;
import org.opensearch.index.query.AbstractQueryBuilder;
import org.opensearch.index.query.BoolQueryBuilder;
import org.opensearch.index.query.MatchQueryBuilder;
import org.opensearch.index.query.QueryBuilder;
import org.opensearch.index.query.QueryBuilderVisitor;
import org.opensearch.index.query.QueryShardContext;
import org.opensearch.search.builder.SearchSourceBuilder;

class QueryTextTest {
  private static String find(String source) {
    return QueryText.find(Examples.source(source), Examples.REGISTRY);
  }

  private static String inQuery(String query) {
    return find("{'query': " + query + "}");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'match': {'title': 'red fox'}}",
        "{'match': {'title': {'query': 'red fox', 'operator': 'and', 'fuzziness': 'AUTO'}}}",
        "{'match_phrase': {'title': 'red fox'}}",
        "{'match_phrase_prefix': {'title': 'red fox'}}",
        "{'match_bool_prefix': {'title': 'red fox'}}",
        "{'multi_match': {'query': 'red fox', 'fields': ['title^3', 'passage']}}",
        "{'combined_fields': {'query': 'red fox', 'fields': ['title', 'passage']}}",
        "{'query_string': {'query': 'red fox'}}",
        "{'simple_query_string': {'query': 'red fox'}}",
        "{'bool': {'must': {'match': {'title': 'red fox'}}}}",
        "{'bool': {'should': [{'match': {'title': 'red fox'}}]}}",
        "{'bool': {'must': [{'bool': {'should': [{'match': {'title': 'red fox'}}]}}]}}",
        "{'dis_max': {'queries': [{'match': {'a': 'red fox'}}, {'match': {'b': 'red fox'}}]}}",
        "{'constant_score': {'filter': {'match': {'title': 'red fox'}}}}",
        "{'function_score': {'query': {'match': {'title': 'red fox'}}, 'boost': 2}}",
        "{'script_score': {'query': {'match': {'title': 'red fox'}}, 'script': {'source': '1'}}}",
        "{'nested': {'path': 'doc', 'query': {'match': {'doc.title': 'red fox'}}}}",
        "{'boosting': {'positive': {'match': {'t': 'red fox'}}, 'negative': {'match': {'t': 'x'}},"
            + " 'negative_boost': 0.5}}",
        "{'match': {'title': '  red fox\\n'}}",
      })
  void findsTheTextOf(String query) {
    assertEquals("red fox", inQuery(query));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'match_all': {}}",
        "{'term': {'title': 'red'}}",
        "{'terms': {'title': ['red']}}",
        "{'prefix': {'title': 'red'}}",
        "{'range': {'year': {'gte': 1990}}}",
        "{'ids': {'values': ['1']}}",
        "{'match': {'year': 1990}}",
        "{'match': {'open': true}}",
        "{'match': {'title': ' '}}",
        "{'query_string': {'query': '*'}}",
        "{'query_string': {'query': '*:*'}}",
        "{'simple_query_string': {'query': '+ - |'}}",
        "{'bool': {}}",
        "{'bool': {'filter': {'match': {'title': 'red fox'}}}}",
        "{'bool': {'must_not': {'match': {'title': 'red fox'}}}}",
        "{'function_score': {'functions': [{'filter': {'match': {'t': 'red'}}, 'weight': 2}]}}",
        "{'wrapper': {'query': 'bm90IGpzb24='}}",
      })
  void findsNoneIn(String query) {
    assertNull(inQuery(query));
  }

  @Test
  void findsNoneWithoutAQuery() {
    assertNull(find("{}"));
    assertNull(find("{'suggest': {'s': {'text': 'red', 'term': {'field': 'title'}}}}"));
  }

  @Test
  void joinsDistinctTextsInTheirOrder() {
    assertEquals(
        "red fox den",
        inQuery(
            "{'bool': {'should': [{'match': {'a': 'den'}}, {'match': {'b': 'red fox'}}],"
                + " 'must': [{'match': {'a': 'red fox'}}, {'match_phrase': {'b': 'red fox'}}]}}"));
  }

  @Test
  void keepsQueryStringSyntax() {
    assertEquals(
        "title:(red AND fox) -dog",
        inQuery("{'query_string': {'query': 'title:(red AND fox) -dog'}}"));
  }

  @Test
  void looksIntoWrappers() {
    String inner = "{\"match\": {\"title\": \"red fox\"}}";
    for (int i = 0; i < 3; i++) {
      String base64 = Base64.getEncoder().encodeToString(inner.getBytes(StandardCharsets.UTF_8));
      inner = "{\"wrapper\": {\"query\": \"" + base64 + "\"}}";
    }
    assertEquals("red fox", inQuery(inner));
  }

  @Test
  void looksNotIntoEndlessWrappers() {
    String inner = "{\"match\": {\"title\": \"red fox\"}}";
    for (int i = 0; i < 12; i++) {
      String base64 = Base64.getEncoder().encodeToString(inner.getBytes(StandardCharsets.UTF_8));
      inner = "{\"wrapper\": {\"query\": \"" + base64 + "\"}}";
    }
    assertNull(inQuery(inner));
  }

  @Test
  void prefersWhatTheSearchSaysOutright() {
    String query = "'query': {'match': {'title': 'red fox'}}";
    assertEquals(
        "den of foxes",
        find("{" + query + ", 'ext': {'title_rerank': {'query_text': ' den of foxes '}}}"));
    assertEquals("den", find("{'ext': {'title_rerank': {'query_text': 'den'}}}"));
    for (String blank : new String[] {"{'query_text': '  '}", "{'query_text': null}", "{}"}) {
      assertEquals("red fox", find("{" + query + ", 'ext': {'title_rerank': " + blank + "}}"));
    }
  }

  @Test
  void looksIntoCompoundQueriesOfOtherPlugins() {
    BoolQueryBuilder filtered =
        new BoolQueryBuilder()
            .must(new MatchQueryBuilder("a", "red"))
            .filter(new MatchQueryBuilder("b", "hidden"));
    SearchSourceBuilder source =
        new SearchSourceBuilder()
            .query(
                new Foreign(
                    new Part(Occur.SHOULD, filtered),
                    new Part(Occur.MUST, new MatchQueryBuilder("a", "fox")),
                    new Part(Occur.MUST_NOT, new MatchQueryBuilder("a", "dog")),
                    new Part(Occur.FILTER, new MatchQueryBuilder("a", "cat"))));
    assertEquals("red fox", QueryText.find(source, Examples.REGISTRY));
  }

  private record Part(Occur occur, QueryBuilder query) {}

  /** A compound query that we know nothing of. */
  private static final class Foreign extends AbstractQueryBuilder<Foreign> {
    private final Part[] parts;

    Foreign(Part... parts) {
      this.parts = parts;
    }

    @Override
    public void visit(QueryBuilderVisitor visitor) {
      visitor.accept(this);
      for (Part part : parts) {
        part.query().visit(visitor.getChildVisitor(part.occur()));
      }
    }

    @Override
    public String getWriteableName() {
      return "foreign";
    }

    @Override
    protected void doWriteTo(StreamOutput out) {}

    @Override
    protected void doXContent(XContentBuilder builder, Params params) {}

    @Override
    protected Query doToQuery(QueryShardContext context) {
      throw new UnsupportedOperationException();
    }

    @Override
    protected boolean doEquals(Foreign other) {
      return this == other;
    }

    @Override
    protected int doHashCode() {
      return 1;
    }
  }
}
