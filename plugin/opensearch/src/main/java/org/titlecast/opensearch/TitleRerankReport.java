package org.titlecast.opensearch;

import java.io.IOException;
import java.util.List;
import java.util.Objects;
import org.opensearch.common.Nullable;
import org.opensearch.core.common.ParsingException;
import org.opensearch.core.common.io.stream.StreamInput;
import org.opensearch.core.common.io.stream.StreamOutput;
import org.opensearch.core.xcontent.XContentBuilder;
import org.opensearch.core.xcontent.XContentParser;
import org.opensearch.search.SearchExtBuilder;
import org.titlecast.opensearch.SidecarProtocol.Answer;
import org.titlecast.opensearch.SidecarProtocol.Stage;

/**
 * What a response says in {@code ext.title_rerank}: the stages that ran, or why none did.
 *
 * <p>It is not the class of the request's {@code ext.title_rerank}, because nodes send each other
 * both kinds under a name, and one name has one reader.
 */
public final class TitleRerankReport extends SearchExtBuilder {
  /** The name between nodes; in the response's JSON it is {@link TitleRerankExt#NAME}. */
  public static final String NAME = "title_rerank_report";

  @Nullable private final String reason; // null: reranked
  private final List<Stage> stages;
  private final boolean complete;
  private final String model;
  private final int cut;
  private final long tookMillis;

  private TitleRerankReport(
      @Nullable String reason,
      List<Stage> stages,
      boolean complete,
      String model,
      int cut,
      long tookMillis) {
    this.reason = reason;
    this.stages = stages;
    this.complete = complete;
    this.model = model;
    this.cut = cut;
    this.tookMillis = tookMillis;
  }

  /** Reads what {@link #writeTo} wrote. */
  public TitleRerankReport(StreamInput in) throws IOException {
    this(
        in.readOptionalString(),
        in.readList(
            stage ->
                new Stage(
                    stage.readString(),
                    stage.readVInt(),
                    stage.readDouble(),
                    stage.readVInt(),
                    stage.readString())),
        in.readBoolean(),
        in.readString(),
        in.readVInt(),
        in.readVLong());
  }

  /**
   * The hits are in the sidecar's order.
   *
   * @param cut texts that were not sent to their end
   */
  static TitleRerankReport applied(Answer answer, int cut, long tookMillis) {
    return new TitleRerankReport(
        null, answer.stages(), answer.complete(), answer.model(), cut, tookMillis);
  }

  /** The hits are in the engine's order, because of this. */
  static TitleRerankReport notApplied(String reason) {
    return new TitleRerankReport(reason, List.of(), false, "", 0, 0);
  }

  /** Requests have no such section; this says what was meant. */
  static TitleRerankReport parse(XContentParser parser) {
    throw new ParsingException(
        parser.getTokenLocation(),
        "[ext." + NAME + "] is no part of a request: write [ext." + TitleRerankExt.NAME + "]");
  }

  @Override
  public String getWriteableName() {
    return NAME;
  }

  @Override
  public void writeTo(StreamOutput out) throws IOException {
    out.writeOptionalString(reason);
    out.writeCollection(
        stages,
        (stream, stage) -> {
          stream.writeString(stage.name());
          stream.writeVInt(stage.scored());
          stream.writeDouble(stage.milliseconds());
          stream.writeVInt(stage.truncated());
          stream.writeString(stage.skipped());
        });
    out.writeBoolean(complete);
    out.writeString(model);
    out.writeVInt(cut);
    out.writeVLong(tookMillis);
  }

  @Override
  public XContentBuilder toXContent(XContentBuilder builder, Params params) throws IOException {
    builder.startObject(TitleRerankExt.NAME);
    builder.field("applied", reason == null);
    if (reason != null) {
      return builder.field("reason", reason).endObject();
    }
    builder.startArray("stages");
    for (Stage stage : stages) {
      builder.startObject();
      builder.field("name", stage.name());
      builder.field("scored", stage.scored());
      builder.field("milliseconds", stage.milliseconds());
      builder.field("truncated", stage.truncated());
      builder.field("skipped", stage.skipped());
      builder.endObject();
    }
    builder.endArray();
    builder.field("complete", complete);
    builder.field("model", model);
    builder.field("cut", cut);
    builder.field("took_ms", tookMillis);
    return builder.endObject();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof TitleRerankReport report
        && Objects.equals(reason, report.reason)
        && stages.equals(report.stages)
        && complete == report.complete
        && model.equals(report.model)
        && cut == report.cut
        && tookMillis == report.tookMillis;
  }

  @Override
  public int hashCode() {
    return Objects.hash(reason, stages, complete, model, cut, tookMillis);
  }
}
