"""What stands between the library and a cluster: sidecar, pipelines, local node, command line."""
