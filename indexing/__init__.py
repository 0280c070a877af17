"""From sources of documents to an index: readers, mapping, bulk loading."""
