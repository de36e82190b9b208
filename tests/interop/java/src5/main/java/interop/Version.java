package interop;

import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageRequestMode;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;
import org.apache.rocketmq.remoting.protocol.route.BrokerData;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** What differs between the versions: the 5.x client. */
final class Version {
    private Version() {
    }

    static void run(String command, Options options) throws Exception {
        if (!command.equals("pop-mode")) {
            throw new IllegalArgumentException("no command " + command);
        }
        popMode(options);
    }

    static void delay(Message message, long millis) {
        message.setDelayTimeMs(millis);
    }

    static void broadcast(DefaultMQPushConsumer consumer) {
        consumer.setMessageModel(MessageModel.BROADCASTING);
    }

    static void pop(DefaultMQPushConsumer consumer, Options options) {
        consumer.setClientRebalance(false);
        consumer.setPopInvisibleTime(options.number("invisible_ms", 60_000));
    }

    /** `pop-mode topic= group=`: from now on this group pops this topic, at every broker. */
    private static void popMode(Options options) throws Exception {
        DefaultMQAdminExt admin = new DefaultMQAdminExt();
        admin.setNamesrvAddr(options.text("namesrv"));
        admin.setInstanceName("pop-mode");
        admin.start();
        int brokers = 0;
        for (BrokerData broker : admin.examineBrokerClusterInfo().getBrokerAddrTable().values()) {
            admin.setMessageRequestMode(broker.selectBrokerAddr(), options.text("topic"), options.text("group"),
                MessageRequestMode.POP, 8, 5000);
            brokers++;
        }
        admin.shutdown();
        Out.say("done", "brokers", brokers);
    }
}
