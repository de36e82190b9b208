// Answers allocation cases with RocketMQ's own strategies. Made tests/compat/allocations.json:
//   java -cp "rocketmq-client-5.3.3.jar:rocketmq-common-5.3.3.jar:<their dependencies>" Allocations.java < cases
// A case is one line, fields separated by tabs: strategy, me, members (commas), queues (topic|group|number, commas),
// rooms (commas; CONFIG: indexes of queues). The answer is one line: the indexes of the queues, separated by commas.
import java.util.*;
import org.apache.rocketmq.client.consumer.AllocateMessageQueueStrategy;
import org.apache.rocketmq.client.consumer.rebalance.*;
import org.apache.rocketmq.common.message.MessageQueue;

public class Allocations {
    public static void main(String[] args) {
        Scanner in = new Scanner(System.in);
        while (in.hasNextLine()) {
            String[] f = in.nextLine().split("\t", -1);
            List<String> members = Arrays.asList(f[2].split(","));
            List<MessageQueue> queues = new ArrayList<>();
            for (String q : f[3].split(",")) {
                String[] p = q.split("\\|");
                queues.add(new MessageQueue(p[0], p[1], Integer.parseInt(p[2])));
            }
            StringJoiner out = new StringJoiner(",");
            for (MessageQueue mq : strategy(f[0], f[4], queues).allocate("g", f[1], queues, members)) {
                out.add(String.valueOf(queues.indexOf(mq)));
            }
            System.out.println(out);
        }
    }

    static AllocateMessageQueueStrategy strategy(String name, String rooms, List<MessageQueue> queues) {
        switch (name) {
            case "AVG": return new AllocateMessageQueueAveragely();
            case "AVG_BY_CIRCLE": return new AllocateMessageQueueAveragelyByCircle();
            case "CONSISTENT_HASH": return new AllocateMessageQueueConsistentHash();
            case "CONFIG": {
                List<MessageQueue> mine = new ArrayList<>();
                for (String index : rooms.split(",")) mine.add(queues.get(Integer.parseInt(index)));
                AllocateMessageQueueByConfig s = new AllocateMessageQueueByConfig();
                s.setMessageQueueList(mine);
                return s;
            }
            case "MACHINE_ROOM": {
                AllocateMessageQueueByMachineRoom s = new AllocateMessageQueueByMachineRoom();
                s.setConsumeridcs(new HashSet<>(Arrays.asList(rooms.split(","))));
                return s;
            }
            default: {
                AllocateMessageQueueStrategy inner = name.endsWith("CIRCLE")
                    ? new AllocateMessageQueueAveragelyByCircle() : new AllocateMessageQueueAveragely();
                return new AllocateMachineRoomNearby(inner, new AllocateMachineRoomNearby.MachineRoomResolver() {
                    public String brokerDeployIn(MessageQueue mq) { return mq.getBrokerName().split("@")[0]; }
                    public String consumerDeployIn(String id) { return id.split("@")[0]; }
                });
            }
        }
    }
}
