// An RPC server that echoes nothing but the correlation ID: it doubles numbers.
import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.ConnectionFactory;
import java.util.Map;

public class Server {
    public static void main(String[] arguments) throws Exception {
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv("AMQP_URL"));
        var channel = factory.newConnection().createChannel();
        channel.queueDeclare("rpc_queue", true, false, false, Map.of("x-queue-type", "quorum"));
        channel.basicConsume("rpc_queue", false, (tag, request) -> {
            var properties = new AMQP.BasicProperties.Builder().correlationId(request.getProperties().getCorrelationId()).build();
            var doubled = 2 * Integer.parseInt(new String(request.getBody()));
            channel.basicPublish("", request.getProperties().getReplyTo(), properties, String.valueOf(doubled).getBytes());
            channel.basicAck(request.getEnvelope().getDeliveryTag(), false);
        }, tag -> { });
        System.out.println("serving");
    }
}
