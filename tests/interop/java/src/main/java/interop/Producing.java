package interop;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;

/**
 * `send mode=sync|async|oneway|batch|ordered topic= count= [from=] [trace=1] [level=] [delay_ms=]`: COUNT messages
 * `body-N` with key `key-N` and property `n`, tags TagA, TagB, TagC in turn; each again until the client says it is
 * stored (but oneway).
 */
final class Producing {
    private static final int IN_FLIGHT = 32;
    private static final int BATCH = 20;

    private final DefaultMQProducer producer;
    private final Options options;
    private final String topic;
    private final AtomicInteger errors = new AtomicInteger();
    private final AtomicInteger stored = new AtomicInteger();

    private Producing(Options options) {
        this.options = options;
        this.topic = options.text("topic");
        String group = options.text("group", "JAVA_PRODUCER");
        producer = options.is("trace") ? new DefaultMQProducer(group, true, null) : new DefaultMQProducer(group);
        producer.setNamesrvAddr(options.text("namesrv"));
        producer.setRetryTimesWhenSendFailed(options.number("retries", 2));
        producer.setRetryTimesWhenSendAsyncFailed(options.number("retries", 2));
    }

    static void send(Options options) throws Exception {
        Producing run = new Producing(options);
        run.producer.start();
        Out.say("started");
        int from = options.number("from", 0);
        int end = from + options.number("count", 1);
        switch (options.text("mode", "sync")) {
            case "sync":
                run.oneByOne(from, end);
                break;
            case "ordered":
                run.ordered(from, end);
                break;
            case "async":
                run.async(from, end);
                break;
            case "oneway":
                run.oneway(from, end);
                break;
            case "batch":
                run.batches(from, end);
                break;
            default:
                throw new IllegalArgumentException("mode");
        }
        if (options.is("trace")) {
            Thread.sleep(6000); // traces are sent in the background, every five seconds at the latest
        }
        run.producer.shutdown();
        Out.say("done", "sent", run.stored.get(), "errors", run.errors.get());
    }

    /** `stay topic= seconds=`: a producer that sent one message and stays connected. */
    static void stay(Options options) throws Exception {
        Producing run = new Producing(options);
        run.producer.start();
        run.until(0, () -> run.producer.send(run.message(0)));
        Thread.sleep(1500); // its first heartbeat says which group it belongs to
        Out.say("started", "client", run.producer.buildMQClientId());
        Thread.sleep(1000L * options.number("seconds", 60));
        run.producer.shutdown();
    }

    private Message message(int number) {
        String tag = "Tag" + "ABC".charAt(number % 3);
        Message message = new Message(topic, tag, "key-" + number, ("body-" + number).getBytes(StandardCharsets.UTF_8));
        message.putUserProperty("n", Integer.toString(number));
        if (options.is("level")) {
            message.setDelayTimeLevel(options.number("level", 1));
        }
        if (options.is("delay_ms")) {
            message.putUserProperty("due", Long.toString(System.currentTimeMillis() + options.number("delay_ms", 0)));
            Version.delay(message, options.number("delay_ms", 0));
        }
        return message;
    }

    private void accepted(int number, SendResult result) {
        if (result.getSendStatus() != SendStatus.SEND_OK) {
            Out.say("status", "number", number, "status", result.getSendStatus());
        }
        if (options.is("ids")) {
            Out.say("id", "number", number, "id", result.getMsgId(), "offset_id", result.getOffsetMsgId());
        }
        int count = stored.incrementAndGet();
        if (count % 100 == 0) {
            Out.say("sent", "count", count);
        }
    }

    private void refused(int number, Throwable problem) throws InterruptedException {
        errors.incrementAndGet();
        Out.say("error", "number", number, "error", problem.toString());
        Thread.sleep(50);
    }

    private interface Attempt {
        SendResult send() throws Exception;
    }

    private void until(int number, Attempt attempt) throws InterruptedException {
        while (true) {
            try {
                accepted(number, attempt.send());
                return;
            } catch (InterruptedException problem) {
                throw problem;
            } catch (Exception problem) {
                refused(number, problem);
            }
        }
    }

    private void oneByOne(int from, int end) throws Exception {
        for (int number = from; number < end; number++) {
            Message message = message(number);
            until(number, () -> producer.send(message));
        }
    }

    private void ordered(int from, int end) throws Exception {
        for (int number = from; number < end; number++) {
            Message message = message(number);
            int key = number % 4;
            until(number, () -> producer.send(message, (queues, m, k) -> queues.get((Integer) k % queues.size()), key));
        }
    }

    private void oneway(int from, int end) throws Exception {
        for (int number = from; number < end; number++) {
            try {
                producer.sendOneway(message(number));
                Thread.sleep(1);
                int count = stored.incrementAndGet();
                if (count % 100 == 0) {
                    Out.say("sent", "count", count);
                }
            } catch (InterruptedException problem) {
                throw problem;
            } catch (Exception problem) {
                refused(number, problem);
            }
        }
    }

    private void batches(int from, int end) throws Exception {
        for (int first = from; first < end; first += BATCH) {
            List<Message> messages = new ArrayList<>();
            for (int number = first; number < Math.min(first + BATCH, end); number++) {
                messages.add(message(number));
            }
            while (true) {
                try {
                    SendResult result = producer.send(messages);
                    for (int i = 0; i < messages.size(); i++) {
                        accepted(first + i, result);
                    }
                    break;
                } catch (InterruptedException problem) {
                    throw problem;
                } catch (Exception problem) {
                    refused(first, problem);
                }
            }
        }
    }

    private void async(int from, int end) throws Exception {
        Semaphore room = new Semaphore(IN_FLIGHT);
        for (int number = from; number < end; number++) {
            room.acquire();
            asyncOne(number, message(number), room);
        }
        room.acquire(IN_FLIGHT);
    }

    private void asyncOne(int number, Message message, Semaphore room) {
        try {
            producer.send(message, new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    accepted(number, result);
                    room.release();
                }

                @Override
                public void onException(Throwable problem) {
                    again(number, message, room, problem);
                }
            });
        } catch (Exception problem) {
            again(number, message, room, problem);
        }
    }

    private void again(int number, Message message, Semaphore room, Throwable problem) {
        // Not on the callback's thread: the client's pool is small.
        new Thread(() -> {
            try {
                refused(number, problem);
            } catch (InterruptedException ended) {
                return;
            }
            asyncOne(number, message, room);
        }).start();
    }
}
