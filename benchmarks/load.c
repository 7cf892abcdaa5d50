/* A Foo client that loads a server or a proxy and checks every byte of every reply.
 *
 *     load --port P [--host A] [--mode steady|connect|idle] [--connections N] [--inflight W] [--size BYTES]
 *          [--milliseconds MS] [--requests N] [--warmup N] [--nak K] [--timeout S]
 *
 * steady   keeps W requests in flight on each of N connections
 * connect  keeps N connections busy, each: connect, one request, its reply, close
 * idle     opens N connections and holds them, then asks each once more, to see that all are alive
 *
 * steady and idle open their connections first, with --warmup requests on each, so that all legs stand.  Then `ready` is
 * printed, a line or the end of standard input is awaited, the measured part runs for --milliseconds or until --requests are
 * answered, and one line of JSON is printed.  A wrong reply, a lost connection or --timeout is one line of error and a
 * non-zero exit.
 *
 * What must come back is known to the byte (--nak K: see server.c), so replies are compared as a stream, never stored.
 * Payloads are windows of one pattern that move with connection and seq: those of another message do not pass.
 */
#include "wire.h"

#include "histogram.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <sys/epoll.h>

enum { EVENTS = 512, OPENING = 64, PATTERN = 64, HEAD_SIZE = 32, SHOWN = 60 };

struct conn {
    int fd;
    bool writing;
    uint64_t id, sent, done, goal;
    size_t at;       /* bytes seen of the reply that is due */
    uint64_t *since; /* when each request in flight was sent */
    struct buf out;
};

static enum mode { STEADY, CONNECT, IDLE } mode;
static const char *host = "127.0.0.1", *mode_name = "steady";
static uint64_t port, connections = 1, inflight = 1, size = 32, milliseconds, requests, warmup = 1, nak, timeout = 60;

static struct sockaddr_in target;
static int poller;
static char chunk[READ_SIZE], *pattern;
static struct conn *conns;
static uint64_t opened, asked, acks, naks, in_flight, deadline;
static bool measuring, stopping;
static struct histogram latency;

static size_t put_head(char *to, const char *type, uint64_t seq)
{
    char digits[20];
    size_t n = 0, length = 4;
    memcpy(to, type, 4);
    do
        digits[n++] = (char)('0' + seq % 10);
    while (seq /= 10);
    while (n)
        to[length++] = digits[--n];
    to[length++] = ' ';
    return length;
}

static const char *payload(const struct conn *c, uint64_t seq)
{
    return pattern + (c->id * 13 + seq) % PATTERN;
}

/* Queue as many requests as the window, the goal and the limits of the run allow, and send them. */
static void pump(struct conn *c)
{
    uint64_t now = now_ns();
    while (!stopping && c->sent < c->goal && c->sent - c->done < inflight) {
        c->since[c->sent % inflight] = now;
        char *to = buf_room(&c->out, HEAD_SIZE + size + 1);
        size_t head = put_head(to, "REQ ", ++c->sent);
        memcpy(to + head, payload(c, c->sent), size);
        to[head + size] = '\n';
        c->out.len += head + size + 1;
        asked++;
        in_flight++;
        stopping = measuring && requests && latency.count + in_flight >= requests;
    }
    if (!buf_send(&c->out, c->fd))
        die("load: connection %lu: cannot send: %s", c->id, strerror(errno));
    bool more = c->out.head < c->out.len;
    if (more != c->writing) {
        struct epoll_event event = {.events = more ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
        c->writing = more;
    }
}

static void open_one(struct conn *c)
{
    uint64_t began = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || (connect(c->fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS))
        die("load: connection %lu: cannot connect: %s", opened + 1, strerror(errno));
    no_delay(c->fd);
    c->id = ++opened;
    c->sent = c->done = c->at = 0;
    c->writing = false;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    pump(c); /* on loopback the connection stands by now; if not, what could not be sent waits */
    c->since[0] = began;
}

static void answered(struct conn *c, uint64_t now, bool is_nak)
{
    if (measuring)
        record(&latency, now - c->since[c->done % inflight]);
    c->done++;
    c->at = 0;
    in_flight--;
    *(is_nak ? &naks : &acks) += 1;
}

/* Compare what arrived with what must: the head, the payload and the newline of one reply after another. */
static void check(struct conn *c, const char *p, size_t n)
{
    uint64_t now = now_ns();
    while (n) {
        char head[HEAD_SIZE];
        uint64_t seq = c->done + 1;
        bool is_nak = nak && seq % nak == 0;
        size_t length = put_head(head, is_nak ? "NAK " : "ACK ", seq), left;
        const char *due;
        if (c->at < length)
            due = head + c->at, left = length - c->at;
        else if (c->at < length + size)
            due = payload(c, seq) + (c->at - length), left = length + size - c->at;
        else
            due = "\n", left = 1;
        size_t part = n < left ? n : left;
        int shown = n < SHOWN ? (int)n : SHOWN;
        if (c->done == c->sent)
            die("load: connection %lu: a reply nobody asked for: \"%.*s\"", c->id, shown, p);
        if (memcmp(p, due, part))
            die("load: connection %lu: wrong reply to request %lu at byte %zu: expected \"%.*s\", got \"%.*s\"", c->id,
                seq, c->at, (int)(part < SHOWN ? part : SHOWN), due, shown, p);
        c->at += part, p += part, n -= part;
        if (c->at > length + size)
            answered(c, now, is_nak);
    }
}

static void serve(struct conn *c, uint32_t events)
{
    if (events & ~(uint32_t)EPOLLOUT) {
        ssize_t n = recv(c->fd, chunk, sizeof chunk, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            die("load: connection %lu: lost with %lu requests unanswered: %s", c->id, c->sent - c->done,
                n ? strerror(errno) : "closed by the other side");
        if (n > 0)
            check(c, chunk, (size_t)n);
    }
    if (mode == CONNECT && c->done == 1) {
        close(c->fd);
        if (!stopping)
            open_one(c);
        return;
    }
    pump(c);
    if (!measuring && c->done == c->goal && opened < connections)
        open_one(&conns[opened]);
}

static void run(void)
{
    struct epoll_event events[EVENTS];
    while (in_flight) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        if (deadline && now_ns() > deadline)
            stopping = true;
        for (int i = 0; i < n; i++)
            serve(events[i].data.ptr, events[i].events);
    }
}

static void prepare(void)
{
    target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (!inet_aton(host, &target.sin_addr))
        die("load: --host wants an IPv4 address, not \"%s\"", host);
    poller = epoll_create1(EPOLL_CLOEXEC);
    pattern = malloc(size + PATTERN);
    conns = calloc(connections, sizeof *conns);
    uint64_t *since = calloc(connections * inflight, sizeof *since);
    if (!pattern || !conns || !since)
        die("out of memory");
    for (size_t i = 0; i < size + PATTERN; i++)
        pattern[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[i % PATTERN];
    for (uint64_t i = 0; i < connections; i++) {
        conns[i].since = since + i * inflight;
        conns[i].goal = mode == CONNECT ? 1 : warmup;
    }
}

static void measure(void)
{
    for (char c = 0; c != '\n' && read(0, &c, 1) == 1;)
        ;
    uint64_t began = now_ns();
    deadline = milliseconds ? began + milliseconds * 1000000u : 0;
    measuring = true;
    for (uint64_t i = 0; i < connections && !stopping; i++) {
        if (mode != CONNECT)
            conns[i].goal = mode == IDLE ? conns[i].sent + 1 : UINT64_MAX;
        mode == CONNECT ? open_one(&conns[i]) : pump(&conns[i]);
    }
    run();
    double took = (double)(now_ns() - began) / 1e9;
    stopping = true;
    for (uint64_t i = 0; mode != CONNECT && i < connections; i++)
        serve(&conns[i], EPOLLIN); /* nothing may be left to read, no connection lost */
    printf("{\"connections\": %lu, \"requests\": %lu, \"acks\": %lu, \"naks\": %lu, \"measured\": %lu, \"seconds\": %.6f, "
           "\"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, \"max_us\": %.3f}\n",
           opened, asked, acks, naks, latency.count, took, percentile_us(&latency, 0.5), percentile_us(&latency, 0.99),
           percentile_us(&latency, 0.999), (double)latency.slowest / 1e3);
}

static void gave_up(int signal)
{
    (void)signal;
    dprintf(2, "load: gave up after %lu s with %lu requests unanswered\n", timeout, in_flight);
    _exit(1);
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", 1, NULL, 0}, {"mode", 1, NULL, 0}, {"port", 1, NULL, 0}, {"connections", 1, NULL, 0},
        {"inflight", 1, NULL, 0}, {"size", 1, NULL, 0}, {"milliseconds", 1, NULL, 0}, {"requests", 1, NULL, 0},
        {"warmup", 1, NULL, 0}, {"nak", 1, NULL, 0}, {"timeout", 1, NULL, 0}, {0}};
    uint64_t *const numbers[] = {&port, &connections, &inflight, &size, &milliseconds, &requests, &warmup, &nak, &timeout};
    static const char *const modes[] = {"steady", "connect", "idle"};
    for (int option, at; (option = getopt_long(argc, argv, "", options, &at)) != -1;) {
        if (option == '?')
            exit(2);
        if (at < 2)
            *(at ? &mode_name : &host) = optarg;
        else
            *numbers[at - 2] = number(options[at].name, optarg);
    }
    for (mode = STEADY; strcmp(modes[mode], mode_name); mode++)
        if (mode == IDLE)
            die("load: --mode wants steady, connect or idle, not \"%s\"", mode_name);
    if (!port || !connections || !inflight || !warmup)
        die("load: --port, --connections, --inflight and --warmup want at least 1");
    if (mode != IDLE && !milliseconds && !requests)
        die("load: --milliseconds or --requests is needed");
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    prepare();
    die_with_parent();
    signal(SIGALRM, gave_up);
    alarm((unsigned)timeout);
    for (uint64_t i = 0; mode != CONNECT && i < connections && i < OPENING; i++)
        open_one(&conns[i]);
    run();
    puts("ready");
    fflush(stdout);
    measure();
    return 0;
}
