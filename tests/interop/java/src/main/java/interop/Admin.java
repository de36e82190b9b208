package interop;

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * mqadmin, command after command in one process: each line of standard input is a command line (words separated by
 * tabs), each answer a line `{"event":"ran","output":...,"ended":...}`. A command that runs for ever is left after
 * LIMIT_MS with what it printed until then.
 */
public final class Admin {
    private static final int LIMIT_MS = 25_000;

    private Admin() {
    }

    public static void main(String[] ignored) throws Exception {
        Out.say("ready"); // Out keeps the real standard output
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] words = line.isEmpty() ? new String[0] : line.split("\t");
            long limit = LIMIT_MS;
            if (words.length > 0 && words[0].startsWith("limit_ms=")) {
                limit = Long.parseLong(words[0].substring("limit_ms=".length()));
                words = java.util.Arrays.copyOfRange(words, 1, words.length);
            }
            run(words, limit);
        }
        System.exit(0);
    }

    private static void run(String[] words, long limit) throws Exception {
        ByteArrayOutputStream output = new ByteArrayOutputStream();
        PrintStream stream = new PrintStream(output, true, "UTF-8");
        System.setOut(stream);
        System.setErr(stream);
        long began = System.currentTimeMillis();
        Thread command = new Thread(() -> {
            try {
                MQAdminStartup.main0(words, null);
            } catch (Throwable problem) {
                problem.printStackTrace(stream);
            }
        });
        command.start();
        command.join(limit);
        boolean ended = !command.isAlive();
        command.interrupt();
        command.join(3000); // what it still says belongs to it
        Out.say("ran", "output", output.toString("UTF-8"), "ended", ended, "ms", System.currentTimeMillis() - began);
    }
}
