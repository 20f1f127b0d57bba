// An RPC server that echoes nothing but the correlation ID: it doubles numbers.
const amqp = require('amqplib');

(async () => {
  const channel = await (await amqp.connect(process.env.AMQP_URL)).createChannel();
  await channel.assertQueue('rpc_queue', { durable: true, arguments: { 'x-queue-type': 'quorum' } });
  await channel.consume('rpc_queue', ({ content, properties, ...request }) => {
    channel.sendToQueue(properties.replyTo, Buffer.from(String(2 * Number(content))), { correlationId: properties.correlationId });
    channel.ack({ content, properties, ...request });
  });
  console.log('serving');
})().catch((error) => { console.error(error); process.exit(1); });
