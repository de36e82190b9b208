package interop;

import java.io.PrintStream;

/** JSON lines on standard output: `Out.say("sent", "count", 100)`. Nothing else may be printed there. */
final class Out {
    private static final PrintStream LINES = System.out;

    private Out() {
    }

    static synchronized void say(String event, Object... pairs) {
        StringBuilder line = new StringBuilder("{\"event\":").append(quoted(event));
        for (int i = 0; i < pairs.length; i += 2) {
            line.append(',').append(quoted((String) pairs[i])).append(':');
            Object value = pairs[i + 1];
            line.append(value instanceof Number || value instanceof Boolean ? value.toString() : quoted(String.valueOf(value)));
        }
        LINES.println(line.append('}'));
        LINES.flush();
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ' || c > '~') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }
}
