/**
 * The OpenSearch side of Titlecast: two search-pipeline processors that widen a search to a window
 * of candidates and give back the asked-for page in the order of a reranking sidecar. No ranking
 * happens here.
 */
package org.titlecast.opensearch;
