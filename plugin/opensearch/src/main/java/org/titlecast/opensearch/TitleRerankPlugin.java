package org.titlecast.opensearch;

import java.nio.file.Path;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import org.opensearch.action.ActionRequest;
import org.opensearch.cluster.metadata.IndexNameExpressionResolver;
import org.opensearch.cluster.node.DiscoveryNode;
import org.opensearch.cluster.node.DiscoveryNodes;
import org.opensearch.cluster.service.ClusterService;
import org.opensearch.common.settings.ClusterSettings;
import org.opensearch.common.settings.IndexScopedSettings;
import org.opensearch.common.settings.Setting;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.settings.SettingsFilter;
import org.opensearch.core.action.ActionResponse;
import org.opensearch.core.common.io.stream.NamedWriteableRegistry;
import org.opensearch.core.xcontent.NamedXContentRegistry;
import org.opensearch.env.Environment;
import org.opensearch.env.NodeEnvironment;
import org.opensearch.plugins.ActionPlugin;
import org.opensearch.plugins.ClusterPlugin;
import org.opensearch.plugins.Plugin;
import org.opensearch.plugins.ReloadablePlugin;
import org.opensearch.plugins.SearchPipelinePlugin;
import org.opensearch.plugins.SearchPlugin;
import org.opensearch.repositories.RepositoriesService;
import org.opensearch.rest.RestController;
import org.opensearch.rest.RestHandler;
import org.opensearch.rest.RestHeaderDefinition;
import org.opensearch.script.ScriptService;
import org.opensearch.search.pipeline.Processor;
import org.opensearch.search.pipeline.SearchRequestProcessor;
import org.opensearch.search.pipeline.SearchResponseProcessor;
import org.opensearch.threadpool.ThreadPool;
import org.opensearch.transport.client.Client;
import org.opensearch.watcher.ResourceWatcherService;

/**
 * The plugin {@code title-rerank}: the search-pipeline processors {@code title_rerank_candidates}
 * and {@code title_rerank}, the search extension {@code ext.title_rerank}, the node settings that
 * say where the sidecars are, and the statistics.
 */
public final class TitleRerankPlugin extends Plugin
    implements ActionPlugin, ClusterPlugin, ReloadablePlugin, SearchPipelinePlugin, SearchPlugin {
  private final Path configuration;
  private final SidecarClient sidecar;
  private final RerankStats stats = new RerankStats();

  /**
   * @param settings the node's settings with its keystore
   * @param configuration the node's configuration folder
   */
  public TitleRerankPlugin(Settings settings, Path configuration) {
    this.configuration = configuration;
    this.sidecar = new SidecarClient(SidecarSettings.of(settings, configuration));
  }

  @Override
  public List<Setting<?>> getSettings() {
    return SidecarSettings.all();
  }

  @Override
  public Collection<Object> createComponents(
      Client client,
      ClusterService clusterService,
      ThreadPool threadPool,
      ResourceWatcherService resourceWatcherService,
      ScriptService scriptService,
      NamedXContentRegistry xContentRegistry,
      Environment environment,
      NodeEnvironment nodeEnvironment,
      NamedWriteableRegistry namedWriteableRegistry,
      IndexNameExpressionResolver indexNameExpressionResolver,
      Supplier<RepositoriesService> repositoriesServiceSupplier) {
    follow(clusterService.getClusterSettings());
    return List.of(new StatsAction.Node(stats, sidecar));
  }

  /** Takes over what {@code PUT _cluster/settings} changes. */
  void follow(ClusterSettings settings) {
    settings.addSettingsUpdateConsumer(
        changed -> sidecar.update(sidecar.settings().withDynamic(changed)),
        SidecarSettings.DYNAMIC);
  }

  /** Takes over the key and the certificates, {@code POST _nodes/reload_secure_settings}. */
  @Override
  public void reload(Settings settings) {
    sidecar.update(sidecar.settings().withSecrets(settings, configuration));
  }

  @Override
  public List<ActionHandler<? extends ActionRequest, ? extends ActionResponse>> getActions() {
    return List.of(new ActionHandler<>(StatsAction.INSTANCE, StatsAction.Transport.class));
  }

  @Override
  public List<RestHandler> getRestHandlers(
      Settings settings,
      RestController restController,
      ClusterSettings clusterSettings,
      IndexScopedSettings indexScopedSettings,
      SettingsFilter settingsFilter,
      IndexNameExpressionResolver indexNameExpressionResolver,
      Supplier<DiscoveryNodes> nodesInCluster) {
    return List.of(new StatsAction.Rest());
  }

  @Override
  public Collection<RestHeaderDefinition> getRestHeaders() {
    return Origin.TRACE_HEADERS.stream()
        .map(name -> new RestHeaderDefinition(name, false))
        .toList();
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
                stats,
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
