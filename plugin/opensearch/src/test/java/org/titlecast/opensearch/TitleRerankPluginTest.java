package org.titlecast.opensearch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.opensearch.common.settings.ClusterSettings;
import org.opensearch.common.settings.Setting;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.util.concurrent.ThreadContext;
import org.opensearch.plugins.SearchPipelinePlugin;
import org.titlecast.opensearch.SidecarSettingsTest.Keystore;

class TitleRerankPluginTest {
  private static SearchPipelinePlugin.Parameters parameters() {
    return new SearchPipelinePlugin.Parameters(
        null,
        null,
        null,
        new ThreadContext(Settings.EMPTY),
        System::nanoTime,
        null,
        null,
        null,
        Runnable::run,
        Examples.REGISTRY);
  }

  @Test
  void registersBothProcessors() throws Exception {
    try (TitleRerankPlugin plugin = new TitleRerankPlugin(Settings.EMPTY, Path.of("."))) {
      var requests = plugin.getRequestProcessors(parameters());
      var responses = plugin.getResponseProcessors(parameters());
      assertEquals(Set.of("title_rerank_candidates"), requests.keySet());
      assertEquals(Set.of("title_rerank"), responses.keySet());
      CandidatesRequestProcessor request =
          Examples.create(requests.get("title_rerank_candidates"), "{}");
      TitleRerankResponseProcessor response = Examples.create(responses.get("title_rerank"), "{}");
      assertEquals("title_rerank_candidates", request.getType());
      assertEquals("title_rerank", response.getType());
      assertNotNull(response.getTag());
    }
  }

  @Test
  void registersItsSettings() {
    try (TitleRerankPlugin plugin = new TitleRerankPlugin(Settings.EMPTY, Path.of("."))) {
      List<Setting<?>> settings = plugin.getSettings();
      assertEquals(11, settings.size());
      for (Setting<?> setting : settings) {
        assertTrue(setting.getKey().startsWith("title_rerank.sidecar."), setting.getKey());
        assertTrue(setting.hasNodeScope(), setting.getKey());
      }
    }
  }

  @Test
  void greetsTheSidecarsAtTheNodesStart() throws Exception {
    try (FakeSidecar sidecar = new FakeSidecar();
        TitleRerankPlugin plugin =
            new TitleRerankPlugin(
                Settings.builder().put("title_rerank.sidecar.urls", sidecar.url()).build(),
                Path.of("."))) {
      plugin.onNodeStarted(null);
      for (int i = 0; i < 100 && sidecar.greeted.isEmpty(); i++) {
        Thread.sleep(50);
      }
      assertEquals(1, sidecar.greeted.size());
    }
  }

  @Test
  void followsChangesOfItsSettings() throws Exception {
    try (FakeSidecar sidecar = new FakeSidecar();
        TitleRerankPlugin plugin = new TitleRerankPlugin(Settings.EMPTY, Path.of("."))) {
      ClusterSettings cluster =
          new ClusterSettings(Settings.EMPTY, new HashSet<>(plugin.getSettings()));
      plugin.follow(cluster);
      cluster.applySettings(
          Settings.builder().put("title_rerank.sidecar.urls", sidecar.url()).build());
      plugin.reload(Settings.builder().setSecureSettings(new Keystore("new")).build());
      plugin.onNodeStarted(null);
      for (int i = 0; i < 100 && sidecar.greeted.isEmpty(); i++) {
        Thread.sleep(50);
      }
      assertEquals("Bearer new", sidecar.greeted.get(0).getFirst("Authorization"));
      cluster.applySettings(Settings.EMPTY);
      assertThrows(
          IllegalArgumentException.class,
          () ->
              cluster.applySettings(
                  Settings.builder().put("title_rerank.sidecar.urls", "ftp://a").build()));
    }
  }
}
