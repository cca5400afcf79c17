/*
 * The least that a WebSocket broadcast server can do, as the measure for the others: one thread, epoll, no checks of
 * who may do what, nothing kept. A client of /subscribe/T receives what clients of /publish send in text frames of the
 * form "T payload". Each payload becomes one frame, made once; the frames of one turn of the loop leave in one write
 * per connection.
 *
 * Usage: epollserver PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire.h"

enum { TOPICS = 1 << 17, MAX_EVENTS = 1024, READ_SIZE = 256 * 1024 };

struct connection {
    int fd;
    int topic; /* -1 until it has subscribed */
    bool upgraded, polls_out;
    struct buffer in, out;
};

struct topic {
    struct connection **members;
    uint32_t count, capacity;
    struct buffer frames; /* of this turn */
};

static struct topic topics[TOPICS];
static uint32_t dirty[TOPICS], dirty_count;
static int epoll;
static char read_buffer[READ_SIZE];

/* SHA-1 (FIPS 180-4) of less than 120 bytes, for the handshake alone. */
static void sha1(const char *text, size_t length, uint8_t digest[20]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t blocks[128] = {0};
    size_t size = length < 56 ? 64 : 128;
    memcpy(blocks, text, length);
    blocks[length] = 0x80;
    for (int i = 0; i < 8; i++) blocks[size - 1 - i] = (uint64_t)length * 8 >> 8 * i;
    for (size_t block = 0; block < size; block += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            const uint8_t *p = blocks + block + 4 * i;
            w[i] = (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) {
            uint32_t x = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16];
            w[i] = x << 1 | x >> 31;
        }
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? (b & c) | (~b & d) : i >= 40 && i < 60 ? (b & c) | (b & d) | (c & d) : b ^ c ^ d;
            uint32_t k = i < 20 ? 0x5a827999 : i < 40 ? 0x6ed9eba1 : i < 60 ? 0x8f1bbcdc : 0xca62c1d6;
            uint32_t t = (a << 5 | a >> 27) + f + e + k + w[i];
            e = d, d = c, c = b << 30 | b >> 2, b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
}

static void base64_of_digest(const uint8_t digest[20], char text[29]) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t bytes[21] = {0};
    memcpy(bytes, digest, 20);
    for (int i = 0; i < 7; i++) {
        uint32_t three = bytes[3 * i] << 16 | bytes[3 * i + 1] << 8 | bytes[3 * i + 2];
        for (int j = 0; j < 4; j++) text[4 * i + j] = alphabet[three >> (18 - 6 * j) & 63];
    }
    text[27] = '=', text[28] = 0;
}

static void hang_up(struct connection *c) {
    if (c->topic >= 0) {
        struct topic *topic = &topics[c->topic];
        for (uint32_t i = 0; i < topic->count; i++)
            if (topic->members[i] == c) { topic->members[i] = topic->members[--topic->count]; break; }
        c->topic = -1;
    }
    close(c->fd);
    c->fd = -1; /* freed at the end of the turn at the earliest: events of this turn may still name it */
    release(&c->in);
    release(&c->out);
}

static void poll_out(struct connection *c, bool wanted) {
    if (c->polls_out == wanted) return;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->polls_out = wanted;
}

static void write_to(struct connection *c, const char *data, size_t length) {
    ssize_t sent = c->out.length ? 0 : send(c->fd, data, length, MSG_NOSIGNAL);
    if (sent < 0) sent = 0; /* a connection that is gone is noticed when it is read */
    if ((size_t)sent < length) {
        append(&c->out, data + sent, length - sent);
        poll_out(c, true);
    }
}

static void write_rest(struct connection *c) {
    ssize_t sent = send(c->fd, c->out.data, c->out.length, MSG_NOSIGNAL);
    if (sent > 0) consume(&c->out, sent);
    if (c->out.length) return;
    release(&c->out);
    poll_out(c, false);
}

static void publish(const char *text, size_t length) {
    const char *space = memchr(text, ' ', length);
    unsigned long number = strtoul(text, NULL, 10);
    if (!space || number >= TOPICS) return;
    struct topic *topic = &topics[number];
    if (!topic->frames.length) dirty[dirty_count++] = number;
    add_frame(&topic->frames, TEXT, space + 1, length - (space + 1 - text), NULL);
}

/* Hand every connection of a topic what was published in this turn. */
static void end_turn(void) {
    for (uint32_t i = 0; i < dirty_count; i++) {
        struct topic *topic = &topics[dirty[i]];
        for (uint32_t j = 0; j < topic->count; j++)
            write_to(topic->members[j], topic->frames.data, topic->frames.length);
        topic->frames.length = 0;
    }
    dirty_count = 0;
}

static bool upgrade(struct connection *c) {
    char *end = memmem(c->in.data, c->in.length, "\r\n\r\n", 4);
    if (!end) return c->in.length < 16384;
    *end = 0;
    char *key = strcasestr(c->in.data, "\r\nsec-websocket-key:"), source[64], accept[29], answer[160];
    if (!key) return false;
    for (key += 20; *key == ' '; key++) {}
    if (strcspn(key, "\r ") != 24) return false;
    uint8_t digest[20];
    snprintf(source, sizeof source, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(source, 60, digest);
    base64_of_digest(digest, accept);
    if (strncmp(c->in.data, "GET /subscribe/", 15) == 0) {
        unsigned long number = strtoul(c->in.data + 15, NULL, 10);
        if (number >= TOPICS) return false;
        struct topic *topic = &topics[c->topic = number];
        if (topic->count == topic->capacity) {
            topic->capacity = topic->capacity ? 2 * topic->capacity : 1;
            topic->members = realloc(topic->members, topic->capacity * sizeof *topic->members);
            if (!topic->members) abort();
        }
        topic->members[topic->count++] = c;
    }
    int length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    c->upgraded = true;
    write_to(c, answer, length);
    consume(&c->in, end + 4 - c->in.data);
    if (!c->in.length) release(&c->in);
    return true;
}

/* Whole frames of a client: masked, not fragmented. False ends the connection. */
static bool frames(struct connection *c) {
    size_t at = 0;
    while (c->in.length - at >= 6) {
        uint8_t *p = (uint8_t *)c->in.data + at;
        size_t length = p[1] & 127, head = 2;
        if (!(p[1] & 0x80)) return false;
        if (length == 126) length = p[2] << 8 | p[3], head = 4;
        else if (length == 127) return false;
        if (c->in.length - at < head + 4 + length) break;
        uint8_t *mask = p + head, *payload = mask + 4;
        for (size_t i = 0; i < length; i++) payload[i] ^= mask[i & 3];
        int opcode = p[0] & 15;
        if (opcode == CLOSE) return false;
        if (opcode == PING) {
            struct buffer pong = {0};
            add_frame(&pong, PONG, (char *)payload, length, NULL);
            write_to(c, pong.data, pong.length);
            release(&pong);
        } else if (opcode == TEXT) {
            publish((char *)payload, length);
        }
        at += head + 4 + length;
    }
    consume(&c->in, at);
    /* Idle connections hold no buffers. */
    if (!c->in.length) release(&c->in);
    return true;
}

static void readable(struct connection *c) {
    ssize_t length = recv(c->fd, read_buffer, sizeof read_buffer, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0) { hang_up(c); return; }
    append(&c->in, read_buffer, length);
    if (!c->upgraded && !upgrade(c)) { hang_up(c); return; }
    if (c->upgraded && c->in.length && !frames(c)) hang_up(c);
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd, c->topic = -1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int argc, char **argv) {
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("epollserver");
        return 1;
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) { accept_all(listener); continue; }
            if (c->fd >= 0 && events[i].events & EPOLLOUT) write_rest(c);
            if (c->fd >= 0 && events[i].events & ~EPOLLOUT) readable(c);
        }
        end_turn();
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c && c->fd < 0) free(c);
        }
    }
}
