package org.titlecast.opensearch;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.apache.lucene.search.Explanation;
import org.apache.lucene.search.TotalHits;
import org.opensearch.action.OriginalIndices;
import org.opensearch.action.search.SearchRequest;
import org.opensearch.action.search.SearchResponse;
import org.opensearch.action.search.ShardSearchFailure;
import org.opensearch.common.document.DocumentField;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.xcontent.json.JsonXContent;
import org.opensearch.core.common.bytes.BytesArray;
import org.opensearch.core.common.io.stream.StreamOutput;
import org.opensearch.core.common.text.Text;
import org.opensearch.core.index.shard.ShardId;
import org.opensearch.core.xcontent.DeprecationHandler;
import org.opensearch.core.xcontent.MediaTypeRegistry;
import org.opensearch.core.xcontent.NamedXContentRegistry;
import org.opensearch.core.xcontent.ToXContent;
import org.opensearch.core.xcontent.XContentBuilder;
import org.opensearch.core.xcontent.XContentParser;
import org.opensearch.search.SearchExtBuilder;
import org.opensearch.search.SearchHit;
import org.opensearch.search.SearchHits;
import org.opensearch.search.SearchModule;
import org.opensearch.search.SearchShardTarget;
import org.opensearch.search.aggregations.InternalAggregations;
import org.opensearch.search.builder.SearchSourceBuilder;
import org.opensearch.search.fetch.subphase.highlight.HighlightField;
import org.opensearch.search.internal.InternalSearchResponse;
import org.opensearch.search.pipeline.PipelineProcessingContext;
import org.opensearch.search.pipeline.Processor;
import org.opensearch.search.profile.NetworkTime;
import org.opensearch.search.profile.ProfileShardResult;
import org.opensearch.search.profile.SearchProfileShardResults;
import org.opensearch.search.profile.aggregation.AggregationProfileShardResult;
import org.opensearch.search.profile.fetch.FetchProfileShardResult;
import org.opensearch.search.suggest.Suggest;

/** Searches, hits and responses for the tests. */
final class Examples {
  private Examples() {}

  /** Knows all query types and our own extensions, as a node with the plugin does. */
  static final NamedXContentRegistry REGISTRY = registry();

  private static NamedXContentRegistry registry() {
    try (TitleRerankPlugin plugin = new TitleRerankPlugin(Settings.EMPTY, Path.of("."))) {
      return new NamedXContentRegistry(
          new SearchModule(Settings.EMPTY, List.of(plugin)).getNamedXContents());
    }
  }

  /** A section that another processor has put into a response. */
  static final SearchExtBuilder FOREIGN_EXT =
      new SearchExtBuilder() {
        @Override
        public String getWriteableName() {
          return "foreign";
        }

        @Override
        public void writeTo(StreamOutput out) {}

        @Override
        public XContentBuilder toXContent(XContentBuilder builder, Params params)
            throws IOException {
          return builder.field("foreign", "words");
        }

        @Override
        public int hashCode() {
          return 1;
        }

        @Override
        public boolean equals(Object other) {
          return this == other;
        }
      };

  /** A search's body, from its JSON with single quotes. */
  static SearchSourceBuilder source(String json) {
    try (XContentParser parser = parser(json.replace('\'', '"'))) {
      return SearchSourceBuilder.fromXContent(parser);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static SearchRequest search(String json) {
    return new SearchRequest("docs").source(source(json));
  }

  static XContentParser parser(String json) throws IOException {
    return JsonXContent.jsonXContent.createParser(
        REGISTRY, DeprecationHandler.IGNORE_DEPRECATIONS, json);
  }

  /** A JSON object, written with single quotes. */
  static Map<String, Object> map(String json) {
    return parse(json.replace('\'', '"'));
  }

  /** A JSON object. */
  static Map<String, Object> parse(String json) {
    try (XContentParser parser = parser(json)) {
      return parser.mapOrdered();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static <T> T create(Processor.Factory<?> factory, String config) throws Exception {
    return create(factory, config, false);
  }

  @SuppressWarnings({"unchecked", "rawtypes"})
  static <T> T create(Processor.Factory<?> factory, String config, boolean ignoreFailure)
      throws Exception {
    Map<String, Object> options = map(config);
    Object processor =
        ((Processor.Factory) factory)
            .create(
                Map.of(),
                "tag",
                "description",
                ignoreFailure,
                options,
                new Processor.PipelineContext(Processor.PipelineSource.UPDATE_PIPELINE));
    if (!options.isEmpty()) { // a node says so, too
      throw new IllegalArgumentException("unknown options " + options.keySet());
    }
    return (T) processor;
  }

  static PipelineProcessingContext context() {
    return new PipelineProcessingContext();
  }

  /** A hit with much to lose on its way. */
  static SearchHit hit(int number, String source) {
    SearchHit hit =
        new SearchHit(
            number,
            "id" + number,
            new HashMap<>(Map.of("year", new DocumentField("year", List.of(1900 + number)))),
            new HashMap<>(Map.of("_ignored", new DocumentField("_ignored", List.of("junk")))));
    hit.shard(
        new SearchShardTarget(
            "node", new ShardId("docs", "uuid", number % 3), null, OriginalIndices.NONE));
    hit.score(20f - number);
    hit.version(7);
    hit.setSeqNo(8);
    hit.setPrimaryTerm(9);
    hit.matchedQueriesWithScores(Map.of("named", 1.5f));
    hit.highlightFields(
        Map.of("title", new HighlightField("title", new Text[] {new Text("<em>hi</em>")})));
    hit.explanation(Explanation.match(20f - number, "because"));
    SearchHit inner = new SearchHit(1, "inner" + number, Map.of(), Map.of());
    inner.score(1f);
    inner.sourceRef(new BytesArray("{}"));
    hit.setInnerHits(
        new HashMap<>(
            Map.of(
                "parts",
                new SearchHits(
                    new SearchHit[] {inner}, new TotalHits(1, TotalHits.Relation.EQUAL_TO), 1f))));
    if (source != null) {
      hit.sourceRef(new BytesArray(source.replace('\'', '"')));
    }
    return hit;
  }

  /** Hits 0, 1, 2 ... with a title and a passage each. */
  static SearchHit[] hits(int count) {
    return Stream.iterate(0, i -> i < count, i -> i + 1)
        .map(i -> hit(i, "{'title': 'title " + i + "', 'passage': 'passage " + i + "', 'x': 1.50}"))
        .toArray(SearchHit[]::new);
  }

  /** A response in which nothing has its default. */
  static SearchResponse response(SearchHit... hits) {
    return response(
        new SearchHits(
            hits,
            new TotalHits(4321, TotalHits.Relation.GREATER_THAN_OR_EQUAL_TO),
            hits.length == 0 ? Float.NaN : hits[0].getScore()));
  }

  static SearchResponse response(SearchHits hits) {
    ProfileShardResult profile =
        new ProfileShardResult(
            new ArrayList<>(),
            new AggregationProfileShardResult(List.of()),
            new FetchProfileShardResult(List.of()),
            new NetworkTime(1, 2));
    InternalSearchResponse sections =
        new InternalSearchResponse(
            hits,
            InternalAggregations.EMPTY,
            new Suggest(new ArrayList<>()),
            new SearchProfileShardResults(Map.of("shard", profile)),
            true,
            true,
            2,
            List.of(FOREIGN_EXT),
            Collections.emptyList());
    return new SearchResponse(
        sections,
        null,
        5,
        4,
        1,
        30,
        new SearchResponse.PhaseTook(Map.of("query", 11L)),
        new ShardSearchFailure[] {new ShardSearchFailure(new IllegalStateException("lost"))},
        new SearchResponse.Clusters(3, 2, 1),
        "point in time");
  }

  static Map<String, Object> json(ToXContent content) {
    try (XContentBuilder builder = MediaTypeRegistry.JSON.contentBuilder()) {
      boolean fragment = content.isFragment();
      if (fragment) {
        builder.startObject();
      }
      content.toXContent(builder, ToXContent.EMPTY_PARAMS);
      if (fragment) {
        builder.endObject();
      }
      return parse(builder.toString());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  @SuppressWarnings("unchecked")
  static Map<String, Object> report(SearchResponse response) {
    Map<String, Object> ext = (Map<String, Object>) json(response).get("ext");
    return ext == null ? null : (Map<String, Object>) ext.get("title_rerank");
  }

  static List<String> ids(SearchResponse response) {
    return Stream.of(response.getHits().getHits()).map(SearchHit::getId).toList();
  }

  static List<Float> scores(SearchResponse response) {
    return Stream.of(response.getHits().getHits()).map(SearchHit::getScore).toList();
  }
}
