# Bunny. Prints what each example client prints; takes the broker's URL from AMQP_URL.
require 'bunny'
require 'securerandom'
require 'timeout'

connection = Bunny.new(ENV.fetch('AMQP_URL')).start
channel = connection.create_channel
channel.confirm_select
exchange = channel.default_exchange
exchange.on_return { |info, _, _| puts "nobody hosts #{info.routing_key}" }

invoke = lambda do |service, body, **properties|
  cid = SecureRandom.uuid
  exchange.publish(body, routing_key: service, content_type: 'application/json', persistent: true, mandatory: true,
                         correlation_id: cid, message_id: cid, **properties)
  raise 'not accepted' unless channel.wait_for_confirms

  cid
end

inbox = channel.queue('', exclusive: true)
replies = Queue.new
inbox.subscribe { |_, properties, body| replies << [properties, body] }
['{"item": "screen", "quantity": 2}', '{"item": "boat"}'].each do |body|
  invoke.call('orders.price', body, reply_to: inbox.name)
  properties, reply = Timeout.timeout(20) { replies.pop }
  puts "#{properties.headers['service']} #{properties.headers['status']} #{properties.correlation_id} #{reply}"
end
[{ 'callback' => 'my.callback' }, { 'source' => 'orders.place' }].each do |headers|
  puts "accepted #{invoke.call('orders.price', '{"item": "keyboard"}', reply_to: 'callbacks', headers: headers)}"
end
invoke.call('no.such-service', '')
connection.close
