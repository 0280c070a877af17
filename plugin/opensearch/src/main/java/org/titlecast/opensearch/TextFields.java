package org.titlecast.opensearch;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.opensearch.common.Nullable;
import org.opensearch.common.xcontent.support.XContentMapValues;
import org.opensearch.ingest.ConfigurationUtils;

/**
 * The fields of a document that are reranked.
 *
 * @param title path of the title; dots lead into objects
 * @param passages paths whose texts, one per line, make up the passage
 */
record TextFields(String title, List<String> passages) {
  static final String TITLE_FIELD = "title_field";
  static final String PASSAGE_FIELD = "passage_field";
  static final TextFields DEFAULT = new TextFields("title", List.of("passage"));

  /**
   * Reads both options off a processor's configuration; one that is left out has its default.
   *
   * @return null if the configuration has neither
   */
  @Nullable
  static TextFields read(String type, String tag, Map<String, Object> config) {
    boolean given = config.containsKey(TITLE_FIELD) || config.containsKey(PASSAGE_FIELD);
    String title =
        ConfigurationUtils.readStringProperty(type, tag, config, TITLE_FIELD, DEFAULT.title());
    Object passage = ConfigurationUtils.readOptionalObject(config, PASSAGE_FIELD);
    List<String> passages = new ArrayList<>();
    for (Object field :
        passage instanceof List<?> list
            ? list
            : List.of(passage == null ? DEFAULT.passages().get(0) : passage)) {
      if (!(field instanceof String name)) {
        throw ConfigurationUtils.newConfigurationException(
            type, tag, PASSAGE_FIELD, "give a field's name or a list of names");
      }
      passages.add(name);
    }
    check(type, tag, TITLE_FIELD, title);
    if (passages.isEmpty()) {
      throw ConfigurationUtils.newConfigurationException(
          type,
          tag,
          PASSAGE_FIELD,
          "the list is empty: name a field (to score titles only, set passage_depth to 0)");
    }
    passages.forEach(name -> check(type, tag, PASSAGE_FIELD, name));
    return given ? new TextFields(title, List.copyOf(passages)) : null;
  }

  private static void check(String type, String tag, String property, String field) {
    if (field.isBlank() || field.contains("*")) {
      throw ConfigurationUtils.newConfigurationException(
          type, tag, property, "[" + field + "] is not the full name of one field");
    }
  }

  /** All paths, the title's first. */
  List<String> paths() {
    return Stream.concat(Stream.of(title), passages.stream()).distinct().toList();
  }

  /** The title in a document's source; empty if there is none. */
  String titleOf(Map<String, Object> source) {
    return textAt(title, source);
  }

  /** The passage in a document's source; empty if there is none. */
  String passageOf(Map<String, Object> source) {
    return joined(passages.stream().map(path -> textAt(path, source)));
  }

  private static String textAt(String path, Map<String, Object> source) {
    return text(XContentMapValues.extractValue(path, source));
  }

  private static String text(@Nullable Object value) {
    return switch (value) {
      case String string -> string;
      case Number number -> number.toString();
      case List<?> values -> joined(values.stream().map(TextFields::text));
      case null, default -> ""; // objects and booleans are nothing that one could read
    };
  }

  private static String joined(Stream<String> texts) {
    return String.join("\n", texts.filter(text -> !text.isBlank()).toList());
  }
}
