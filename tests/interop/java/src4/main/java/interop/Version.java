package interop;

import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.protocol.heartbeat.MessageModel;

/** What differs between the versions: the 4.9 client. */
final class Version {
    private Version() {
    }

    static void run(String command, Options options) {
        throw new IllegalArgumentException("no command " + command + " with a 4.9 client");
    }

    static void delay(Message message, long millis) {
        throw new IllegalArgumentException("a 4.9 client knows delay levels only");
    }

    static void broadcast(DefaultMQPushConsumer consumer) {
        consumer.setMessageModel(MessageModel.BROADCASTING);
    }

    static void pop(DefaultMQPushConsumer consumer, Options options) {
        throw new IllegalArgumentException("a 4.9 client cannot pop");
    }
}
