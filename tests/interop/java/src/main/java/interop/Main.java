package interop;

/**
 * RocketMQ's own Java client at work, for tests/interop/test_java.py: `Main COMMAND namesrv=HOST:PORT key=value ...`.
 *
 * Every command prints JSON lines and ends with `{"event":"done",...}`. What the application would see is what is
 * printed: an error that reached it is a line `error`, and the application tries again, as applications do.
 */
public final class Main {
    private Main() {
    }

    public static void main(String[] words) {
        int status = 0;
        try {
            run(words[0], new Options(words, 1));
        } catch (Throwable problem) {
            problem.printStackTrace();
            Out.say("failed", "error", problem.toString());
            status = 1;
        }
        System.exit(status); // clients leave threads behind
    }

    private static void run(String command, Options options) throws Exception {
        switch (command) {
            case "send":
                Producing.send(options);
                break;
            case "stay":
                Producing.stay(options);
                break;
            case "transactions":
                Transactions.run(options);
                break;
            case "request":
                RequestReply.run(options);
                break;
            case "push":
                Consuming.push(options);
                break;
            case "lite-pull":
                Consuming.litePull(options);
                break;
            case "assign":
                Consuming.assign(options);
                break;
            default:
                Version.run(command, options);
        }
    }
}
