package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.common.io.stream.BytesStreamOutput;
import org.opensearch.core.common.ParsingException;
import org.opensearch.core.common.io.stream.Writeable;
import org.opensearch.search.SearchExtBuilder;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Stage;

class TitleRerankExtTest {
  private static <T extends SearchExtBuilder> T copy(T ext, Writeable.Reader<T> reader)
      throws IOException {
    try (BytesStreamOutput out = new BytesStreamOutput()) {
      ext.writeTo(out);
      return reader.read(out.bytes().streamInput());
    }
  }

  @Test
  void survivesJsonAndTheWire() throws IOException {
    for (TitleRerankExt ext :
        List.of(new TitleRerankExt("fox"), new TitleRerankExt((String) null))) {
      assertEquals(ext, copy(ext, TitleRerankExt::new));
      assertEquals(ext.hashCode(), copy(ext, TitleRerankExt::new).hashCode());
      String written = Examples.source("{}").ext(List.of(ext)).toString();
      assertEquals(ext, TitleRerankExt.in(Examples.source(written)));
    }
    assertNotEquals(new TitleRerankExt("fox"), new TitleRerankExt("dog"));
    assertNull(TitleRerankExt.in(Examples.source("{}")));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "'fox'",
        "['fox']",
        "5",
        "{'query': 'fox'}",
        "{'query_text': 5}",
        "{'query_text': ['fox']}",
        "{'query_text': {'a': 1}}",
        "{'query_text': 'fox', 'window': 5}",
      })
  void namesTheRemedy(String ext) {
    ParsingException wrong =
        assertThrows(
            ParsingException.class,
            () -> Examples.source("{'ext': {'title_rerank': " + ext + "}}"));
    assertTrue(wrong.getMessage().contains("\"query_text\": "), wrong.getMessage());
  }

  @Test
  void aReportIsNoPartOfARequest() {
    ParsingException wrong =
        assertThrows(
            ParsingException.class,
            () -> Examples.source("{'ext': {'title_rerank_report': {'query_text': 'x'}}}"));
    assertTrue(wrong.getMessage().contains("[ext.title_rerank]"), wrong.getMessage());
  }

  @Test
  void reportsSurviveTheWire() throws IOException {
    TitleRerankReport applied =
        TitleRerankReport.applied(
            new Answer(List.of(), List.of(new Stage("title", 3, 1.25, 1, "late")), false, "m"),
            2,
            9);
    TitleRerankReport not = TitleRerankReport.notApplied("It is down.");
    for (TitleRerankReport report : List.of(applied, not)) {
      assertEquals(report, copy(report, TitleRerankReport::new));
      assertEquals(report.hashCode(), copy(report, TitleRerankReport::new).hashCode());
    }
    assertNotEquals(applied, not);
    assertEquals(
        Examples.map(
            "{'title_rerank': {'applied': true, 'stages': [{'name': 'title', 'scored': 3,"
                + " 'milliseconds': 1.25, 'truncated': 1, 'skipped': 'late'}],"
                + " 'complete': false, 'model': 'm', 'cut': 2, 'took_ms': 9}}"),
        Examples.json(applied));
    assertEquals(
        Examples.map("{'title_rerank': {'applied': false, 'reason': 'It is down.'}}"),
        Examples.json(not));
  }
}
