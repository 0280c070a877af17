import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;

import org.opensearch.common.settings.KeyStoreWrapper;

/**
 * Writes a node's keystore: the folder is the argument, names and values come in turn, one a
 * line, on standard input, where no list of processes shows them. The keystore's own command
 * line tool is part of the distribution only; the class it works with is part of the server.
 */
final class WriteKeystore {
    public static void main(String[] arguments) throws Exception {
        List<String> lines = new String(System.in.readAllBytes(), StandardCharsets.UTF_8).lines().toList();
        try (KeyStoreWrapper keystore = KeyStoreWrapper.create()) {
            for (int line = 0; line + 1 < lines.size(); line += 2) {
                keystore.setString(lines.get(line), lines.get(line + 1).toCharArray());
            }
            keystore.save(Path.of(arguments[0]), new char[0]);
        }
    }
}
