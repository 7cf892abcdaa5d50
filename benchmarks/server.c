/* A Foo server that is never the bottleneck: one thread, epoll, batched reads and writes.
 *
 *     server [--port P] [--nak K]
 *
 * Listens on 127.0.0.1 (port 0: a free one) and prints the port.  Answers each `REQ seq data` with `ACK seq data`, in order;
 * with --nak K, a seq that K divides gets NAK instead, so that a client can know the type it must be given.
 * A line that is no request gets `NAK 0 ERRDECODE`.  A connection whose replies cannot be sent is not read until they are.
 * After a client's FIN the replies still due are sent and the connection is closed.
 */
#include "wire.h"

#include <getopt.h>
#include <sys/epoll.h>

enum { BACKLOG = 4096, EVENTS = 512, LONGEST_LINE = 64 << 20 };

struct conn {
    int fd;
    bool ending, writing;
    struct buf line; /* the beginning of a line whose end has not come */
    struct buf out;  /* replies the kernel did not take */
};

static int poller;
static uint64_t nak;
static char chunk[READ_SIZE];
static struct buf replies; /* those to the chunk at hand */

static bool blank(char c)
{
    return c == ' ' || c == '\t';
}

/* The absolute value of the seq of the request `line` (its end is excluded); false when it is none. */
static bool request_seq(const char *line, const char *end, uint64_t *seq)
{
    if (end - line < 5 || memcmp(line, "REQ", 3) || !blank(line[3]))
        return false;
    const char *p = line + 4;
    while (p < end && blank(*p))
        p++;
    if (p < end && (*p == '+' || *p == '-'))
        p++;
    const char *digits = p;
    *seq = 0;
    while (p < end && *p >= '0' && *p <= '9')
        *seq = *seq * 10 + (uint64_t)(*p++ - '0');
    return p > digits && (p == end || blank(*p) || (*p == '\r' && p + 1 == end));
}

static void answer(const char *line, const char *end)
{
    static const char error[] = "NAK 0 ERRDECODE\n";
    uint64_t seq;
    if (!request_seq(line, end, &seq)) {
        buf_add(&replies, error, sizeof error - 1);
        return;
    }
    size_t size = (size_t)(end - line) + 1; /* its newline too */
    char *reply = buf_room(&replies, size);
    memcpy(reply, line, size);
    memcpy(reply, nak && seq % nak == 0 ? "NAK" : "ACK", 3);
    replies.len += size;
}

/* Answer the whole lines from `p` to `end`; gives where the unfinished one starts. */
static const char *answer_lines(const char *p, const char *end)
{
    const char *newline;
    while (p < end && (newline = memchr(p, '\n', (size_t)(end - p)))) {
        answer(p, newline);
        p = newline + 1;
    }
    return p;
}

static void take(struct conn *c, const char *p, size_t n)
{
    const char *end = p + n;
    if (c->line.len) {
        const char *newline = memchr(p, '\n', n);
        const char *stop = newline ? newline + 1 : end;
        buf_add(&c->line, p, (size_t)(stop - p));
        p = stop;
        if (newline) {
            answer_lines(c->line.p, c->line.p + c->line.len);
            buf_free(&c->line);
        }
    }
    p = answer_lines(p, end);
    if (p < end)
        buf_add(&c->line, p, (size_t)(end - p));
    if (c->line.len > LONGEST_LINE)
        c->ending = true;
}

static void finish(struct conn *c)
{
    close(c->fd);
    buf_free(&c->line);
    buf_free(&c->out);
    free(c);
}

/* Read or write, whichever is wanted: while there is something to write, nothing is read. */
static void serve(struct conn *c)
{
    bool ok = true;
    if (c->writing) {
        ok = buf_send(&c->out, c->fd);
    } else {
        ssize_t n = recv(c->fd, chunk, sizeof chunk, 0);
        if (n > 0) {
            replies.head = replies.len = 0;
            take(c, chunk, (size_t)n);
            ok = buf_send(&replies, c->fd);
            if (replies.head < replies.len)
                buf_add(&c->out, replies.p + replies.head, replies.len - replies.head);
        } else if (n == 0) {
            c->ending = true;
        } else {
            ok = errno == EAGAIN || errno == EINTR;
        }
    }
    bool more = c->out.head < c->out.len;
    if (!ok || (c->ending && !more)) {
        finish(c);
        return;
    }
    if (more != c->writing) {
        struct epoll_event event = {.events = more ? EPOLLOUT : EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
        c->writing = more;
        if (!more)
            buf_free(&c->out);
    }
}

static void accept_some(int listener)
{
    for (int i = 0; i < EVENTS; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE)
                die("server: cannot accept: %s", strerror(errno));
            return;
        }
        no_delay(fd);
        struct conn *c = calloc(1, sizeof *c);
        if (!c)
            die("out of memory");
        c->fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static int listen_on(uint16_t port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, BACKLOG) ||
        getsockname(fd, (struct sockaddr *)&address, &size))
        die("server: cannot listen on port %u: %s", port, strerror(errno));
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'}, {"nak", required_argument, NULL, 'k'}, {0}};
    uint64_t port = 0;
    for (int option, at; (option = getopt_long(argc, argv, "", options, &at)) != -1;) {
        if (option == '?')
            return 2;
        *(option == 'p' ? &port : &nak) = number(options[at].name, optarg);
    }
    die_with_parent();
    int listener = listen_on((uint16_t)port);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr)
                serve(events[i].data.ptr);
            else
                accept_some(listener);
        }
    }
}
