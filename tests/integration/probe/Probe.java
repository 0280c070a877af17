package org.titlecast.probe;

import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.FileChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.apache.logging.log4j.LogManager;
import org.opensearch.plugins.Plugin;

/**
 * Tries what the policy beside it may grant, and logs what came of it: `NAME may: WHAT`, or `may
 * not`.
 *
 * <p>Only what the node's agent looks at is tried: in OpenSearch 3.8 that is neither listening,
 * nor streams of java.io, nor, by its settings, the end of the process.
 */
public class Probe extends Plugin {

  private interface Attempt {
    void run() throws Exception;
  }

  private final String name;

  public Probe() throws Exception {
    var jar = Path.of(Probe.class.getProtectionDomain().getCodeSource().getLocation().toURI());
    name = jar.getParent().getFileName().toString();
    int port = Integer.getInteger("probe.port");
    Path folder = Path.of(System.getProperty("probe.folder"));
    // In a thread of its own: all code on the stack is asked for, the engine's too.
    Thread thread = new Thread(() -> attemptAll(port, folder));
    thread.start();
    thread.join();
  }

  private void attemptAll(int port, Path folder) {
    Path file = folder.resolve("file");
    var path = UnixDomainSocketAddress.of(folder.resolve("socket"));
    attempt("connect", () -> new Socket("127.0.0.1", port).close());
    attempt(
        "connect a channel",
        () -> SocketChannel.open(new InetSocketAddress("127.0.0.1", port)).close());
    attempt("connect a Unix socket", () -> SocketChannel.open(path).close());
    attempt("read", () -> Files.readString(file));
    attempt("open", () -> FileChannel.open(file, StandardOpenOption.READ).close());
    attempt("write", () -> Files.writeString(folder.resolve("written"), "text"));
    attempt("delete", () -> Files.delete(file));
  }

  private void attempt(String what, Attempt attempt) {
    String outcome = "may";
    try {
      attempt.run();
    } catch (SecurityException refused) {
      outcome = "may not";
    } catch (Exception failed) {
      outcome = "could not, " + failed;
    }
    LogManager.getLogger(Probe.class).info("{} {}: {}", name, outcome, what);
  }
}
