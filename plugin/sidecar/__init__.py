"""The HTTP service that search pipelines call; knows the library, not the other way round."""
