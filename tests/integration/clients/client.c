/* librabbitmq. Prints what each example client prints; takes the broker's URL from AMQP_URL. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>

#define CHANNEL 1

static amqp_connection_state_t connection;

static void check(int ok, const char *what) {
  if (!ok) {
    fprintf(stderr, "%s\n", what);
    exit(1);
  }
}

static int replied(void) { return amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL; }

/* Waits until RabbitMQ has confirmed the message, after it has returned it if nobody hosts the service. */
static void wait_for_confirm(void) {
  struct timeval patience = {20, 0};
  for (;;) {
    amqp_frame_t frame;
    check(amqp_simple_wait_frame_noblock(connection, &frame, &patience) == AMQP_STATUS_OK, "no confirm");
    if (frame.frame_type != AMQP_FRAME_METHOD) continue;
    if (frame.payload.method.id == AMQP_BASIC_RETURN_METHOD) {
      amqp_basic_return_t *returned = frame.payload.method.decoded;
      amqp_message_t message;
      printf("nobody hosts %.*s\n", (int)returned->routing_key.len, (char *)returned->routing_key.bytes);
      check(amqp_read_message(connection, CHANNEL, &message, 0).reply_type == AMQP_RESPONSE_NORMAL, "half a return");
      amqp_destroy_message(&message);
    } else {
      check(frame.payload.method.id == AMQP_BASIC_ACK_METHOD, "not accepted");
      return;
    }
  }
}

static void invoke(const char *service, const char *body, const char *cid, amqp_bytes_t reply_to, const char *header,
                   const char *value) {
  amqp_table_entry_t entry;
  amqp_basic_properties_t properties;
  memset(&properties, 0, sizeof properties);
  properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
                      AMQP_BASIC_MESSAGE_ID_FLAG;
  properties.content_type = amqp_cstring_bytes("application/json");
  properties.delivery_mode = AMQP_DELIVERY_PERSISTENT;
  properties.correlation_id = properties.message_id = amqp_cstring_bytes(cid);
  if (reply_to.len) {
    properties._flags |= AMQP_BASIC_REPLY_TO_FLAG;
    properties.reply_to = reply_to;
  }
  if (header) {
    entry.key = amqp_cstring_bytes(header);
    entry.value.kind = AMQP_FIELD_KIND_UTF8;
    entry.value.value.bytes = amqp_cstring_bytes(value);
    properties._flags |= AMQP_BASIC_HEADERS_FLAG;
    properties.headers.num_entries = 1;
    properties.headers.entries = &entry;
  }
  check(amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, amqp_cstring_bytes(service), 1, 0, &properties,
                           amqp_cstring_bytes(body)) == AMQP_STATUS_OK, "not sent");
  wait_for_confirm();
}

static void print_header(const amqp_table_t *headers, const char *name) {
  for (int i = 0; i < headers->num_entries; i++) {
    amqp_bytes_t key = headers->entries[i].key, value = headers->entries[i].value.value.bytes;
    if (key.len == strlen(name) && !memcmp(key.bytes, name, key.len)) printf("%.*s ", (int)value.len, (char *)value.bytes);
  }
}

static void print_reply(void) {
  struct timeval patience = {20, 0};
  amqp_envelope_t envelope;
  check(amqp_consume_message(connection, &envelope, &patience, 0).reply_type == AMQP_RESPONSE_NORMAL, "no reply");
  amqp_message_t *reply = &envelope.message;
  print_header(&reply->properties.headers, "service");
  print_header(&reply->properties.headers, "status");
  printf("%.*s %.*s\n", (int)reply->properties.correlation_id.len, (char *)reply->properties.correlation_id.bytes,
         (int)reply->body.len, (char *)reply->body.bytes);
  amqp_destroy_envelope(&envelope);
}

int main(void) {
  struct amqp_connection_info url;
  char *text = strdup(getenv("AMQP_URL"));
  char cid[64];
  check(amqp_parse_url(text, &url) == AMQP_STATUS_OK, "no URL");
  connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  check(amqp_socket_open(socket, url.host, url.port) == 0, "no connection");
  check(amqp_login(connection, url.vhost, 0, 131072, 60, AMQP_SASL_METHOD_PLAIN, url.user, url.password).reply_type ==
        AMQP_RESPONSE_NORMAL, "no login");
  amqp_channel_open(connection, CHANNEL);
  check(replied(), "no channel");
  amqp_confirm_select(connection, CHANNEL);
  check(replied(), "no confirms");
  amqp_queue_declare_ok_t *declared =
      amqp_queue_declare(connection, CHANNEL, amqp_empty_bytes, 0, 0, 1, 1, amqp_empty_table);
  check(replied(), "no queue");
  amqp_bytes_t inbox = amqp_bytes_malloc_dup(declared->queue);
  amqp_basic_consume(connection, CHANNEL, inbox, amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
  check(replied(), "no consumer");

  const char *bodies[] = {"{\"item\": \"screen\", \"quantity\": 2}", "{\"item\": \"boat\"}"};
  for (int i = 0; i < 2; i++) {
    snprintf(cid, sizeof cid, "c-%d-own-%d", (int)getpid(), i);
    invoke("orders.price", bodies[i], cid, inbox, NULL, NULL);
    print_reply();
  }
  const char *headers[][2] = {{"callback", "my.callback"}, {"source", "orders.place"}};
  for (int i = 0; i < 2; i++) {
    snprintf(cid, sizeof cid, "c-%d-%s", (int)getpid(), headers[i][0]);
    invoke("orders.price", "{\"item\": \"keyboard\"}", cid, amqp_cstring_bytes("callbacks"), headers[i][0], headers[i][1]);
    printf("accepted %s\n", cid);
  }
  invoke("no.such-service", "", "c-nobody", amqp_empty_bytes, NULL, NULL);
  amqp_bytes_free(inbox);
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(connection);
  free(text);
  return 0;
}
