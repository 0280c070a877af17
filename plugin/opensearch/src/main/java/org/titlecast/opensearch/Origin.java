package org.titlecast.opensearch;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import org.opensearch.common.Nullable;
import org.opensearch.common.util.concurrent.ThreadContext;
import org.opensearch.tasks.Task;
import org.opensearch.tasks.TaskResourceTrackingService;

/**
 * Where a search comes from.
 *
 * @param task its task on this node; null where the node does not track tasks
 * @param headers what the sidecar is to see of the client's headers
 */
record Origin(@Nullable Long task, Map<String, String> headers) {
  /** The W3C trace context, which the node hands on only where a plugin asks for it. */
  static final List<String> TRACE_HEADERS = List.of("traceparent", "tracestate");

  private static final Pattern PRINTABLE = Pattern.compile("[\\x20-\\x7e]{1,512}");

  /** Whatever a client wrote into a header must not be able to break the call. */
  Origin {
    Map<String, String> harmless = new LinkedHashMap<>();
    headers.forEach(
        (name, value) -> {
          if (value != null && PRINTABLE.matcher(value).matches()) {
            harmless.put(name, value);
          }
        });
    headers = harmless;
  }

  static Origin of(ThreadContext context) {
    Map<String, String> headers = new LinkedHashMap<>();
    headers.put(Task.X_OPAQUE_ID, context.getHeader(Task.X_OPAQUE_ID));
    TRACE_HEADERS.forEach(name -> headers.put(name, context.getHeader(name)));
    return new Origin(context.getTransient(TaskResourceTrackingService.TASK_ID), headers);
  }
}
