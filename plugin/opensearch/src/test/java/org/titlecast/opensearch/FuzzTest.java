package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.index.query.BoolQueryBuilder;
import org.opensearch.index.query.MatchAllQueryBuilder;
import org.opensearch.index.query.QueryBuilder;
import org.opensearch.index.query.QueryBuilders;
import org.opensearch.search.builder.SearchSourceBuilder;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Placed;

/** Random input, the same in every run: a failure names its seed, and the seed repeats it. */
@Timeout(value = 60, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class FuzzTest {
  private static List<Long> seeds() {
    return new Random(20260101).longs(200).boxed().toList();
  }

  /** Any code points at all: control characters, half surrogates, right-to-left marks, emoji. */
  private static String text(Random random) {
    StringBuilder text = new StringBuilder();
    int length = random.nextInt(8) == 0 ? random.nextInt(20_000) : random.nextInt(12);
    for (int i = 0; i < length; i++) {
      switch (random.nextInt(5)) {
        case 0 -> text.append((char) random.nextInt(Character.MAX_VALUE + 1));
        case 1 -> text.appendCodePoint(random.nextInt(Character.MAX_CODE_POINT + 1));
        case 2 -> text.append(" \t\n\u0000\u202e\u200f\ufeff\"\\*?:()".charAt(random.nextInt(14)));
        default -> text.append((char) ('a' + random.nextInt(26)));
      }
    }
    return text.toString();
  }

  /**
   * A random query; what it adds to {@code expected}, in order, is what the finder is to find.
   *
   * @param counts whether texts below here are to be found
   */
  private static QueryBuilder query(
      Random random, int depth, boolean counts, Set<String> expected) {
    int kind = random.nextInt(depth <= 0 ? 5 : 12);
    if (kind < 5) {
      String text = text(random);
      boolean word = text.codePoints().anyMatch(c -> Character.isLetter(c) || isNumber(c));
      if (counts && !text.isBlank() && (kind < 4 || word)) {
        expected.add(text.strip());
      }
      return switch (kind) {
        case 0 -> QueryBuilders.matchQuery("title", text);
        case 1 -> QueryBuilders.matchPhraseQuery("title", text);
        case 2 -> QueryBuilders.matchPhrasePrefixQuery("title", text);
        case 3 -> QueryBuilders.multiMatchQuery(text, "title", "passage");
        default -> QueryBuilders.simpleQueryStringQuery(text);
      };
    }
    return switch (kind) {
      case 5 -> {
        BoolQueryBuilder bool = QueryBuilders.boolQuery();
        bool.mustNot(query(random, depth - 1, false, expected));
        bool.filter(query(random, depth - 1, false, expected));
        for (int i = random.nextInt(3); i > 0; i--) {
          bool.must(query(random, depth - 1, counts, expected));
        }
        for (int i = random.nextInt(3); i > 0; i--) {
          bool.should(query(random, depth - 1, counts, expected));
        }
        yield bool;
      }
      case 6 ->
          QueryBuilders.disMaxQuery()
              .add(query(random, depth - 1, counts, expected))
              .add(query(random, depth - 1, counts, expected));
      case 7 -> QueryBuilders.constantScoreQuery(query(random, depth - 1, counts, expected));
      case 8 -> QueryBuilders.functionScoreQuery(query(random, depth - 1, counts, expected));
      case 9 ->
          QueryBuilders.boostingQuery(
                  query(random, depth - 1, counts, expected),
                  query(random, depth - 1, false, expected))
              .negativeBoost(0.5f);
      case 10 -> QueryBuilders.termQuery("group", text(random));
      default -> new MatchAllQueryBuilder();
    };
  }

  private static boolean isNumber(int codePoint) {
    return switch (Character.getType(codePoint)) {
      case Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true;
      default -> false;
    };
  }

  @ParameterizedTest
  @MethodSource("seeds")
  void findsTheTextsOfAnyQuery(long seed) {
    Random random = new Random(seed);
    Set<String> expected = new LinkedHashSet<>();
    QueryBuilder query = query(random, 1 + random.nextInt(6), true, expected);
    String found = QueryText.find(new SearchSourceBuilder().query(query), Examples.REGISTRY);
    assertEquals(expected.isEmpty() ? null : String.join(" ", expected), found, "seed " + seed);
  }

  @ParameterizedTest
  @ValueSource(ints = {10, 100, 1000})
  void findsWhatIsNestedDeep(int depth) {
    QueryBuilder query = QueryBuilders.matchQuery("title", "red fox");
    for (int i = 0; i < depth; i++) {
      query =
          i % 2 == 0
              ? QueryBuilders.boolQuery().must(query)
              : QueryBuilders.disMaxQuery().add(query);
    }
    assertEquals(
        "red fox", QueryText.find(new SearchSourceBuilder().query(query), Examples.REGISTRY));
  }

  /** Reads it, and sees that it is either a whole order or refused in one sentence. */
  private static void check(byte[] body, int sent, long seed) {
    Answer answer;
    try {
      answer = SidecarProtocol.read(body, sent);
    } catch (SidecarException e) {
      assertEquals(SidecarException.Failure.UNUSABLE, e.failure(), "seed " + seed);
      assertNotNull(e.getMessage());
      return;
    }
    List<Integer> order = new ArrayList<>(answer.hits().stream().map(Placed::index).toList());
    Collections.sort(order);
    for (int i = 0; i < sent; i++) {
      assertEquals(i, order.get(i), "seed " + seed);
    }
    assertTrue(
        answer.hits().stream().allMatch(hit -> hit.score() > 0 && Float.isFinite(hit.score())),
        "seed " + seed);
  }

  @ParameterizedTest
  @MethodSource("seeds")
  void readsAnyBytes(long seed) {
    Random random = new Random(seed);
    byte[] body = new byte[random.nextInt(2_000)];
    random.nextBytes(body);
    check(body, random.nextInt(5), seed);
    SidecarProtocol.readError(body);
  }

  @ParameterizedTest
  @MethodSource("seeds")
  void readsAnyJson(long seed) {
    Random random = new Random(seed);
    byte[] body = json(random, 5).getBytes(StandardCharsets.UTF_8);
    check(body, random.nextInt(5), seed);
    SidecarProtocol.readError(body);
  }

  private static final List<String> NAMES =
      List.of("hits", "stages", "complete", "model", "index", "score", "name", "scored", "error");

  private static String json(Random random, int depth) {
    return switch (random.nextInt(depth == 0 ? 7 : 10)) {
      case 0 -> "null";
      case 1 -> String.valueOf(random.nextBoolean());
      case 2 -> String.valueOf(random.nextInt());
      case 3 -> String.valueOf(Double.longBitsToDouble(random.nextLong())); // NaN and all
      case 4 -> "1e" + random.nextInt(100_000);
      case 5 -> "\"" + NAMES.get(random.nextInt(NAMES.size())) + "\"";
      case 6 -> String.valueOf(random.nextInt(4));
      case 7 -> {
        List<String> items = new ArrayList<>();
        for (int i = random.nextInt(4); i > 0; i--) {
          items.add(json(random, depth - 1));
        }
        yield items.toString();
      }
      default -> {
        List<String> fields = new ArrayList<>();
        for (int i = random.nextInt(6); i > 0; i--) {
          String name = NAMES.get(random.nextInt(NAMES.size()));
          fields.add("\"" + name + "\": " + json(random, depth - 1));
        }
        yield "{" + String.join(", ", fields) + "}";
      }
    };
  }

  @ParameterizedTest
  @MethodSource("seeds")
  void readsARightAnswerWithAFewWrongBytes(long seed) {
    Random random = new Random(seed);
    byte[] body = FakeSidecar.answer(List.of(2, 0, 1)).getBytes(StandardCharsets.UTF_8);
    check(body, 3, seed);
    for (int i = random.nextInt(4); i >= 0; i--) {
      switch (random.nextInt(3)) {
        case 0 -> body[random.nextInt(body.length)] = (byte) random.nextInt();
        case 1 -> body = Arrays.copyOf(body, 1 + random.nextInt(body.length));
        default -> {
          int at = random.nextInt(body.length);
          byte[] digits = "0123456789eE.-+".getBytes(StandardCharsets.UTF_8);
          body[at] = digits[random.nextInt(digits.length)];
        }
      }
    }
    check(body, 3, seed);
  }

  @ParameterizedTest
  @ValueSource(strings = {"[", "{\"hits\":", "{\"a\":{\"b\":", "{\"hits\":[{\"index\":"})
  void aThousandfoldNestingIsRefused(String part) {
    for (int times : new int[] {1_000, 100_000}) {
      byte[] body = part.repeat(times).getBytes(StandardCharsets.UTF_8);
      check(body, 1, times);
      SidecarProtocol.readError(body);
    }
  }
}
