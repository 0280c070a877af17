package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.titlecast.opensearch.SidecarProtocol.Call;
import org.titlecast.opensearch.SidecarProtocol.Candidate;

class FittingTest {
  private static final int SIDECARS_BYTES = 16 << 20; // plugin/sidecar/settings.py

  private static Candidate hit(String title, String passage) {
    return new Candidate("id", title, passage, 1.2345678e-20f);
  }

  private static int written(Fitting fitting) throws IOException {
    return SidecarProtocol.write(new Call(fitting.query(), fitting.hits(), 20), 500).length;
  }

  @Test
  void leavesAloneWhatFits() {
    List<Candidate> hits =
        List.of(
            hit("t".repeat(Fitting.TITLE_CHARACTERS), "p".repeat(Fitting.PASSAGE_CHARACTERS)),
            hit("", ""));
    String query = "q".repeat(Fitting.QUERY_CHARACTERS);
    assertEquals(new Fitting(query, hits, 0), Fitting.of(query, hits));
  }

  @Test
  void cutsWhatIsLongerByItself() {
    Fitting fitting =
        Fitting.of(
            "q".repeat(10_001),
            List.of(hit("t".repeat(10_001), "p"), hit("t", "p".repeat(32_001)), hit("t", "p")));
    assertEquals(
        List.of(hit("t".repeat(10_000), "p"), hit("t", "p".repeat(32_000)), hit("t", "p")),
        fitting.hits());
    assertEquals("q".repeat(10_000), fitting.query());
    assertEquals(3, fitting.cut());
  }

  @Test
  void splitsNoCodePoint() {
    Fitting fitting =
        Fitting.of(
            "q" + "😀".repeat(5_000), List.of(hit("t" + "😀".repeat(5_000), "😀".repeat(16_001))));
    assertEquals(List.of(hit("t" + "😀".repeat(4_999), "😀".repeat(16_000))), fitting.hits());
    assertEquals("q" + "😀".repeat(4_999), fitting.query());
    assertEquals(3, fitting.cut());
  }

  /** One, two, three, four and six bytes a character. */
  @ParameterizedTest
  @ValueSource(strings = {"p", "\"", "\n", "é", "漢", "😀", "\u0001", "\u001f"})
  void allFitIntoOneRequest(String character) throws IOException {
    for (int count : new int[] {600, 1_000}) {
      Candidate hit =
          hit(
              character.repeat(20_000 / character.length()),
              character.repeat(100_000 / character.length()));
      Fitting fitting = Fitting.of("\u0001".repeat(10_000), Collections.nCopies(count, hit));
      int bytes = written(fitting);
      assertTrue(bytes < SIDECARS_BYTES, bytes + " bytes");
      assertTrue(bytes > SIDECARS_BYTES / 4, "not much is left out for nothing: " + bytes);
      assertTrue(fitting.cut() >= count);
    }
  }

  @Test
  void theShortOnesKeepTheirEnds() throws IOException {
    List<Candidate> hits =
        new ArrayList<>(Collections.nCopies(90, hit("T", "\u0001".repeat(32_000))));
    hits.addAll(Collections.nCopies(90, hit("Title", "word ".repeat(6_400))));
    Fitting fitting = Fitting.of("q", hits);
    assertEquals(90, fitting.cut());
    assertEquals(hits.subList(90, 180), fitting.hits().subList(90, 180));
    assertEquals("T", fitting.hits().get(0).title());
    assertTrue(written(fitting) < SIDECARS_BYTES);
  }
}
