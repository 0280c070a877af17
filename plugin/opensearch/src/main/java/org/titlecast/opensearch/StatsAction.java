package org.titlecast.opensearch;

import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.opensearch.action.ActionType;
import org.opensearch.action.FailedNodeException;
import org.opensearch.action.support.ActionFilters;
import org.opensearch.action.support.nodes.BaseNodeResponse;
import org.opensearch.action.support.nodes.BaseNodesRequest;
import org.opensearch.action.support.nodes.BaseNodesResponse;
import org.opensearch.action.support.nodes.TransportNodesAction;
import org.opensearch.cluster.ClusterName;
import org.opensearch.cluster.node.DiscoveryNode;
import org.opensearch.cluster.service.ClusterService;
import org.opensearch.common.inject.Inject;
import org.opensearch.core.common.io.stream.StreamInput;
import org.opensearch.core.common.io.stream.StreamOutput;
import org.opensearch.core.xcontent.ToXContentFragment;
import org.opensearch.core.xcontent.XContentBuilder;
import org.opensearch.rest.BaseRestHandler;
import org.opensearch.rest.RestRequest;
import org.opensearch.rest.action.RestActions.NodesResponseRestListener;
import org.opensearch.tasks.CancellableTask;
import org.opensearch.tasks.TaskManager;
import org.opensearch.threadpool.ThreadPool;
import org.opensearch.transport.TransportRequest;
import org.opensearch.transport.TransportService;
import org.opensearch.transport.client.node.NodeClient;

/** {@code GET /_plugins/_title_rerank/stats}: what every node's reranking has come to. */
public final class StatsAction extends ActionType<StatsAction.Response> {
  static final String PATH = "/_plugins/_title_rerank/stats";
  static final StatsAction INSTANCE = new StatsAction();

  private StatsAction() {
    super("cluster:monitor/title_rerank/stats", Response::new);
  }

  /** What a node counts, and its sidecars. */
  record Node(RerankStats stats, SidecarClient sidecar) {
    Map<String, Object> toMap() {
      Map<String, Object> map = new LinkedHashMap<>(stats.toMap());
      map.putAll(sidecar.toMap());
      return map;
    }
  }

  /** Of which nodes. */
  public static final class Request extends BaseNodesRequest<Request> {
    /**
     * @param nodes as in {@code GET /_nodes/...}; none: all
     */
    Request(String... nodes) {
      super(nodes);
    }

    /** Reads what {@link #writeTo} wrote. */
    public Request(StreamInput in) throws IOException {
      super(in);
    }
  }

  /** To one node. */
  public static final class NodeRequest extends TransportRequest {
    NodeRequest() {}

    /** Reads what {@link #writeTo} wrote. */
    public NodeRequest(StreamInput in) throws IOException {
      super(in);
    }
  }

  /** Of one node. */
  public static final class NodeResponse extends BaseNodeResponse {
    private final Map<String, Object> stats;

    NodeResponse(DiscoveryNode node, Map<String, Object> stats) {
      super(node);
      this.stats = stats;
    }

    /** Reads what {@link #writeTo} wrote. */
    public NodeResponse(StreamInput in) throws IOException {
      super(in);
      this.stats = in.readMap();
    }

    @Override
    public void writeTo(StreamOutput out) throws IOException {
      super.writeTo(out);
      out.writeMap(stats);
    }
  }

  /** Of all nodes. */
  public static final class Response extends BaseNodesResponse<NodeResponse>
      implements ToXContentFragment {
    Response(ClusterName cluster, List<NodeResponse> nodes, List<FailedNodeException> failures) {
      super(cluster, nodes, failures);
    }

    /** Reads what {@link #writeTo} wrote. */
    public Response(StreamInput in) throws IOException {
      super(in);
    }

    @Override
    protected List<NodeResponse> readNodesFrom(StreamInput in) throws IOException {
      return in.readList(NodeResponse::new);
    }

    @Override
    protected void writeNodesTo(StreamOutput out, List<NodeResponse> nodes) throws IOException {
      out.writeList(nodes);
    }

    @Override
    public XContentBuilder toXContent(XContentBuilder builder, Params params) throws IOException {
      builder.startObject("nodes");
      for (NodeResponse node : getNodes()) {
        builder.startObject(node.getNode().getId());
        builder.field("name", node.getNode().getName());
        for (Map.Entry<String, Object> entry : node.stats.entrySet()) {
          builder.field(entry.getKey(), entry.getValue());
        }
        builder.endObject();
      }
      return builder.endObject();
    }
  }

  /** Asks the nodes; and, as the one part of ours that is given the tasks, watches over them. */
  public static final class Transport
      extends TransportNodesAction<Request, Response, NodeRequest, NodeResponse> {
    private final Node node;

    /** Made by the node. */
    @Inject
    public Transport(
        ThreadPool threads,
        ClusterService cluster,
        TransportService transport,
        ActionFilters filters,
        Node node) {
      super(
          INSTANCE.name(),
          threads,
          cluster,
          transport,
          filters,
          Request::new,
          NodeRequest::new,
          ThreadPool.Names.SAME,
          NodeResponse.class);
      this.node = node;
      watch(transport.getTaskManager(), node.sidecar);
    }

    private static void watch(TaskManager tasks, SidecarClient sidecar) {
      sidecar.askWhetherCancelled(
          id -> {
            CancellableTask task = tasks.getCancellableTask(id);
            return task != null && task.isCancelled();
          });
      tasks.addTaskEventListeners(
          new TaskManager.TaskEventListeners() {
            @Override
            public void onTaskCancelled(CancellableTask task) {
              sidecar.cancel(task.getId());
            }
          });
    }

    @Override
    protected Response newResponse(
        Request request, List<NodeResponse> nodes, List<FailedNodeException> failures) {
      return new Response(clusterService.getClusterName(), nodes, failures);
    }

    @Override
    protected NodeRequest newNodeRequest(Request request) {
      return new NodeRequest();
    }

    @Override
    protected NodeResponse newNodeResponse(StreamInput in) throws IOException {
      return new NodeResponse(in);
    }

    @Override
    protected NodeResponse nodeOperation(NodeRequest request) {
      return new NodeResponse(clusterService.localNode(), node.toMap());
    }
  }

  /** The route. */
  static final class Rest extends BaseRestHandler {
    @Override
    public String getName() {
      return "title_rerank_stats";
    }

    @Override
    public List<Route> routes() {
      return List.of(
          new Route(RestRequest.Method.GET, PATH),
          new Route(RestRequest.Method.GET, PATH + "/{nodeId}"));
    }

    @Override
    protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
      Request asked = new Request(request.paramAsStringArray("nodeId", null));
      asked.timeout(request.param("timeout"));
      return channel -> client.execute(INSTANCE, asked, new NodesResponseRestListener<>(channel));
    }
  }
}
