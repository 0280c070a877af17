"""The `titlecast` command: one module per command, thin over the libraries."""
