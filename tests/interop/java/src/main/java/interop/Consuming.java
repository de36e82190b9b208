package interop;

import java.nio.charset.StandardCharsets;
import java.util.Collection;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Consumers: each prints every message it was given and ends after COUNT distinct ones, or SECONDS. With ATTEMPTS, a
    message counts once it came so often. */
final class Consuming {
    private final Set<String> seen = ConcurrentHashMap.newKeySet();
    private final CountDownLatch enough = new CountDownLatch(1);
    private final int count;
    private final int attempts;
    private int deliveries;

    private Consuming(Options options) {
        count = options.number("count", 1);
        attempts = options.number("attempts", 1);
    }

    private synchronized void got(MessageExt message, MessageQueue queue) {
        String body = new String(message.getBody(), StandardCharsets.UTF_8);
        deliveries++;
        Out.say("got", "body", body, "broker", queue.getBrokerName(), "queue", message.getQueueId(),
            "offset", message.getQueueOffset(), "tag", message.getTags(), "times", message.getReconsumeTimes(),
            "born", message.getBornTimestamp(), "at", System.currentTimeMillis(),
            "due", String.valueOf(message.getUserProperty("due")), "id", message.getMsgId());
        if (message.getReconsumeTimes() >= attempts - 1) {
            seen.add(body);
        }
        if (seen.size() >= count) {
            enough.countDown();
        }
    }

    private void finish(Options options) throws InterruptedException {
        boolean all = enough.await(options.number("seconds", 60), TimeUnit.SECONDS);
        Thread.sleep(options.number("linger_ms", 1000)); // what comes twice comes now
        Out.say("done", "distinct", seen.size(), "deliveries", deliveries, "all", all);
    }

    /**
     * `push topic= group= count= seconds= [attempts=N] [tags=|sql=] [orderly=1] [model=broadcast] [later=N]
     * [from=first]`: a push consumer; the first N deliveries of each message are answered RECONSUME_LATER.
     */
    static void push(Options options) throws Exception {
        Consuming run = new Consuming(options);
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(options.text("group"));
        consumer.setNamesrvAddr(options.text("namesrv"));
        consumer.setInstanceName(options.text("instance", "DEFAULT"));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setConsumeThreadMin(options.number("threads", 4));
        consumer.setConsumeThreadMax(options.number("threads", 4));
        if (options.is("max_times")) {
            consumer.setMaxReconsumeTimes(options.number("max_times", 16));
        }
        if (options.text("model", "").equals("broadcast")) {
            Version.broadcast(consumer);
        }
        if (options.is("pop")) {
            Version.pop(consumer, options);
        }
        if (options.is("sql")) {
            consumer.subscribe(options.text("topic"), MessageSelector.bySql(options.text("sql")));
        } else {
            consumer.subscribe(options.text("topic"), options.text("tags", "*"));
        }
        int later = options.number("later", 0);
        if (options.is("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                messages.forEach(message -> run.got(message, context.getMessageQueue()));
                return ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                messages.forEach(message -> run.got(message, context.getMessageQueue()));
                return messages.stream().anyMatch(message -> message.getReconsumeTimes() < later)
                    ? ConsumeConcurrentlyStatus.RECONSUME_LATER
                    : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        consumer.start();
        Out.say("started", "client", consumer.buildMQClientId());
        run.finish(options);
        consumer.shutdown();
    }

    /** `lite-pull topic= group= count= seconds=`: subscribe and poll. */
    static void litePull(Options options) throws Exception {
        Consuming run = new Consuming(options);
        DefaultLitePullConsumer consumer = lite(options);
        consumer.subscribe(options.text("topic"), options.text("tags", "*"));
        consumer.start();
        Out.say("started");
        run.poll(consumer, options);
        consumer.shutdown();
    }

    /** `assign topic= group= count= seconds=`: all queues, from the beginning. */
    static void assign(Options options) throws Exception {
        Consuming run = new Consuming(options);
        DefaultLitePullConsumer consumer = lite(options);
        consumer.start();
        Collection<MessageQueue> queues = consumer.fetchMessageQueues(options.text("topic"));
        consumer.assign(queues);
        for (MessageQueue queue : queues) {
            consumer.seekToBegin(queue);
        }
        Out.say("started", "queues", queues.size());
        run.poll(consumer, options);
        consumer.shutdown();
    }

    private static DefaultLitePullConsumer lite(Options options) {
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(options.text("group"));
        consumer.setNamesrvAddr(options.text("namesrv"));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setAutoCommit(true);
        return consumer;
    }

    private void poll(DefaultLitePullConsumer consumer, Options options) throws InterruptedException {
        long end = System.currentTimeMillis() + 1000L * options.number("seconds", 60);
        while (enough.getCount() > 0 && System.currentTimeMillis() < end) {
            List<MessageExt> messages = consumer.poll(500);
            for (MessageExt message : messages) {
                got(message, new MessageQueue(message.getTopic(), message.getBrokerName(), message.getQueueId()));
            }
        }
        finish(options);
    }
}
