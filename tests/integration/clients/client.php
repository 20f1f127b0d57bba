<?php
// php-amqplib. Prints what each example client prints; takes the broker's URL from AMQP_URL.
require_once 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

$url = parse_url(getenv('AMQP_URL'));
$connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass'], substr($url['path'] ?? '', 1) ?: '/');
$channel = $connection->channel();
$channel->confirm_select();
$channel->set_nack_handler(function () { throw new Exception('not accepted'); });
$channel->set_return_listener(function ($code, $text, $exchange, $routingKey) { echo "nobody hosts $routingKey\n"; });

function invoke($channel, string $service, string $body, ?string $replyTo = null, array $headers = []): string
{
    $cid = bin2hex(random_bytes(16));
    $properties = ['content_type' => 'application/json', 'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
        'correlation_id' => $cid, 'message_id' => $cid];
    if ($replyTo !== null) {
        $properties['reply_to'] = $replyTo;
    }
    if ($headers) {
        $properties['application_headers'] = new AMQPTable($headers);
    }
    $channel->basic_publish(new AMQPMessage($body, $properties), '', $service, true);
    $channel->wait_for_pending_acks_returns(20);
    return $cid;
}

[$inbox] = $channel->queue_declare('', false, false, true);
$reply = null;
$channel->basic_consume($inbox, '', false, true, false, false, function ($message) use (&$reply) { $reply = $message; });
foreach (['{"item": "screen", "quantity": 2}', '{"item": "boat"}'] as $body) {
    $reply = null;
    invoke($channel, 'orders.price', $body, $inbox);
    while ($reply === null) {
        $channel->wait(null, false, 20);
    }
    $headers = $reply->get('application_headers')->getNativeData();
    echo "{$headers['service']} {$headers['status']} {$reply->get('correlation_id')} {$reply->getBody()}\n";
}
foreach ([['callback' => 'my.callback'], ['source' => 'orders.place']] as $headers) {
    echo 'accepted ' . invoke($channel, 'orders.price', '{"item": "keyboard"}', 'callbacks', $headers) . "\n";
}
invoke($channel, 'no.such-service', '');
$connection->close();
