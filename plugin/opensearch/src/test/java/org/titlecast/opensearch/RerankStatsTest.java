package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.net.InetAddress;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.opensearch.Version;
import org.opensearch.cluster.ClusterName;
import org.opensearch.cluster.node.DiscoveryNode;
import org.opensearch.common.io.stream.BytesStreamOutput;
import org.opensearch.common.settings.Settings;
import org.opensearch.core.common.transport.TransportAddress;
import org.titlecast.opensearch.RerankStats.Times;
import org.titlecast.opensearch.SidecarException.Failure;

class RerankStatsTest {
  private static final long MILLISECOND = TimeUnit.MILLISECONDS.toNanos(1);

  private final RerankStats stats = new RerankStats();

  @SuppressWarnings("unchecked")
  private static Map<String, Object> object(Map<String, Object> map, String name) {
    return (Map<String, Object>) map.get(name);
  }

  @Test
  void countsWhatBecameOfSearches() {
    stats.reranked(true, new Times(MILLISECOND / 4, MILLISECOND / 2, MILLISECOND / 4));
    stats.reranked(false, new Times(MILLISECOND, 4 * MILLISECOND, 2 * MILLISECOND));
    stats.failed(Failure.TIMEOUT, false, 9_000 * MILLISECOND);
    stats.failed(Failure.BUSY, true, 1);
    stats.withoutText();
    Map<String, Object> map = stats.toMap();
    assertEquals(4L, map.get("calls"));
    assertEquals(2L, map.get("reranked"));
    assertEquals(1L, map.get("incomplete"));
    assertEquals(2L, map.get("engine_order"));
    assertEquals(1L, map.get("without_text"));
    assertEquals(1L, map.get("errors"));
    Map<String, Object> failures = object(map, "failures");
    assertEquals(Failure.values().length, failures.size());
    assertEquals(1L, failures.get("timeout"));
    assertEquals(1L, failures.get("busy"));
    assertEquals(0L, failures.get("in_flight_bound"));
    Map<String, Object> time = object(map, "time");
    assertEquals(9_008L, time.get("total_ms"));
    assertEquals(9_000L, time.get("max_ms"));
    assertEquals(
        Map.of("reading", 1.25, "calling", 4.5, "ordering", 2.25), time.get("reranked_ms"));
    List<?> histogram = (List<?>) time.get("histogram");
    assertEquals(Map.of("to_ms", 1L, "count", 2L), histogram.get(0));
    assertEquals(Map.of("to_ms", 10L, "count", 1L), histogram.get(3));
    assertEquals(Map.of("count", 1L), histogram.get(histogram.size() - 1));
  }

  @Test
  void travelsBetweenNodes() throws Exception {
    try (SidecarClient client =
        new SidecarClient(SidecarSettings.of(Settings.EMPTY, Path.of(".")))) {
      stats.reranked(true, new Times(0, MILLISECOND, 0));
      DiscoveryNode node =
          new DiscoveryNode(
              "id", new TransportAddress(InetAddress.getLoopbackAddress(), 9300), Version.CURRENT);
      StatsAction.Response sent =
          new StatsAction.Response(
              new ClusterName("c"),
              List.of(
                  new StatsAction.NodeResponse(node, new StatsAction.Node(stats, client).toMap())),
              List.of());
      try (BytesStreamOutput out = new BytesStreamOutput()) {
        sent.writeTo(out);
        StatsAction.Response read = new StatsAction.Response(out.bytes().streamInput());
        assertEquals(Examples.json(sent), Examples.json(read));
      }
      Map<String, Object> shown = object(object(Examples.json(sent), "nodes"), "id");
      assertEquals(1, shown.get("calls"));
      assertEquals(0, shown.get("in_flight"));
      Map<?, ?> sidecar = (Map<?, ?>) ((List<?>) shown.get("sidecars")).get(0);
      assertEquals("http://localhost:8900", sidecar.get("url"));
      assertEquals("closed", sidecar.get("breaker"));
    }
  }
}
