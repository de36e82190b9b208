package interop;

import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.RequestCallback;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * `request topic= group= count=`: a requester and, as another client instance, the consumer that replies.
 *
 * It asks with a queue selector and a callback. The client's blocking `request` returns as soon as the request is stored
 * and calls that a timeout, and the callback without a selector is called then, with no reply (apache/rocketmq #6726,
 * #9319, #10613), whatever broker it talks to.
 */
final class RequestReply {
    private RequestReply() {
    }

    static void run(Options options) throws Exception {
        DefaultMQProducer replies = new DefaultMQProducer("JAVA_REPLIES");
        replies.setNamesrvAddr(options.text("namesrv"));
        replies.setInstanceName("replies");
        replies.start();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(options.text("group"));
        consumer.setNamesrvAddr(options.text("namesrv"));
        consumer.setInstanceName("replies");
        consumer.setPullInterval(0);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(options.text("topic"), "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                try {
                    byte[] body = ("reply to " + new String(message.getBody(), StandardCharsets.UTF_8)).getBytes(StandardCharsets.UTF_8);
                    replies.send(MessageUtil.createReplyMessage(message, body), 3000);
                } catch (Exception problem) {
                    Out.say("reply-error", "error", problem.toString());
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        DefaultMQProducer producer = new DefaultMQProducer("JAVA_REQUESTS");
        producer.setNamesrvAddr(options.text("namesrv"));
        producer.setInstanceName("requests");
        producer.start();
        Out.say("started");
        int answered = 0;
        int errors = 0;
        int wrong = 0;
        int count = options.number("count", 10);
        for (int number = 0; number < count; number++) {
            String body = "body-" + number;
            boolean open = true;
            for (int attempt = 0; open && attempt < 10; attempt++) {
                try {
                    Message reply = ask(producer, new Message(options.text("topic"), body.getBytes(StandardCharsets.UTF_8)));
                    open = false;
                    answered++;
                    if (!new String(reply.getBody(), StandardCharsets.UTF_8).equals("reply to " + body)) {
                        wrong++;
                    }
                } catch (Exception problem) {
                    errors++;
                    Out.say("error", "number", number, "error", problem.toString());
                    Thread.sleep(100);
                }
            }
            Out.say("sent", "count", number + 1);
            Thread.sleep(options.number("pause_ms", 20));
        }
        producer.shutdown();
        consumer.shutdown();
        replies.shutdown();
        Out.say("done", "sent", count, "answered", answered, "wrong", wrong, "errors", errors);
    }

    private static final AtomicInteger TURN = new AtomicInteger();

    private static Message ask(DefaultMQProducer producer, Message request) throws Exception {
        CompletableFuture<Message> answer = new CompletableFuture<>();
        producer.request(request, (queues, message, turn) -> queues.get((Integer) turn % queues.size()),
            TURN.getAndIncrement(), new RequestCallback() {
                @Override
                public void onSuccess(Message reply) {
                    answer.complete(reply);
                }

                @Override
                public void onException(Throwable problem) {
                    answer.completeExceptionally(problem);
                }
            }, 5000);
        return answer.get(7, TimeUnit.SECONDS);
    }
}
