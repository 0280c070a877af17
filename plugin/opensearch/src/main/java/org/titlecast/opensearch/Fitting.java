package org.titlecast.opensearch;

import java.util.List;
import org.titlecast.opensearch.SidecarProtocol.Candidate;

/**
 * A search's query and a window's hits, their texts cut to what a sidecar takes, so that one book
 * among them does not cost a search its reranking. The models read no more than the beginning of it
 * in any case: 256 tokens of a query, four windows of 256 tokens of a passage.
 *
 * @param hits as many as there were, in their order
 * @param cut texts of which the end was left out
 */
record Fitting(String query, List<Candidate> hits, int cut) {
  static final int QUERY_CHARACTERS = 10_000; // by default a sidecar refuses more,
  static final int TITLE_CHARACTERS = 10_000; // and of a title 100,000,
  static final int PASSAGE_CHARACTERS = 32_000; // and of a passage 1,000,000
  static final int ALL_BYTES = 15 << 20; // and in all 16 MiB, of which the query takes some
  private static final int FRAME_BYTES = 80; // of one hit: names, quotes, its score
  private static final int MOST_BYTES = 6; // of one char in JSON: backslash, u, four digits

  /** Cuts what is too long, between two code points. */
  static Fitting of(String query, List<Candidate> hits) {
    String asked = start(query, QUERY_CHARACTERS, Long.MAX_VALUE);
    List<Candidate> fitting = hits.stream().map(hit -> cut(hit, Long.MAX_VALUE)).toList();
    if (fitting.stream().mapToLong(Fitting::bytes).sum() > ALL_BYTES) {
      long share = ALL_BYTES / hits.size(); // what others leave of theirs stays free
      fitting = fitting.stream().map(hit -> cut(hit, share)).toList();
    }
    int cut = asked.length() < query.length() ? 1 : 0;
    for (int i = 0; i < hits.size(); i++) {
      cut += fitting.get(i).title().length() < hits.get(i).title().length() ? 1 : 0;
      cut += fitting.get(i).passage().length() < hits.get(i).passage().length() ? 1 : 0;
    }
    return new Fitting(asked, fitting, cut);
  }

  private static Candidate cut(Candidate hit, long bytes) {
    String title = start(hit.title(), TITLE_CHARACTERS, bytes - bytes(hit, "", ""));
    String passage = start(hit.passage(), PASSAGE_CHARACTERS, bytes - bytes(hit, title, ""));
    return new Candidate(hit.id(), title, passage, hit.score());
  }

  /** The longest start of a text that has no more characters, and no more bytes in JSON. */
  private static String start(String text, int characters, long bytes) {
    int end = Math.min(text.length(), characters);
    if ((long) MOST_BYTES * end > bytes) {
      long left = bytes;
      int fits = 0;
      while (fits < end && (left -= bytes(text.charAt(fits))) >= 0) {
        fits++;
      }
      end = fits;
    }
    boolean splits =
        end > 0
            && end < text.length()
            && Character.isSurrogatePair(text.charAt(end - 1), text.charAt(end));
    return text.substring(0, splits ? end - 1 : end);
  }

  private static long bytes(Candidate hit) {
    return bytes(hit, hit.title(), hit.passage());
  }

  private static long bytes(Candidate hit, String title, String passage) {
    return FRAME_BYTES + bytes(hit.id()) + bytes(title) + bytes(passage);
  }

  private static long bytes(String text) {
    long bytes = 0;
    for (int i = 0; i < text.length(); i++) {
      bytes += bytes(text.charAt(i));
    }
    return bytes;
  }

  /** What a char takes in JSON, or more: of a surrogate pair's four bytes each half has three. */
  private static int bytes(char character) {
    if (character < ' ') {
      return MOST_BYTES;
    }
    if (character < 0x80) {
      return character == '"' || character == '\\' ? 2 : 1;
    }
    return character < 0x800 ? 2 : 3;
  }
}
