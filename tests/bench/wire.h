/*
 * What the load client and the bare server share: growing buffers, and the writing of WebSocket frames.
 */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum opcode { TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

struct buffer {
    char *data;
    size_t length, capacity;
};

static inline void append(struct buffer *buffer, const void *data, size_t length) {
    if (buffer->length + length > buffer->capacity) {
        buffer->capacity = (buffer->length + length) * 2;
        buffer->data = realloc(buffer->data, buffer->capacity);
        if (!buffer->data) {
            fputs("out of memory\n", stderr);
            exit(1);
        }
    }
    memcpy(buffer->data + buffer->length, data, length);
    buffer->length += length;
}

static inline void append_text(struct buffer *buffer, const char *text) { append(buffer, text, strlen(text)); }

/* Take so many bytes from the front. */
static inline void consume(struct buffer *buffer, size_t length) {
    buffer->length -= length;
    memmove(buffer->data, buffer->data + length, buffer->length);
}

static inline void release(struct buffer *buffer) {
    free(buffer->data);
    *buffer = (struct buffer){0};
}

/* How many bytes follow the first two of a frame, for a payload length of seven bits (RFC 6455 §5.2). */
static inline size_t extended_size(int length) { return length == 126 ? 2 : length == 127 ? 8 : 0; }

/* A frame that is not fragmented; masked with four bytes, as a client has to, or not for NULL. */
static inline void add_frame(struct buffer *out, enum opcode opcode, const char *data, size_t length,
                             const uint8_t *mask) {
    uint8_t head[14] = {0x80 | opcode, length < 126 ? length : length < 65536 ? 126 : 127};
    size_t size = 2 + extended_size(head[1]);
    for (size_t i = 2; i < size; i++) head[i] = (uint64_t)length >> 8 * (size - 1 - i);
    if (mask) {
        head[1] |= 0x80;
        memcpy(head + size, mask, 4);
        size += 4;
    }
    append(out, head, size);
    append(out, data, length);
    char *payload = out->data + out->length - length;
    for (size_t i = 0; mask && i < length; i++) payload[i] ^= mask[i & 3];
}
