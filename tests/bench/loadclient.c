/*
 * A load client for servers that broadcast over WebSocket: one thread, epoll, no library but libc.
 *
 * It opens subscribers, has other connections publish, and counts at the receivers what arrived, when, how often and
 * in which order. Every published payload is a JSON string of a fixed size that carries a record
 *
 *     ~TTTTTTSSSSSSSSSSNNNNNNNNNNNNNNNNNNN     topic, sequence within the topic, intended time of sending in ns
 *
 * which is found wherever the server puts it: in a frame of its own, among other messages in one frame, or across the
 * border of two reads. Nothing else that a server sends has a tilde in it. The sequence of a topic counts 1, 2, 3 …,
 * so that what is lost, repeated or late is seen.
 *
 * Options: --name value, see `main`. In path, preamble and publication %t stands for the topic, %n for a running
 * number, %p for the payload and %l for its length.
 * Commands, one per line on stdin, each answered by one line of JSON on stdout:
 *     subscribe N           open N subscribers, in bounded concurrency, until each is ready
 *     publishers            open the publishing connections
 *     closed SECONDS W      closed loop: W messages in flight, a message being in flight until its last receiver has it
 *     latency COUNT GAP_MS  one message at a time, each GAP_MS after the last receiver had the one before
 *     open SECONDS RATE     open loop: RATE messages a second, whether or not the server keeps up
 *     requests SECONDS W    closed loop over HTTP without subscribers: W requests in flight, each until its answer
 *     idle SECONDS          hold the connections, and answer pings
 *     quit                  close all connections with a close frame, and end
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

enum { TOPIC_DIGITS = 6, SEQUENCE_DIGITS = 10, TIME_DIGITS = 19 };
enum { RECORD = 1 + TOPIC_DIGITS + SEQUENCE_DIGITS + TIME_DIGITS };
enum { READ_SIZE = 256 * 1024, HEAD_LIMIT = 256 * 1024, MAX_PAYLOAD = 65536 };
enum { MAX_ADDRESSES = 8, MAX_EVENTS = 1024, SOURCE_ADDRESSES = 32 };
/* The example of RFC 6455 §1.3; the server cannot know that everybody uses the same. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

enum role { SUBSCRIBER, PUBLISHER };
enum stage { UNUSED, CONNECTING, UPGRADING, PREPARING, READY, CLOSED };

struct connection {
    int fd;
    uint32_t index, topic;
    uint8_t role, stage, opcode, header_length, carried;
    bool polls_out, busy;        /* busy: an HTTP request waits for its answer */
    uint8_t header[10];          /* of the frame that is being read */
    uint64_t frame_size, left;   /* of its payload */
    char carry[RECORD];          /* the beginning of a record whose rest has not been read */
    uint64_t last, seen;         /* highest sequence received; bit i: last - i was received */
    struct buffer in, out;       /* `in` only until it is ready, and for control frames and HTTP answers */
};

struct message {
    int64_t intended;
    uint32_t arrived;
};

static struct {
    struct sockaddr_in addresses[MAX_ADDRESSES], publisher_address;
    int address_count;
    const char *path, *publisher_path, *headers, *publisher_headers, *ready, *publisher_ready;
    const char *preamble, *publisher_preamble, *publication, *host, *protocol;
    enum { WEBSOCKET, HTTP, TCP } publisher;
    char **preamble_of, **headers_of, **ready_of; /* one per connection, from a file in which each is ended by NUL */
    int preamble_count, header_count, marker_count;
    int topics, publishers, payload, concurrency, again;
    int64_t patience;
} options;

enum phase { NONE, SUBSCRIBING, JOINING, CLOSED_LOOP, LATENCY, OPEN_LOOP, REQUESTS, IDLE, QUITTING };

static struct connection *connections, *publishers;
static int subscriber_count, opened, ready_count, failed_count;
static uint64_t *sequences;      /* the last published one per topic */
static struct message *ring;     /* per topic ring_size messages */
static uint32_t ring_size, *receivers;
static int epoll, timer;
static char read_buffer[READ_SIZE], *padding, sample[256];
static bool centrifuge, nats;
static uint64_t running_number, mask_state = 88172645463325252u;

static struct {
    enum phase kind;
    int64_t start, end, due, period, gap, last_progress, cpu_start, last_delivery;
    uint64_t limit, in_flight, published, completed, expected, received, duplicates, reordered, foreign;
    uint64_t answers, refused, closed, again;
    int window;
} phase;

struct pending { uint32_t topic; uint64_t sequence; int64_t intended; };
static struct pending *queue; /* publications that wait for a free HTTP connection */
static uint32_t queue_head, queue_tail;
enum { QUEUE = 1 << 16 };

/* Delays of one phase. Every delivery is counted in a histogram with 32 steps per power of two (3 %); where messages go
 * one at a time, the moments are kept when half, 99 % and all of the receivers had each. */
enum { BUCKETS = 32 * 64, MAX_SAMPLES = 1 << 20 };
static uint64_t histogram[BUCKETS], slowest;
static uint32_t *half_us, *most_us, *last_us, samples;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static int64_t clock_ns(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void append_number(struct buffer *buffer, uint64_t value) {
    char digits[24];
    append(buffer, digits, snprintf(digits, sizeof digits, "%llu", (unsigned long long)value));
}

static void expand(struct buffer *buffer, const char *template, uint32_t topic, const char *payload) {
    for (const char *at = template; *at; at++) {
        if (*at != '%' || !strchr("tnpl%", at[1]) || !at[1]) {
            append(buffer, at, 1);
            continue;
        }
        switch (*++at) {
        case 't': append_number(buffer, topic); break;
        case 'n': append_number(buffer, ++running_number); break;
        case 'l': append_number(buffer, options.payload); break;
        case 'p': append(buffer, payload, options.payload); break;
        default: append(buffer, "%", 1);
        }
    }
}

static void add_masked_frame(struct buffer *out, enum opcode opcode, const char *data, size_t length) {
    mask_state ^= mask_state << 13, mask_state ^= mask_state >> 7, mask_state ^= mask_state << 17;
    uint8_t mask[4];
    memcpy(mask, &mask_state, 4);
    add_frame(out, opcode, data, length, mask);
}

/* Keep the first complaint of a phase. */
static void note(const char *what, const char *text, size_t length) {
    if (!sample[0]) snprintf(sample, sizeof sample, "%s%.*s", what, (int)(length < 200 ? length : 200), text);
}

static void watch(struct connection *c, bool out) {
    if (c->polls_out == out) return;
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->polls_out = out;
}

static void drop(struct connection *c, const char *reason) {
    if (c->stage == CLOSED) return;
    if (c->stage < READY) {
        failed_count++;
        note(reason, c->in.length ? c->in.data : "", c->in.length);
    } else if (phase.kind != QUITTING) {
        phase.closed++;
        note(reason, "", 0);
    }
    close(c->fd);
    c->stage = CLOSED;
    release(&c->in);
    release(&c->out);
}

static void flush(struct connection *c) {
    while (c->out.length) {
        ssize_t sent = send(c->fd, c->out.data, c->out.length, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) { drop(c, strerror(errno)); return; }
            break;
        }
        consume(&c->out, sent);
    }
    watch(c, c->out.length > 0);
}

/* ---- what arrives ------------------------------------------------------------------------------------------------ */

static int bucket_of(uint64_t us) {
    if (us < 64) return us;
    int shift = 63 - __builtin_clzll(us) - 5;
    return 32 * shift + (us >> shift);
}

/* The upper edge of a bucket, so that a percentile is never told better than it was. */
static uint64_t value_of(int bucket) {
    if (bucket < 64) return bucket;
    int shift = bucket / 32 - 1;
    return ((uint64_t)(bucket % 32 + 33) << shift) - 1;
}

static uint64_t number(const char *digits, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value = value * 10 + (digits[i] - '0');
    return value;
}

static void received(struct connection *c, const char *record, int64_t now) {
    uint64_t topic = number(record + 1, TOPIC_DIGITS), sequence = number(record + 1 + TOPIC_DIGITS, SEQUENCE_DIGITS);
    if (topic != c->topic || sequence == 0 || sequence > sequences[topic]) { phase.foreign++; return; }
    if (sequence > c->last) {
        uint64_t step = sequence - c->last;
        c->seen = (step < 64 ? c->seen << step : 0) | 1;
        c->last = sequence;
    } else {
        uint64_t back = c->last - sequence;
        if (back >= 64 || (c->seen >> back & 1)) { phase.duplicates++; return; }
        c->seen |= 1ull << back;
        phase.reordered++;
    }
    phase.received++;
    phase.last_progress = phase.last_delivery = now;
    struct message *message = &ring[topic * ring_size + sequence % ring_size];
    uint32_t arrived = ++message->arrived, all = receivers[topic];
    if (phase.kind == OPEN_LOOP || phase.kind == LATENCY) {
        int64_t intended = number(record + 1 + TOPIC_DIGITS + SEQUENCE_DIGITS, TIME_DIGITS);
        uint64_t us = now > intended ? (now - intended) / 1000 : 0;
        histogram[bucket_of(us)]++;
        if (us > slowest) slowest = us;
        if (phase.kind == LATENCY && samples < MAX_SAMPLES) {
            if (arrived == (all + 1) / 2) half_us[samples] = us;
            if (arrived == (uint32_t)(all * 0.99 + 0.999)) most_us[samples] = us;
            if (arrived == all) last_us[samples++] = us;
        }
    }
    if (arrived == all) {
        phase.completed++;
        if (phase.in_flight) phase.in_flight--; /* one that an earlier phase gave up may come late */
        if (phase.kind == LATENCY) phase.due = now + phase.gap;
    }
}

/* Find records in a part of the stream of payloads, of which the beginning may have been in the part before. */
static void scan(struct connection *c, const char *data, size_t length, int64_t now) {
    const char *end = data + length;
    if (c->carried) {
        size_t missing = RECORD - c->carried, taken = missing < length ? missing : length;
        memcpy(c->carry + c->carried, data, taken);
        c->carried += taken;
        if (c->carried < RECORD) return;
        received(c, c->carry, now);
        c->carried = 0;
        data += taken;
    }
    while (data < end && (data = memchr(data, '~', end - data))) {
        if (end - data < RECORD) {
            c->carried = end - data;
            memcpy(c->carry, data, c->carried);
            return;
        }
        received(c, data, now);
        data += RECORD;
    }
}

static void become_ready(struct connection *c) {
    c->stage = READY;
    if (c->role == SUBSCRIBER) {
        c->last = sequences[c->topic];
        receivers[c->topic]++;
    }
    release(&c->in);
    ready_count++;
}

/* Note the first complaint of a server, whatever it is about. */
static void look_for_error(const char *data, size_t length) {
    const char *found = memmem(data, length, "\"error\"", 7);
    if (!found) found = memmem(data, length, "-ERR", 4);
    if (!found) return;
    phase.refused++;
    note("", data, length);
}

/* What tells that a connection is ready, or NULL when the handshake does. */
static const char *marker_of(const struct connection *c) {
    if (c->role == PUBLISHER) return options.publisher_ready;
    return options.marker_count ? options.ready_of[c->index % options.marker_count] : options.ready;
}

/* A part of a data frame's payload. */
static void payload_part(struct connection *c, const char *data, size_t length, int64_t now) {
    if (c->stage == PREPARING) {
        const char *marker = marker_of(c);
        append(&c->in, data, length);
        if (memmem(c->in.data, c->in.length, "\"error\"", 7)) drop(c, "refused: ");
        else if (memmem(c->in.data, c->in.length, marker, strlen(marker))) become_ready(c);
        else if (c->in.length > HEAD_LIMIT) drop(c, "no sign of readiness");
        return;
    }
    if (centrifuge && c->frame_size == 2 && length == 2 && memcmp(data, "{}", 2) == 0) {
        add_masked_frame(&c->out, TEXT, "{}", 2);
        flush(c);
        return;
    }
    if (nats && memmem(data, length, "PING\r\n", 6)) {
        add_masked_frame(&c->out, BINARY, "PONG\r\n", 6);
        flush(c);
    }
    if (c->role == SUBSCRIBER) scan(c, data, length, now);
    else look_for_error(data, length);
}

static void control_frame(struct connection *c) {
    if (c->opcode == PING) {
        add_masked_frame(&c->out, PONG, c->in.data, c->in.length);
        flush(c);
    } else if (c->opcode == CLOSE) {
        char reason[64] = "closed";
        if (c->in.length >= 2) {
            int code = (uint8_t)c->in.data[0] << 8 | (uint8_t)c->in.data[1], told = c->in.length - 2;
            snprintf(reason, sizeof reason, "closed with %d %.*s", code, told < 40 ? told : 40, c->in.data + 2);
            c->in.length = 0;
        }
        drop(c, reason);
    }
    c->in.length = 0;
}

/* Frames of a server (RFC 6455 §5.2, never masked), however they are cut by reads. */
static void frames(struct connection *c, const char *data, size_t length, int64_t now) {
    while (c->stage != CLOSED) {
        if (!c->left) {
            size_t size = c->header_length < 2 ? 2 : 2 + extended_size(c->header[1] & 127);
            while (c->header_length < size && length) {
                c->header[c->header_length++] = *data++;
                length--;
                if (c->header_length == 2) size += extended_size(c->header[1] & 127);
            }
            if (c->header_length < size) return;
            if (c->header[1] & 0x80 || c->header[0] & 0x70) { drop(c, "a frame that a server may not send"); return; }
            c->opcode = c->header[0] & 15;
            c->left = c->header[1] & 127;
            if (size > 2) {
                c->left = 0;
                for (size_t i = 2; i < size; i++) c->left = c->left << 8 | c->header[i];
            }
            c->frame_size = c->left;
            c->header_length = 0;
            if (!c->left) {
                if (c->opcode >= CLOSE) control_frame(c);
                continue;
            }
        }
        if (!length) return;
        size_t taken = c->left < length ? c->left : length;
        c->left -= taken;
        if (c->opcode >= CLOSE) {
            append(&c->in, data, taken);
            if (!c->left) control_frame(c);
        } else {
            payload_part(c, data, taken, now);
        }
        data += taken, length -= taken;
    }
}

static void send_upgrade(struct connection *c) {
    bool publishes = c->role == PUBLISHER;
    const char *headers = publishes ? options.publisher_headers : options.headers;
    append_text(&c->out, "GET ");
    expand(&c->out, publishes ? options.publisher_path : options.path, c->topic, "");
    append_text(&c->out, " HTTP/1.1\r\nHost: ");
    append_text(&c->out, options.host);
    append_text(&c->out, "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    append_text(&c->out, "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " KEY "\r\n");
    if (headers) append_text(&c->out, headers);
    if (options.header_count && !publishes) {
        append_text(&c->out, options.headers_of[c->index % options.header_count]);
        append_text(&c->out, "\r\n");
    }
    append_text(&c->out, "\r\n");
}

static void begin(struct connection *c) {
    c->stage = UPGRADING;
    if (c->role == PUBLISHER && options.publisher == HTTP) {
        become_ready(c);
        return;
    }
    if (c->role == PUBLISHER && options.publisher == TCP) {
        expand(&c->out, options.publisher_preamble, 0, "");
        c->stage = PREPARING;
    } else {
        send_upgrade(c);
    }
    flush(c);
}

static void upgraded(struct connection *c, const char *data, size_t length, int64_t now) {
    append(&c->in, data, length);
    char *end = memmem(c->in.data, c->in.length, "\r\n\r\n", 4);
    if (!end) {
        if (c->in.length > HEAD_LIMIT) drop(c, "an endless answer to the handshake");
        return;
    }
    size_t head = end + 4 - c->in.data;
    if (strncmp(c->in.data, "HTTP/1.1 101", 12) || !memmem(c->in.data, head, ACCEPT, strlen(ACCEPT))) {
        drop(c, "no WebSocket: ");
        return;
    }
    struct buffer rest = {0};
    append(&rest, c->in.data + head, c->in.length - head);
    c->in.length = 0;
    struct buffer text = {0};
    if (c->role == PUBLISHER) {
        if (options.publisher_preamble) expand(&text, options.publisher_preamble, 0, "");
    } else if (options.preamble_count) {
        expand(&text, options.preamble_of[c->index % options.preamble_count], c->topic, "");
    } else if (options.preamble) {
        expand(&text, options.preamble, c->topic, "");
    }
    if (text.length) {
        add_masked_frame(&c->out, TEXT, text.data, text.length);
        flush(c);
    }
    release(&text);
    if (c->stage != CLOSED) {
        if (marker_of(c)) c->stage = PREPARING;
        else become_ready(c);
        frames(c, rest.data, rest.length, now);
    }
    release(&rest);
}

static void nats_publisher(struct connection *c, const char *data, size_t length) {
    if (memmem(data, length, "PING\r\n", 6)) { append_text(&c->out, "PONG\r\n"); flush(c); }
    if (c->stage == PREPARING) {
        append(&c->in, data, length);
        if (memmem(c->in.data, c->in.length, options.publisher_ready, strlen(options.publisher_ready))) become_ready(c);
    }
    look_for_error(data, length);
}

static void http_answer(struct connection *c, const char *data, size_t length, int64_t now) {
    append(&c->in, data, length);
    char *end = memmem(c->in.data, c->in.length, "\r\n\r\n", 4);
    if (!end) return;
    size_t head = end + 4 - c->in.data;
    *end = 0;
    char *field = strcasestr(c->in.data, "\r\ncontent-length:");
    *end = '\r';
    size_t whole = head + (field ? strtoul(field + 17, NULL, 10) : 0);
    if (c->in.length < whole) return;
    bool accepted = c->in.length > 9 && c->in.data[9] == '2';
    if (!accepted) {
        phase.refused++;
        note("", c->in.data, whole);
    } else {
        look_for_error(c->in.data + head, whole - head);
        phase.answers++;
    }
    consume(&c->in, whole);
    c->busy = false;
    if (phase.kind == REQUESTS) {
        phase.in_flight--;
        phase.last_progress = phase.last_delivery = now;
    }
}

static void open_connection(struct connection *c, enum role role, uint32_t index);

/* A connection broke: one that was not let in yet may be opened again, as clients do. */
static void broke(struct connection *c, const char *reason) {
    if (c->stage >= READY || c->role != SUBSCRIBER || !options.again) { drop(c, reason); return; }
    options.again--;
    phase.again++;
    close(c->fd);
    release(&c->in);
    release(&c->out);
    open_connection(c, SUBSCRIBER, c->index);
}

static void readable(struct connection *c) {
    ssize_t length = recv(c->fd, read_buffer, sizeof read_buffer, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0) { broke(c, length ? strerror(errno) : "the server hung up"); return; }
    int64_t now = now_ns();
    if (c->role == PUBLISHER && options.publisher == TCP) nats_publisher(c, read_buffer, length);
    else if (c->role == PUBLISHER && options.publisher == HTTP) http_answer(c, read_buffer, length, now);
    else if (c->stage == UPGRADING) upgraded(c, read_buffer, length, now);
    else frames(c, read_buffer, length, now);
}

/* ---- what is sent ------------------------------------------------------------------------------------------------ */

static void open_connection(struct connection *c, enum role role, uint32_t index) {
    int on = 1;
    *c = (struct connection){.role = role, .index = index, .topic = role == SUBSCRIBER ? index % options.topics : 0};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("cannot open socket %u: %s (is the limit of open files too low?)", index, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    /* Ports of closed connections stay taken for a minute, per pair of addresses: many sources, many ports. */
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(0x7f000002 + (index + getpid()) % SOURCE_ADDRESSES);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source)) die("bind: %s", strerror(errno));
    struct sockaddr_in *target = &options.addresses[index % options.address_count];
    if (role == PUBLISHER) target = &options.publisher_address;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    c->polls_out = true;
    c->stage = CONNECTING;
    int result = connect(c->fd, (struct sockaddr *)target, sizeof *target);
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
    if (result && errno != EINPROGRESS) drop(c, strerror(errno));
}

static void build_payload(char *payload, uint32_t topic, uint64_t sequence, int64_t intended) {
    char record[RECORD + 1];
    snprintf(record, sizeof record, "~%06u%010llu%019lld", topic, (unsigned long long)sequence, (long long)intended);
    memcpy(payload, padding, options.payload);
    memcpy(payload + 1, record, RECORD);
}

static void dispatch(struct connection *c, struct pending *p) {
    static struct buffer text;
    char payload[MAX_PAYLOAD];
    build_payload(payload, p->topic, p->sequence, p->intended);
    text.length = 0;
    expand(&text, options.publication, p->topic, payload);
    if (options.publisher == HTTP) {
        char length[64];
        append_text(&c->out, "POST ");
        expand(&c->out, options.publisher_path, p->topic, "");
        append_text(&c->out, " HTTP/1.1\r\nHost: ");
        append_text(&c->out, options.host);
        snprintf(length, sizeof length, "\r\nContent-Length: %zu\r\n", text.length);
        append_text(&c->out, length);
        if (options.publisher_headers) append_text(&c->out, options.publisher_headers);
        append_text(&c->out, "\r\n");
        append(&c->out, text.data, text.length);
        c->busy = true;
    } else if (options.publisher == TCP) {
        append(&c->out, text.data, text.length);
    } else {
        add_masked_frame(&c->out, TEXT, text.data, text.length);
    }
}

static void publish(int64_t intended) {
    uint32_t topic = phase.published % options.topics;
    struct pending p = {topic, ++sequences[topic], intended};
    ring[topic * ring_size + p.sequence % ring_size] = (struct message){.intended = intended};
    phase.published++;
    phase.in_flight++;
    phase.expected += receivers[topic];
    if (options.publisher == HTTP) queue[queue_tail++ % QUEUE] = p;
    else dispatch(&publishers[0], &p);
}

static void flush_publishers(void) {
    for (int i = 0; i < options.publishers; i++) {
        struct connection *c = &publishers[i];
        if (c->stage != READY) continue;
        bool waits = options.publisher == HTTP && queue_head != queue_tail;
        if (waits && !c->busy) dispatch(c, &queue[queue_head++ % QUEUE]);
        if (c->out.length && !c->polls_out) flush(c);
    }
}

/* ---- phases ------------------------------------------------------------------------------------------------------ */

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t percentile_of(uint32_t *values, uint32_t count, double share) {
    if (!count) return 0;
    qsort(values, count, sizeof *values, ascending);
    return values[(uint32_t)((count - 1) * share)];
}

static uint64_t histogram_percentile(double share) {
    uint64_t total = 0, passed = 0;
    for (int i = 0; i < BUCKETS; i++) total += histogram[i];
    for (int i = 0; i < BUCKETS; i++)
        if (total && (passed += histogram[i]) >= total * share) return value_of(i) < slowest ? value_of(i) : slowest;
    return slowest;
}

static void report(const char *name, uint64_t value) { printf("\"%s\": %llu, ", name, (unsigned long long)value); }

static bool loops(void) { return phase.kind >= CLOSED_LOOP && phase.kind <= REQUESTS; }

static void finish(void) {
    int64_t now = now_ns();
    double elapsed = (now - phase.start) / 1e9, cpu = (clock_ns(CLOCK_PROCESS_CPUTIME_ID) - phase.cpu_start) / 1e9;
    double active = ((phase.last_delivery ? phase.last_delivery : now) - phase.start) / 1e9;
    printf("{\"seconds\": %.6f, \"active_seconds\": %.6f, \"client_busy\": %.4f, ", elapsed, active, cpu / elapsed);
    report("ready", ready_count);
    report("failed", failed_count);
    report("closed", phase.closed);
    report("again", phase.again);
    if (loops()) {
        report("published", phase.published);
        report("completed", phase.completed);
        report("expected", phase.expected);
        report("received", phase.received);
        report("duplicates", phase.duplicates);
        report("reordered", phase.reordered);
        report("foreign", phase.foreign);
        report("answers", phase.answers);
        report("refused", phase.refused);
    }
    if (phase.kind == LATENCY || phase.kind == OPEN_LOOP) {
        report("p50_us", histogram_percentile(0.5)); /* over all deliveries */
        report("p99_us", histogram_percentile(0.99));
        report("max_us", slowest);
    }
    if (phase.kind == LATENCY) { /* over the messages */
        report("half_us", percentile_of(half_us, samples, 0.5));
        report("most_us", percentile_of(most_us, samples, 0.5));
        report("last_us", percentile_of(last_us, samples, 0.5));
        report("last_p99_us", percentile_of(last_us, samples, 0.99));
    }
    printf("\"note\": \"");
    for (char *at = sample; *at; at++) {
        if (*at == '"' || *at == '\\') printf("\\%c", *at);
        else putchar(*at >= 0 && *at < ' ' ? ' ' : *at);
    }
    printf("\"}\n");
    fflush(stdout);
    sample[0] = 0;
    phase.kind = NONE;
}

/* Do what is due now, and return when to look again (0: no need). */
static int64_t act(int64_t now) {
    if (phase.kind == SUBSCRIBING || phase.kind == JOINING) {
        int wanted = phase.limit, before = phase.kind == SUBSCRIBING ? 0 : subscriber_count;
        while (opened < subscriber_count && opened - ready_count - failed_count < options.concurrency) {
            open_connection(&connections[opened], SUBSCRIBER, opened);
            opened++;
        }
        if (ready_count + failed_count >= before + wanted || now > phase.end) finish();
        return phase.end;
    }
    if (phase.kind == IDLE) {
        if (now >= phase.end) finish();
        return phase.end;
    }
    if (!loops()) return 0;
    if (phase.kind == CLOSED_LOOP || phase.kind == REQUESTS) {
        while (now < phase.end && phase.in_flight < (uint64_t)phase.window) publish(now);
    } else if (phase.kind == LATENCY) {
        if (!phase.in_flight && phase.published < phase.limit && now >= phase.due) publish(phase.due);
    } else {
        while (phase.due <= now && phase.due < phase.end) {
            publish(phase.due);
            phase.due += phase.period;
        }
    }
    bool done = now >= phase.end;
    if (phase.kind == LATENCY) done = phase.published == phase.limit;
    if (phase.kind == OPEN_LOOP) done = phase.due >= phase.end;
    int64_t give_up = (phase.last_progress > phase.start ? phase.last_progress : phase.start) + options.patience;
    if ((done && !phase.in_flight) || (phase.in_flight && now > give_up)) { finish(); return 0; }
    if (phase.kind == LATENCY || phase.kind == OPEN_LOOP) {
        if (!done && !(phase.kind == LATENCY && phase.in_flight)) return phase.due;
    } else if (!done) {
        return phase.end < give_up ? phase.end : give_up;
    }
    return give_up;
}

static void start(enum phase kind, double seconds) {
    int64_t now = now_ns();
    memset(&phase, 0, sizeof phase);
    memset(histogram, 0, sizeof histogram);
    slowest = samples = 0;
    phase.kind = kind;
    phase.start = now;
    phase.end = now + (int64_t)(seconds * 1e9);
    phase.cpu_start = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static void say_goodbye(struct connection *c) {
    if (c->stage != READY) return;
    add_masked_frame(&c->out, CLOSE, "\x03\xe8", 2);
    flush(c);
}

static void quit(void) {
    phase.kind = QUITTING;
    int left = 0;
    for (int i = 0; i < opened; i++) say_goodbye(&connections[i]);
    for (int i = 0; i < options.publishers && options.publisher == WEBSOCKET; i++) say_goodbye(&publishers[i]);
    for (int64_t end = now_ns() + 5000000000LL; now_ns() < end; left = 0) {
        struct epoll_event events[MAX_EVENTS];
        for (int i = 0; i < opened; i++) left += connections[i].stage == READY;
        if (!left) break;
        int count = epoll_wait(epoll, events, MAX_EVENTS, 100);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c || (void *)c == &timer) continue;
            if (c->stage != CLOSED && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        }
    }
    exit(0);
}

static void command(const char *line) {
    double first = 0, second = 0;
    char name[32] = "";
    sscanf(line, "%31s %lf %lf", name, &first, &second);
    if (strcmp(name, "subscribe") == 0) {
        start(SUBSCRIBING, 300);
        phase.limit = subscriber_count = first;
        connections = calloc(subscriber_count, sizeof *connections);
    } else if (strcmp(name, "publishers") == 0) {
        start(JOINING, 60);
        phase.limit = options.publishers;
        /* Sockets that failed were counted already; what counts from here are the publishers. */
        ready_count = subscriber_count - failed_count;
        for (int i = 0; i < options.publishers; i++) open_connection(&publishers[i], PUBLISHER, i);
    } else if (strcmp(name, "closed") == 0) {
        start(CLOSED_LOOP, first);
        phase.window = second;
    } else if (strcmp(name, "latency") == 0) {
        start(LATENCY, 0);
        phase.limit = first;
        phase.gap = second * 1e6;
        phase.due = now_ns() + phase.gap;
    } else if (strcmp(name, "open") == 0) {
        start(OPEN_LOOP, first);
        phase.period = 1e9 / second;
        phase.due = phase.start + phase.period;
    } else if (strcmp(name, "requests") == 0) {
        start(REQUESTS, first);
        phase.window = second;
    } else if (strcmp(name, "idle") == 0) {
        start(IDLE, first);
    } else if (strcmp(name, "quit") == 0 || !name[0]) {
        quit();
    } else {
        die("unknown command: %s", line);
    }
}

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "r");
    if (!file) die("%s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *text = malloc(*size + 1);
    if (fread(text, 1, *size, file) != *size) die("%s: %s", path, strerror(errno));
    text[*size] = 0;
    fclose(file);
    return text;
}

static char **entries(const char *path, char separator, int *count) {
    size_t size;
    char *text = read_file(path, &size), **list = calloc(size + 1, sizeof *list);
    for (char *at = text, *end; at < text + size; at = end + 1) {
        end = memchr(at, separator, text + size - at);
        if (!end) end = text + size;
        *end = 0;
        list[(*count)++] = at;
    }
    return list;
}

static struct sockaddr_in address_of(char *text) {
    char *port = strrchr(text, ':');
    if (!port) die("%s is not address:port", text);
    *port = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port + 1))};
    if (inet_pton(AF_INET, text, &address.sin_addr) != 1) die("%s is no IPv4 address", text);
    return address;
}

static void add_addresses(char *list) {
    for (char *one = strtok(list, ","); one; one = strtok(NULL, ",")) {
        if (options.address_count == MAX_ADDRESSES) die("more than %d addresses", MAX_ADDRESSES);
        if (!options.host) options.host = strdup(one);
        options.addresses[options.address_count++] = address_of(one);
    }
}

static int publisher_of(const char *name) {
    if (!strcmp(name, "http")) return HTTP;
    return strcmp(name, "tcp") ? WEBSOCKET : TCP;
}

int main(int argc, char **argv) {
    options.path = "/", options.publisher_path = "/", options.publication = "%p";
    options.topics = 1, options.publishers = 1, options.payload = 200, options.concurrency = 100;
    options.patience = 20000000000;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i];
        char *value = argv[i + 1];
        if (!strcmp(name, "--address")) add_addresses(value);                     /* of the servers */
        else if (!strcmp(name, "--publisher-address")) options.publisher_address = address_of(value);
        else if (!strcmp(name, "--path")) options.path = value;                   /* of a subscriber's handshake */
        else if (!strcmp(name, "--headers")) options.headers = value;             /* more lines of it, each with CRLF */
        else if (!strcmp(name, "--headers-file")) options.headers_of = entries(value, 0, &options.header_count);
        else if (!strcmp(name, "--preamble")) options.preamble = value;           /* first frame of a subscriber */
        else if (!strcmp(name, "--preamble-file")) options.preamble_of = entries(value, 0, &options.preamble_count);
        else if (!strcmp(name, "--ready")) options.ready = value;                 /* what the server says then */
        else if (!strcmp(name, "--ready-file")) options.ready_of = entries(value, 0, &options.marker_count);
        else if (!strcmp(name, "--publisher")) options.publisher = publisher_of(value); /* ws, http or tcp */
        else if (!strcmp(name, "--publisher-path")) options.publisher_path = value;
        else if (!strcmp(name, "--publisher-headers")) options.publisher_headers = value;
        else if (!strcmp(name, "--publisher-preamble")) options.publisher_preamble = value;
        else if (!strcmp(name, "--publisher-ready")) options.publisher_ready = value;
        else if (!strcmp(name, "--publication")) options.publication = value;     /* frame, body or bytes */
        else if (!strcmp(name, "--publishers")) options.publishers = atoi(value); /* connections; HTTP only */
        else if (!strcmp(name, "--topics")) options.topics = atoi(value);
        else if (!strcmp(name, "--payload")) options.payload = atoi(value);       /* bytes */
        else if (!strcmp(name, "--concurrency")) options.concurrency = atoi(value); /* handshakes at a time */
        else if (!strcmp(name, "--again")) options.again = atoi(value);           /* attempts after those that broke */
        else if (!strcmp(name, "--patience")) options.patience = atof(value) * 1e9; /* seconds until the rest is lost */
        else if (!strcmp(name, "--protocol")) options.protocol = value;           /* whose pings are to be answered */
        else die("unknown option %s", name);
    }
    centrifuge = options.protocol && !strcmp(options.protocol, "centrifuge");
    nats = options.protocol && !strcmp(options.protocol, "nats");
    if (!options.address_count) die("--address is missing");
    if (options.payload < RECORD + 2 || options.payload > MAX_PAYLOAD) die("--payload is impossible");
    if (!options.publisher_address.sin_port) options.publisher_address = options.addresses[0];
    prctl(PR_SET_TIMERSLACK, 1);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    ring_size = options.topics == 1 ? 1 << 16 : 1 << 10;
    ring = calloc((size_t)options.topics * ring_size, sizeof *ring);
    sequences = calloc(options.topics, sizeof *sequences);
    receivers = calloc(options.topics, sizeof *receivers);
    publishers = calloc(options.publishers, sizeof *publishers);
    queue = calloc(QUEUE, sizeof *queue);
    half_us = calloc(MAX_SAMPLES, sizeof *half_us);
    most_us = calloc(MAX_SAMPLES, sizeof *most_us);
    last_us = calloc(MAX_SAMPLES, sizeof *last_us);
    padding = malloc(options.payload);
    memset(padding, 'x', options.payload);
    padding[0] = padding[options.payload - 1] = '"';

    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event of_stdin = {.events = EPOLLIN, .data.ptr = NULL};
    struct epoll_event of_timer = {.events = EPOLLIN, .data.ptr = &timer};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &of_stdin);
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &of_timer);
    for (;;) {
        int64_t next = act(now_ns());
        flush_publishers();
        /* A zero would disarm it, which is what no need to look again means. */
        struct itimerspec when = {.it_value = {next / 1000000000, next % 1000000000}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                char line[256];
                if (!fgets(line, sizeof line, stdin)) quit();
                command(line);
            } else if ((void *)c == &timer) {
                uint64_t expirations;
                ssize_t size = read(timer, &expirations, sizeof expirations);
                if (size < 0 && errno != EAGAIN) die("timer: %s", strerror(errno));
            } else if (c->stage == CONNECTING) {
                int error = 0;
                socklen_t size = sizeof error;
                getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
                if (error) broke(c, strerror(error));
                else if (events[i].events & EPOLLOUT) { watch(c, false); begin(c); }
            } else if (c->stage != CLOSED) {
                if (events[i].events & EPOLLOUT) flush(c);
                if (c->stage != CLOSED && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
            }
        }
    }
}
