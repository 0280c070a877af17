package org.titlecast.opensearch;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.concurrent.atomic.LongAccumulator;
import java.util.concurrent.atomic.LongAdder;
import org.titlecast.opensearch.SidecarException.Failure;

/** What became of this node's searches since it started. */
final class RerankStats {
  /** Upper bounds of the histogram's buckets, in milliseconds; the last bucket has none. */
  private static final long[] BOUNDS = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000};

  private final LongAdder reranked = new LongAdder();
  private final LongAdder incomplete = new LongAdder();
  private final LongAdder withoutText = new LongAdder();
  private final LongAdder engineOrder = new LongAdder();
  private final LongAdder errors = new LongAdder();
  private final Map<Failure, LongAdder> failures = new EnumMap<>(Failure.class);
  private final LongAdder nanos = new LongAdder();
  private final LongAdder reading = new LongAdder();
  private final LongAdder calling = new LongAdder();
  private final LongAdder ordering = new LongAdder();
  private final LongAccumulator longest = new LongAccumulator(Math::max, 0);
  private final AtomicLongArray histogram = new AtomicLongArray(BOUNDS.length + 1);

  RerankStats() {
    for (Failure failure : Failure.values()) {
      failures.put(failure, new LongAdder());
    }
  }

  /**
   * Where a search's time went, in nanoseconds.
   *
   * @param reading texts out of the hits
   * @param calling the sidecar, from the request's writing to its answer's checks
   * @param ordering the page out of the answer
   */
  record Times(long reading, long calling, long ordering) {
    long all() {
      return reading + calling + ordering;
    }
  }

  /** A search got the sidecar's order. */
  void reranked(boolean complete, Times took) {
    reranked.increment();
    if (!complete) {
      incomplete.increment();
    }
    reading.add(took.reading());
    calling.add(took.calling());
    ordering.add(took.ordering());
    time(took.all());
  }

  /** A search could not be reranked, and failed too where {@code error} says so. */
  void failed(Failure failure, boolean error, long took) {
    failures.get(failure).increment();
    (error ? errors : engineOrder).increment();
    time(took);
  }

  /** A search kept the engine's order for want of any text. */
  void withoutText() {
    withoutText.increment();
    engineOrder.increment();
  }

  private void time(long took) {
    nanos.add(took);
    longest.accumulate(took);
    int bucket = 0;
    while (bucket < BOUNDS.length && took > TimeUnit.MILLISECONDS.toNanos(BOUNDS[bucket])) {
      bucket++;
    }
    histogram.incrementAndGet(bucket);
  }

  /** As they go between nodes and into JSON. */
  Map<String, Object> toMap() {
    Map<String, Object> causes = new LinkedHashMap<>();
    long failed = 0;
    for (Map.Entry<Failure, LongAdder> one : failures.entrySet()) {
      causes.put(one.getKey().key(), one.getValue().sum());
      failed += one.getValue().sum();
    }
    List<Map<String, Object>> buckets = new ArrayList<>();
    for (int i = 0; i <= BOUNDS.length; i++) {
      Map<String, Object> bucket = new LinkedHashMap<>();
      if (i < BOUNDS.length) {
        bucket.put("to_ms", BOUNDS[i]);
      }
      bucket.put("count", histogram.get(i));
      buckets.add(bucket);
    }
    Map<String, Object> time = new LinkedHashMap<>();
    time.put("total_ms", TimeUnit.NANOSECONDS.toMillis(nanos.sum()));
    time.put("max_ms", TimeUnit.NANOSECONDS.toMillis(longest.get()));
    time.put("histogram", buckets);
    Map<String, Object> parts = new LinkedHashMap<>();
    parts.put("reading", millis(reading));
    parts.put("calling", millis(calling));
    parts.put("ordering", millis(ordering));
    time.put("reranked_ms", parts);
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("calls", reranked.sum() + failed);
    map.put("reranked", reranked.sum());
    map.put("incomplete", incomplete.sum());
    map.put("engine_order", engineOrder.sum());
    map.put("without_text", withoutText.sum());
    map.put("errors", errors.sum());
    map.put("failures", causes);
    map.put("time", time);
    return map;
  }

  private static double millis(LongAdder nanos) {
    return TimeUnit.NANOSECONDS.toMicros(nanos.sum()) / 1000.0;
  }
}
