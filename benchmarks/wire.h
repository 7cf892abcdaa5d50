/* What the load generator and the server of the benchmarks share: a byte buffer, sockets, the clock, an end.
 *
 * Both are single-threaded, read as much as there is and write once per readiness.  This file knows nothing of the
 * Foo protocol.
 */
#ifndef WIRE_H
#define WIRE_H

#define _GNU_SOURCE /* accept4 */

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 256 << 10 };

/* Bytes from `head` to `len` are to be sent. */
struct buf {
    char *p;
    size_t head, len, cap;
};

/* End with one line of error; bytes of the wire in it are shown so that it stays one line. */
__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (const char *c = text; *c; c++)
        fprintf(stderr, (unsigned char)*c < ' ' ? "\\x%02x" : "%c", *c);
    fputc('\n', stderr);
    exit(1);
}

/* Make room for `n` more bytes and give the place to write them; the caller adds to `len`. */
static inline char *buf_room(struct buf *b, size_t n)
{
    if (b->head == b->len)
        b->head = b->len = 0;
    if (b->head && b->cap - b->len < n) {
        b->len -= b->head;
        memmove(b->p, b->p + b->head, b->len);
        b->head = 0;
    }
    if (b->cap - b->len < n) {
        b->cap = (b->len + n) * 2;
        b->p = realloc(b->p, b->cap);
        if (!b->p)
            die("out of memory");
    }
    return b->p + b->len;
}

static inline void buf_add(struct buf *b, const void *from, size_t n)
{
    memcpy(buf_room(b, n), from, n);
    b->len += n;
}

static inline void buf_free(struct buf *b)
{
    free(b->p);
    *b = (struct buf){0};
}

/* Send once what `b` holds; false when the connection is broken (errno tells). */
static inline bool buf_send(struct buf *b, int fd)
{
    if (b->head == b->len)
        return true;
    ssize_t n = send(fd, b->p + b->head, b->len - b->head, MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    b->head += (size_t)n;
    return true;
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void no_delay(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* Whoever started us going away, even by SIGKILL, ends us too. */
static inline void die_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
}

/* A whole number of an option, or an end that names the option. */
static inline uint64_t number(const char *option, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        die("--%s wants a whole number, not \"%s\"", option, text);
    return value;
}

#endif
