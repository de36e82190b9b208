package interop;

import java.nio.charset.StandardCharsets;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * `transactions topic= count= seconds=`: message N is committed if N % 3 is 0, rolled back if 1; if 2 the producer says
 * it does not know, and commits when the broker asks.
 */
final class Transactions {
    private Transactions() {
    }

    static void run(Options options) throws Exception {
        int count = options.number("count", 30);
        Set<Integer> open = ConcurrentHashMap.newKeySet();
        TransactionMQProducer producer = new TransactionMQProducer(options.text("group", "JAVA_TRANSACTIONS"));
        producer.setNamesrvAddr(options.text("namesrv"));
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                switch ((Integer) argument % 3) {
                    case 0:
                        return LocalTransactionState.COMMIT_MESSAGE;
                    case 1:
                        return LocalTransactionState.ROLLBACK_MESSAGE;
                    default:
                        open.add((Integer) argument);
                        return LocalTransactionState.UNKNOW;
                }
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                int number = Integer.parseInt(message.getUserProperty("n"));
                Out.say("checked", "number", number, "topic", message.getTopic());
                open.remove(number);
                // A decision that got lost with a leader is asked for again.
                return number % 3 == 1 ? LocalTransactionState.ROLLBACK_MESSAGE : LocalTransactionState.COMMIT_MESSAGE;
            }
        });
        producer.start();
        Out.say("started");
        int errors = 0;
        for (int number = 0; number < count; number++) {
            Message message = new Message(options.text("topic"), "TagA", "key-" + number,
                ("body-" + number).getBytes(StandardCharsets.UTF_8));
            message.putUserProperty("n", Integer.toString(number));
            while (true) {
                try {
                    producer.sendMessageInTransaction(message, number);
                    break;
                } catch (Exception problem) {
                    errors++;
                    Out.say("error", "number", number, "error", problem.toString());
                    Thread.sleep(50);
                }
            }
            if (number % 10 == 9) {
                Out.say("sent", "count", number + 1);
            }
        }
        long end = System.currentTimeMillis() + 1000L * options.number("seconds", 60);
        while (!open.isEmpty() && System.currentTimeMillis() < end) {
            Thread.sleep(100);
        }
        Thread.sleep(options.number("linger_ms", 2000));
        producer.shutdown();
        Out.say("done", "sent", count, "errors", errors, "unchecked", open.size());
    }
}
