package org.titlecast.opensearch;

import java.util.List;
import java.util.Map;
import org.opensearch.cluster.node.DiscoveryNode;
import org.opensearch.common.settings.Setting;
import org.opensearch.common.settings.Settings;
import org.opensearch.plugins.ClusterPlugin;
import org.opensearch.plugins.Plugin;
import org.opensearch.plugins.SearchPipelinePlugin;
import org.opensearch.plugins.SearchPlugin;
import org.opensearch.search.pipeline.Processor;
import org.opensearch.search.pipeline.SearchRequestProcessor;
import org.opensearch.search.pipeline.SearchResponseProcessor;

/**
 * The plugin {@code title-rerank}: the search-pipeline processors {@code title_rerank_candidates}
 * and {@code title_rerank}, the search extension {@code ext.title_rerank}, and the node settings
 * that say where the sidecar is.
 */
public final class TitleRerankPlugin extends Plugin
    implements ClusterPlugin, SearchPipelinePlugin, SearchPlugin {
  private final SidecarClient sidecar;

  /**
   * @param settings the node's settings with its keystore
   */
  public TitleRerankPlugin(Settings settings) {
    this.sidecar = new SidecarClient(SidecarSettings.of(settings));
  }

  @Override
  public List<Setting<?>> getSettings() {
    return SidecarSettings.all();
  }

  @Override
  public Map<String, Processor.Factory<SearchRequestProcessor>> getRequestProcessors(
      Parameters parameters) {
    return Map.of(
        CandidatesRequestProcessor.TYPE,
        CandidatesRequestProcessor.factory(parameters.namedXContentRegistry));
  }

  @Override
  public Map<String, Processor.Factory<SearchResponseProcessor>> getResponseProcessors(
      Parameters parameters) {
    return Map.of(
        TitleRerankResponseProcessor.TYPE,
        TitleRerankResponseProcessor.factory(
            new TitleRerankResponseProcessor.Node(
                sidecar,
                parameters.threadContext,
                parameters.genericExecutor::accept,
                parameters.namedXContentRegistry)));
  }

  @Override
  public List<SearchExtSpec<?>> getSearchExts() {
    return List.of(
        new SearchExtSpec<>(TitleRerankExt.NAME, TitleRerankExt::new, TitleRerankExt::parse),
        new SearchExtSpec<>(
            TitleRerankReport.NAME, TitleRerankReport::new, TitleRerankReport::parse));
  }

  @Override
  public void onNodeStarted(DiscoveryNode localNode) {
    sidecar.greet();
  }

  @Override
  public void close() {
    sidecar.close();
  }
}
