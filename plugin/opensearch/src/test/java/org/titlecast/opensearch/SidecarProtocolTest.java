package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Call;
import org.titlecast.opensearch.SidecarProtocol.Candidate;
import org.titlecast.opensearch.SidecarProtocol.Placed;
import org.titlecast.opensearch.SidecarProtocol.Stage;

class SidecarProtocolTest {
  /** The examples that the sidecar is tested with, too. */
  private static final Path CONTRACT = Path.of(System.getProperty("titlecast.contract"));

  private static byte[] bytes(String json) {
    return json.replace('\'', '"').getBytes(StandardCharsets.UTF_8);
  }

  private static String text(byte[] bytes) {
    return new String(bytes, StandardCharsets.UTF_8);
  }

  @Test
  void writesTheRequestOfTheContract() throws IOException {
    List<Candidate> hits =
        List.of(
            new Candidate(
                "bisect",
                "bisect: Bisection algorithms",
                "This module provides support for maintaining a list in sorted order without having"
                    + " to sort the list after each insertion.",
                9.5f),
            new Candidate(
                "heapq.merge",
                "heapq.merge: Merge multiple sorted inputs into a single sorted output",
                "Similar to sorted(itertools.chain(*iterables)) but returns a generator.",
                9.1f),
            new Candidate("untitled", "", "", Float.NaN));
    byte[] written = SidecarProtocol.write(new Call("merge sorted lists", hits, 1), 1000);
    assertEquals(
        Examples.parse(Files.readString(CONTRACT.resolve("request.json"))),
        Examples.parse(text(written)));
  }

  @ParameterizedTest
  @ValueSource(strings = {"response.json", "brief.json"})
  void readsTheResponseOfTheContract(String name) throws IOException {
    Answer answer = SidecarProtocol.read(Files.readAllBytes(CONTRACT.resolve(name)), 3);
    assertEquals(
        new Answer(
            List.of(new Placed(1, 2.71f), new Placed(0, 1.4f), new Placed(2, 1.1f)),
            List.of(new Stage("title", 3, 1.8, 0, ""), new Stage("passage", 1, 2.4, 0, "")),
            true,
            "titlecast-0.1"),
        answer);
  }

  @Test
  void writesAnyText() throws IOException {
    String odd = "\"quoted\" \\ \n\t\u0000 é 漢 \ud83d\ude00";
    byte[] written =
        SidecarProtocol.write(new Call(odd, List.of(new Candidate(odd, odd, odd, 1f)), 20), 5);
    Map<String, Object> read;
    try (var parser = Examples.parser(text(written))) {
      read = parser.map();
    }
    assertEquals(odd, read.get("query"));
    assertEquals(
        List.of(Map.of("id", odd, "title", odd, "passage", odd, "score", 1.0)), read.get("hits"));
  }

  @Test
  void readsAnswersOfLaterVersions() {
    Answer answer =
        SidecarProtocol.read(
            bytes(
                "{'hits': [{'index': 0, 'score': 2, 'new': {}}], 'stages': [{'name': 'title',"
                    + " 'scored': 1, 'milliseconds': 2, 'new': 1}], 'complete': false,"
                    + " 'model': 'm', 'new': [1]}"),
            1);
    assertEquals(List.of(new Stage("title", 1, 2, 0, "")), answer.stages());
    assertEquals(List.of(new Placed(0, 2f)), answer.hits());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "null",
        "[]",
        "{}",
        "not json",
        "{'hits': [",
        "<html></html>",
        "{'hits': [], 'stages': [], 'complete': true}",
        "{'hits': [{'index': 0, 'score': 2}, {'index': 1}], 'stages': [], 'complete': true,"
            + " 'model': 'm'}",
        "{'hits': [{'index': 0, 'score': 2}, {'index': 1, 'score': null}], 'stages': [],"
            + " 'complete': true, 'model': 'm'}",
        "{'hits': [{'index': 0, 'score': 2}, {'index': 1, 'score': 1}], 'stages': [1],"
            + " 'complete': true, 'model': 'm'}",
        "{'hits': [{'index': 0, 'score': 2}, {'index': 1, 'score': 1}], 'stages': [],"
            + " 'complete': true, 'model': 'm'} {}",
      })
  void refusesWhatIsNoAnswer(String body) {
    SidecarException refused =
        assertThrows(SidecarException.class, () -> SidecarProtocol.read(bytes(body), 2));
    assertTrue(refused.getMessage().contains("same version"), refused.getMessage());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'index': 0, 'score': 2}", // one is missing
        "{'index': 0, 'score': 2}, {'index': 0, 'score': 1}",
        "{'index': 0, 'score': 2}, {'index': 2, 'score': 1}",
        "{'index': 0, 'score': 2}, {'index': -1, 'score': 1}",
        "{'index': 0, 'score': 2}, {'index': 1.5, 'score': 1}",
        "{'index': 0, 'score': 2}, {'index': 1, 'score': 1}, {'index': 1, 'score': 1}",
        "{'index': 0, 'score': 1}, {'index': 1, 'score': 2}", // ascending
        "{'index': 0, 'score': 2}, {'index': 1, 'score': 0}",
        "{'index': 0, 'score': 2}, {'index': 1, 'score': 1e-60}", // 0 as a float
        "{'index': 0, 'score': 2}, {'index': 1, 'score': -1}",
        "{'index': 0, 'score': 2}, {'index': 1, 'score': NaN}",
        "{'index': 0, 'score': 2}, {'index': 1, 'score': 'NaN'}",
        "{'index': 0, 'score': Infinity}, {'index': 1, 'score': 1}",
        "{'index': 0, 'score': 1e60}, {'index': 1, 'score': 1}", // infinite as a float
      })
  void refusesAnImpossibleOrder(String hits) {
    byte[] body = bytes(FakeSidecar.body(List.of(hits)));
    assertThrows(SidecarException.class, () -> SidecarProtocol.read(body, 2));
  }

  @Test
  void takesEqualScores() {
    byte[] body = bytes(FakeSidecar.body(List.of("{'index':1,'score':1},{'index':0,'score':1}")));
    assertEquals(
        List.of(new Placed(1, 1f), new Placed(0, 1f)), SidecarProtocol.read(body, 2).hits());
  }

  @Test
  void readsAnErrorsSentence() {
    assertEquals("Too many hits.", SidecarProtocol.readError(bytes("{'error': 'Too many hits.'}")));
    assertNull(SidecarProtocol.readError(bytes("{'error': ' '}")));
    assertNull(SidecarProtocol.readError(bytes("{'error': 5}")));
    assertNull(SidecarProtocol.readError(bytes("<html>")));
    assertNull(SidecarProtocol.readError(bytes("")));
    assertEquals(
        301, SidecarProtocol.readError(bytes("{'error':'" + "x".repeat(999) + "'}")).length());
  }
}
