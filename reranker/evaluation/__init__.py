"""Evaluation in three layers: measures (ids in, numbers out), readers, runs and tables.

`measures` and `runs` know no file format, `collections` and `trec` compute nothing, and `reports`
puts them together. All of it imports without torch; ir-measures, sentence-transformers and
matplotlib are loaded by the functions that need them (extra `train`).
"""
