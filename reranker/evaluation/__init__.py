"""Readers of judged collections, an embedded first stage, and measures over runs."""
