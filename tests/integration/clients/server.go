// An RPC server that echoes nothing but the correlation ID: it doubles numbers.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	must(err)
	channel, err := connection.Channel()
	must(err)
	_, err = channel.QueueDeclare("rpc_queue", true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	must(err)
	requests, err := channel.Consume("rpc_queue", "", false, false, false, false, nil)
	must(err)
	fmt.Println("serving")
	for request := range requests {
		n, _ := strconv.Atoi(string(request.Body))
		must(channel.PublishWithContext(context.Background(), "", request.ReplyTo, false, false, amqp.Publishing{
			CorrelationId: request.CorrelationId,
			Body:          []byte(strconv.Itoa(2 * n)),
		}))
		must(request.Ack(false))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
