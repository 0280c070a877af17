package org.titlecast.opensearch;

import static org.opensearch.core.xcontent.ConstructingObjectParser.constructorArg;
import static org.opensearch.core.xcontent.ConstructingObjectParser.optionalConstructorArg;

import java.io.IOException;
import java.util.List;
import java.util.Map;
import org.opensearch.common.Nullable;
import org.opensearch.common.xcontent.LoggingDeprecationHandler;
import org.opensearch.common.xcontent.json.JsonXContent;
import org.opensearch.core.ParseField;
import org.opensearch.core.common.bytes.BytesReference;
import org.opensearch.core.xcontent.ConstructingObjectParser;
import org.opensearch.core.xcontent.NamedXContentRegistry;
import org.opensearch.core.xcontent.ObjectParser.ValueType;
import org.opensearch.core.xcontent.XContentBuilder;
import org.opensearch.core.xcontent.XContentParser;

/**
 * The wire contract of the sidecar's {@code POST /rerank}.
 *
 * <p>The sidecar's side of it is {@code plugin/sidecar/protocol.py}; the JSON files in {@code
 * tests/contract} test both.
 */
final class SidecarProtocol {
  /** The body's {@code deadline_ms} once more. */
  static final String DEADLINE_HEADER = "Titlecast-Deadline-Ms";

  private SidecarProtocol() {}

  /**
   * One hit of the window.
   *
   * @param score the engine's score; NaN where it gave none
   */
  record Candidate(String id, String title, String passage, float score) {}

  /**
   * One search, less the time that is left for it.
   *
   * @param passageDepth how many of the best hits have their passages scored; 0: titles only
   */
  record Call(String query, List<Candidate> hits, int passageDepth) {}

  /** The place of one hit: its position among the hits that were sent, and its new score. */
  record Placed(int index, float score) {}

  /** What one stage of the sidecar did. */
  record Stage(String name, int scored, double milliseconds, int truncated, String skipped) {}

  /** The new order. Every hit that was sent is in it once, and the scores descend. */
  record Answer(List<Placed> hits, List<Stage> stages, boolean complete, String model) {}

  private static final ConstructingObjectParser<Placed, Void> PLACED =
      new ConstructingObjectParser<>(
          "hit", true, args -> new Placed((Integer) args[0], (Float) args[1]));

  private static final ConstructingObjectParser<Stage, Void> STAGE =
      new ConstructingObjectParser<>(
          "stage",
          true,
          args ->
              new Stage(
                  (String) args[0],
                  (Integer) args[1],
                  (Double) args[2],
                  args[3] == null ? 0 : (Integer) args[3],
                  args[4] == null ? "" : (String) args[4]));

  @SuppressWarnings("unchecked")
  private static final ConstructingObjectParser<Answer, Void> ANSWER =
      new ConstructingObjectParser<>(
          "answer",
          true,
          args ->
              new Answer(
                  (List<Placed>) args[0],
                  (List<Stage>) args[1],
                  (Boolean) args[2],
                  (String) args[3]));

  static {
    // Neither "1" nor 1.5 is an index, and "NaN" is no score: nothing is coerced.
    PLACED.declareField(
        constructorArg(), parser -> parser.intValue(false), new ParseField("index"), ValueType.INT);
    PLACED.declareField(
        constructorArg(),
        parser -> parser.floatValue(false),
        new ParseField("score"),
        ValueType.FLOAT);
    STAGE.declareString(constructorArg(), new ParseField("name"));
    STAGE.declareInt(constructorArg(), new ParseField("scored"));
    STAGE.declareDouble(constructorArg(), new ParseField("milliseconds"));
    STAGE.declareInt(optionalConstructorArg(), new ParseField("truncated"));
    STAGE.declareString(optionalConstructorArg(), new ParseField("skipped"));
    ANSWER.declareObjectArray(constructorArg(), PLACED, new ParseField("hits"));
    ANSWER.declareObjectArray(constructorArg(), STAGE, new ParseField("stages"));
    ANSWER.declareBoolean(constructorArg(), new ParseField("complete"));
    ANSWER.declareString(constructorArg(), new ParseField("model"));
  }

  /** The request's body. */
  static byte[] write(Call call, long deadlineMillis) throws IOException {
    try (XContentBuilder json = JsonXContent.contentBuilder()) {
      json.startObject();
      json.field("query", call.query());
      json.startArray("hits");
      for (Candidate hit : call.hits()) {
        json.startObject();
        json.field("id", hit.id());
        json.field("title", hit.title());
        json.field("passage", hit.passage());
        if (Float.isFinite(hit.score())) {
          json.field("score", hit.score());
        } else {
          json.nullField("score");
        }
        json.endObject();
      }
      json.endArray();
      json.field("passage_depth", call.passageDepth());
      json.field("deadline_ms", deadlineMillis);
      json.field("brief", true); // of each hit nothing else is read here than its place and score
      json.endObject();
      return BytesReference.toBytes(BytesReference.bytes(json));
    }
  }

  /**
   * Reads an answer and checks it against the number of hits that were sent.
   *
   * @throws SidecarException if it does not keep to the contract
   */
  static Answer read(byte[] body, int sent) {
    Answer answer;
    try (XContentParser parser = parser(body)) {
      answer = ANSWER.parse(parser, null);
      if (parser.nextToken() != null) {
        throw nonsense("something follows it", null);
      }
    } catch (IOException | RuntimeException e) {
      throw e instanceof SidecarException known ? known : nonsense("it is not the JSON agreed", e);
    }
    if (answer.hits().size() != sent) {
      throw nonsense("it ranks " + answer.hits().size() + " hits of " + sent, null);
    }
    boolean[] seen = new boolean[sent];
    float above = Float.MAX_VALUE;
    for (Placed hit : answer.hits()) {
      if (hit.index() < 0 || hit.index() >= sent || seen[hit.index()]) {
        throw nonsense("hit " + hit.index() + " is unknown or occurs twice", null);
      }
      // Written so that NaN fails too.
      if (!(hit.score() > 0 && hit.score() <= above)) {
        throw nonsense("its scores are not positive, finite and descending", null);
      }
      seen[hit.index()] = true;
      above = hit.score();
    }
    return answer;
  }

  /** The sentence in an error's body, or null where there is none. */
  @Nullable
  static String readError(byte[] body) {
    try (XContentParser parser = parser(body)) {
      Map<String, Object> error = parser.map();
      if (error.get("error") instanceof String sentence && !sentence.isBlank()) {
        return sentence.length() <= 300 ? sentence : sentence.substring(0, 300) + "…";
      }
    } catch (IOException | RuntimeException e) {
      // A proxy's HTML page, say: the status has to do.
    }
    return null;
  }

  private static XContentParser parser(byte[] body) throws IOException {
    return JsonXContent.jsonXContent.createParser(
        NamedXContentRegistry.EMPTY, LoggingDeprecationHandler.INSTANCE, body);
  }

  private static SidecarException nonsense(String why, @Nullable Throwable cause) {
    return new SidecarException(
        SidecarException.Failure.UNUSABLE,
        "The sidecar's answer is unusable ("
            + why
            + "): check that plugin and sidecar are of the same version",
        cause);
  }
}
