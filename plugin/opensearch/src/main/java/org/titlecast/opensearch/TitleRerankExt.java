package org.titlecast.opensearch;

import java.io.IOException;
import java.util.Objects;
import org.opensearch.common.Nullable;
import org.opensearch.core.common.ParsingException;
import org.opensearch.core.common.io.stream.StreamInput;
import org.opensearch.core.common.io.stream.StreamOutput;
import org.opensearch.core.xcontent.XContentBuilder;
import org.opensearch.core.xcontent.XContentParser;
import org.opensearch.core.xcontent.XContentParser.Token;
import org.opensearch.search.SearchExtBuilder;
import org.opensearch.search.builder.SearchSourceBuilder;

/**
 * What a search may say in {@code ext.title_rerank}: {@code query_text}, the words to rank by,
 * where they are not in the query itself.
 */
public final class TitleRerankExt extends SearchExtBuilder {
  /** The name in {@code ext}, in requests and in responses. */
  public static final String NAME = "title_rerank";

  private static final String QUERY_TEXT = "query_text";

  @Nullable private final String queryText;

  /**
   * @param queryText a blank one counts as none
   */
  public TitleRerankExt(@Nullable String queryText) {
    this.queryText = queryText == null || queryText.isBlank() ? null : queryText.strip();
  }

  /** Reads what {@link #writeTo} wrote. */
  public TitleRerankExt(StreamInput in) throws IOException {
    this(in.readOptionalString());
  }

  /** The one of a search, or null. */
  @Nullable
  static TitleRerankExt in(SearchSourceBuilder source) {
    for (SearchExtBuilder ext : source.ext()) {
      if (ext instanceof TitleRerankExt ours) {
        return ours;
      }
    }
    return null;
  }

  /** Parses the object; the parser stands at its start, and then at its end. */
  static TitleRerankExt parse(XContentParser parser) throws IOException {
    if (parser.currentToken() != Token.START_OBJECT) {
      throw wrong(parser, "is not an object");
    }
    String text = null;
    while (parser.nextToken() != Token.END_OBJECT) {
      String field = parser.currentName();
      Token value = parser.nextToken();
      if (!QUERY_TEXT.equals(field)) {
        throw wrong(parser, "has an unknown field [" + field + "]");
      }
      if (value != Token.VALUE_STRING && value != Token.VALUE_NULL) {
        throw wrong(parser, "has a [query_text] that is not a string");
      }
      text = parser.textOrNull();
    }
    return new TitleRerankExt(text);
  }

  private static ParsingException wrong(XContentParser parser, String what) {
    return new ParsingException(
        parser.getTokenLocation(),
        "[ext." + NAME + "] " + what + ": write {\"query_text\": \"the words to rank by\"}");
  }

  /** The words to rank by, or null. */
  @Nullable
  public String queryText() {
    return queryText;
  }

  @Override
  public String getWriteableName() {
    return NAME;
  }

  @Override
  public void writeTo(StreamOutput out) throws IOException {
    out.writeOptionalString(queryText);
  }

  @Override
  public XContentBuilder toXContent(XContentBuilder builder, Params params) throws IOException {
    builder.startObject(NAME);
    if (queryText != null) {
      builder.field(QUERY_TEXT, queryText);
    }
    return builder.endObject();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof TitleRerankExt ext && Objects.equals(queryText, ext.queryText);
  }

  @Override
  public int hashCode() {
    return Objects.hash(NAME, queryText);
  }
}
