import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;
import org.apache.rocketmq.filter.expression.BooleanExpression;
import org.apache.rocketmq.filter.expression.EvaluationContext;
import org.apache.rocketmq.filter.parser.SelectorParser;

/**
 * Answers of RocketMQ's own filter module, from which sql92.json was made. Class path: rocketmq-filter 5.3.3, guava and
 * failureaccess from Maven Central. A line of standard input is the expression and the property strings (name 0x01
 * value 0x02 ...), each in Base64, separated by tabs; a line of output has one letter per property string.
 */
public class Sql92Reference {
    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] parts = line.split("\t", -1);
            BooleanExpression expression;
            try {
                expression = SelectorParser.parse(text(parts[0]));
            } catch (Throwable refused) {
                System.out.println("E");
                continue;
            }
            StringBuilder letters = new StringBuilder();
            for (int i = 1; i < parts.length; i++) {
                letters.append(letter(expression, properties(text(parts[i]))));
            }
            System.out.println(letters);
        }
    }

    private static char letter(BooleanExpression expression, Map<String, Object> properties) {
        EvaluationContext context = new EvaluationContext() {
            @Override
            public Object get(String name) {
                return properties.get(name);
            }

            @Override
            public Map<String, Object> keyValues() {
                return properties;
            }
        };
        try {
            Object value = expression.evaluate(context);
            return value == null ? 'N' : value == Boolean.TRUE ? 'T' : 'F';
        } catch (Throwable failed) {
            return 'X';
        }
    }

    private static Map<String, Object> properties(String raw) {
        Map<String, Object> found = new HashMap<>();
        for (String pair : raw.split("\u0002")) {
            int at = pair.indexOf('\u0001');
            if (at > 0 && at + 1 < pair.length()) {
                found.put(pair.substring(0, at), pair.substring(at + 1));
            }
        }
        return found;
    }

    private static String text(String base64) {
        return new String(Base64.getDecoder().decode(base64), StandardCharsets.UTF_8);
    }
}
