package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.opensearch.OpenSearchException;

class TextFieldsTest {
  private static TextFields read(String config) {
    Map<String, Object> options = Examples.map(config);
    TextFields fields = TextFields.read("type", "tag", options);
    assertTrue(options.isEmpty(), "an option that is read is taken out");
    return fields;
  }

  @Test
  void readsOptions() {
    assertNull(read("{}"));
    assertEquals(new TextFields("t", List.of("passage")), read("{'title_field': 't'}"));
    assertEquals(new TextFields("title", List.of("p")), read("{'passage_field': 'p'}"));
    assertEquals(
        new TextFields("a.t", List.of("p", "q")),
        read("{'title_field': 'a.t', 'passage_field': ['p', 'q']}"));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'title_field': ''}",
        "{'title_field': 'ti*'}",
        "{'title_field': ['title']}",
        "{'passage_field': 5}",
        "{'passage_field': []}",
        "{'passage_field': ['p', 5]}",
        "{'passage_field': ['p', ' ']}",
        "{'passage_field': {'p': 1}}",
      })
  void refusesWhatIsNoField(String config) {
    assertThrows(OpenSearchException.class, () -> read(config));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '~',
      value = {
        "{'t': 'words'}             | t   | words",
        "{'t': ['a', '', 'b']}      | t   | a/b",
        "{'t': ['a', ['b', 'c']]}   | t   | a/b/c",
        "{'t': 1984}                | t   | 1984",
        "{'t': [1984, 'x']}         | t   | 1984/x",
        "{'t': true}                | t   | ~~",
        "{'t': null}                | t   | ~~",
        "{'t': {'u': 'words'}}      | t   | ~~",
        "{}                         | t   | ~~",
        "{'t': ''}                  | t   | ~~",
        "{'t': {'u': 'words'}}      | t.u | words",
        "{'t.u': 'words'}           | t.u | words",
        "{'t': [{'u': 'a'}, {'u': 'b'}, {'v': 'c'}]} | t.u | a/b",
        "{'t': 'words'}             | t.u | ~~",
      })
  void readsTexts(String source, String path, String text) {
    TextFields fields = new TextFields(path, List.of(path));
    Map<String, Object> document = Examples.map(source);
    assertEquals(text.replace('/', '\n'), fields.titleOf(document));
    assertEquals(text.replace('/', '\n'), fields.passageOf(document));
  }

  @Test
  void joinsPassages() {
    TextFields fields = new TextFields("t", List.of("a", "missing", "b.c"));
    assertEquals("1\n2", fields.passageOf(Examples.map("{'b': {'c': '2'}, 'a': '1'}")));
  }
}
