package org.titlecast.opensearch;

import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.opensearch.common.xcontent.XContentHelper;
import org.opensearch.common.xcontent.json.JsonXContent;

/** A sidecar on a port of its own that remembers what it was sent and answers as it is told. */
final class FakeSidecar implements AutoCloseable {
  /** What a test wants to happen with one request. */
  interface Behaviour {
    void answer(HttpExchange exchange, Map<String, Object> request) throws Exception;
  }

  /** One request as it arrived. */
  record Received(Headers headers, Map<String, Object> body) {}

  final List<Received> received = new CopyOnWriteArrayList<>();
  final Set<InetSocketAddress> callers = ConcurrentHashMap.newKeySet(); // one a connection
  final List<Headers> greeted = new CopyOnWriteArrayList<>();
  private final ExecutorService threads = Executors.newCachedThreadPool();
  private final HttpServer server;
  volatile boolean ready = true;
  private volatile Behaviour behaviour = FakeSidecar::reverse;

  FakeSidecar() {
    try {
      server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    server.setExecutor(threads);
    server.createContext("/rerank", this::handle);
    server.createContext(
        "/health",
        exchange -> {
          greeted.add(exchange.getRequestHeaders());
          exchange.sendResponseHeaders(ready ? 200 : 503, -1);
          exchange.close();
        });
    server.start();
  }

  String url() {
    return "http://localhost:" + server.getAddress().getPort();
  }

  /** A body without end, a space at a time, until the caller hangs up: `gone` says so. */
  static Behaviour trickling(CountDownLatch gone) {
    return (exchange, request) -> {
      exchange.sendResponseHeaders(200, 0);
      try {
        while (true) {
          exchange.getResponseBody().write(' ');
          exchange.getResponseBody().flush();
          Thread.sleep(20);
        }
      } finally {
        gone.countDown();
      }
    };
  }

  FakeSidecar will(Behaviour behaviour) {
    this.behaviour = behaviour;
    return this;
  }

  FakeSidecar willSay(int status, String body) {
    return will((exchange, request) -> send(exchange, status, body));
  }

  private void handle(HttpExchange exchange) throws IOException {
    callers.add(exchange.getRemoteAddress());
    byte[] body = exchange.getRequestBody().readAllBytes();
    Map<String, Object> request =
        XContentHelper.convertToMap(JsonXContent.jsonXContent, body, 0, body.length, true);
    received.add(new Received(exchange.getRequestHeaders(), request));
    try (exchange) {
      behaviour.answer(exchange, request);
    } catch (IOException e) {
      // The client has gone away, as some tests want it to.
    } catch (Exception e) {
      throw new IllegalStateException(e);
    }
  }

  static void send(HttpExchange exchange, int status, String body) throws IOException {
    byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
    exchange.getResponseHeaders().add("Content-Type", "application/json");
    exchange.sendResponseHeaders(status, bytes.length == 0 ? -1 : bytes.length);
    exchange.getResponseBody().write(bytes);
  }

  /** The last hit first, and so on; the best score is 3 and the others follow closely. */
  static void reverse(HttpExchange exchange, Map<String, Object> request) throws IOException {
    List<?> hits = (List<?>) request.get("hits");
    List<Integer> order = new ArrayList<>();
    for (int i = hits.size() - 1; i >= 0; i--) {
      order.add(i);
    }
    send(exchange, 200, answer(order));
  }

  /** A faultless answer for this order. */
  static String answer(List<Integer> order) {
    List<String> hits = new ArrayList<>();
    for (int i = 0; i < order.size(); i++) {
      hits.add("{\"index\": " + order.get(i) + ", \"id\": \"?\", \"score\": " + score(i) + "}");
    }
    return body(hits);
  }

  /** An answer with these hits, whatever they are. */
  static String body(List<String> hits) {
    return "{\"hits\": "
        + hits
        + ", \"stages\": [{\"name\": \"title\", \"scored\": "
        + hits.size()
        + ", \"milliseconds\": 1.5, \"truncated\": 0, \"skipped\": \"\"}],"
        + " \"complete\": true, \"milliseconds\": 2.0, \"model\": \"fake\"}";
  }

  /** The score that {@link #answer} gives to a rank, counted from 0. */
  static float score(int rank) {
    return 3f - rank / 1024f;
  }

  /** A port on which nothing listens. */
  static String nobody() {
    try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      return "http://localhost:" + socket.getLocalPort();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  @Override
  public void close() {
    server.stop(0);
    threads.shutdownNow();
  }
}
