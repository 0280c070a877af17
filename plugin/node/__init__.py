"""A local OpenSearch cluster with our plugin, assembled from published artifacts.

For development, tests and the demo, on Linux and macOS; a production cluster is the operator's.
"""

from plugin.node.assembly import OPENSEARCH_VERSION, PLUGIN_NAME, plugin_sources
from plugin.node.cluster import ClusterOptions, LocalCluster, Node
from plugin.node.errors import (
    AssemblyError,
    NodeError,
    PortTakenError,
    StartError,
    ToolMissingError,
)

__all__ = [
    "OPENSEARCH_VERSION",
    "PLUGIN_NAME",
    "AssemblyError",
    "ClusterOptions",
    "LocalCluster",
    "Node",
    "NodeError",
    "PortTakenError",
    "StartError",
    "ToolMissingError",
    "plugin_sources",
]
