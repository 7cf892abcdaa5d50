/* The innermost loop, compiled: twin of pump.py's Pump, whose rules it follows.

   It reads all chunks of a batch of events, counts each as it is read, and then writes all.  A large chunk is written
   before the next read.  Nothing here calls Python per chunk; whatever it cannot do itself, it returns to the poller.

   Unlike its twin, it can also poll for further batches by itself (`go_on`), which saves the poller's work for each. */

#include "pump.h"

#include "../foo/counting.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum {
    SMALLEST_READ = 1 << 12,
    LARGEST_READ = 1 << 18,
    FAIR_READ = 1 << 16,
    BATCH_BYTES = 1 << 20,
    GROWTH = 8,
    SHRINKAGE = 6,
    LARGE = 4096,
    LINE = 64 /* bytes of a cache line; chunks begin at multiples of this */
};

typedef struct {
    Analyzer *tap;
    PyObject *sink;
} Source;

/* A chunk that was read but not written yet; it holds references to both objects. */
typedef struct {
    Analyzer *tap;
    PyObject *sink;
    const char *chunk;
    size_t size;
} Pending;

typedef struct {
    PyObject_HEAD
    PyObject *clock; /* None: the monotonic clock */
    PyObject *loss, *done;
    Source *sources; /* by file descriptor */
    Py_ssize_t most; /* the number of entries in `sources` */
    struct epoll_event *events;
    Pending *pending;
    char *arena;
    Py_ssize_t batch; /* the number of events that `events`, `pending` and `arena` have room for */
    Py_ssize_t number; /* the number of events in the batch that is being relayed */
    bool relaying;
} Pump;

static PyObject *
pump_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"clock", "loss", "done", NULL};
    PyObject *clock, *loss, *done;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:Pump", names, &clock, &loss, &done))
        return NULL;
    Pump *self = (Pump *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->clock = Py_NewRef(clock);
        self->loss = Py_NewRef(loss);
        self->done = Py_NewRef(done);
    }
    return (PyObject *)self;
}

static int
pump_traverse(Pump *self, visitproc visit, void *arg)
{
    Py_VISIT(self->clock);
    Py_VISIT(self->loss);
    Py_VISIT(self->done);
    for (Py_ssize_t fd = 0; fd < self->most; fd++) {
        Py_VISIT(self->sources[fd].tap);
        Py_VISIT(self->sources[fd].sink);
    }
    return 0;
}

static int
pump_clear(Pump *self)
{
    Py_CLEAR(self->clock);
    Py_CLEAR(self->loss);
    Py_CLEAR(self->done);
    for (Py_ssize_t fd = 0; fd < self->most; fd++) {
        Py_CLEAR(self->sources[fd].tap);
        Py_CLEAR(self->sources[fd].sink);
    }
    return 0;
}

static void
pump_dealloc(Pump *self)
{
    PyObject_GC_UnTrack(self);
    pump_clear(self);
    PyMem_Free(self->sources);
    PyMem_Free(self->events);
    PyMem_Free(self->pending);
    PyMem_RawFree(self->arena);
    Py_TYPE(self)->tp_free(self);
}

static bool
stop(Pump *self, long fd)
{
    if (fd < 0 || fd >= self->most || self->sources[fd].tap == NULL)
        return true;
    Source source = self->sources[fd];
    self->sources[fd] = (Source){NULL, NULL};
    bool done = PyObject_SetAttrString(source.sink, "inflow", Py_None) == 0;
    Py_DECREF(source.tap);
    Py_DECREF(source.sink);
    return done;
}

static PyObject *
pump_start(Pump *self, PyObject *args)
{
    int fd;
    PyObject *sink, *tap;
    if (!PyArg_ParseTuple(args, "iOO!:start", &fd, &sink, &Analyzer_Type, &tap))
        return NULL;
    if (fd < 0) {
        PyErr_SetString(PyExc_ValueError, "a negative file descriptor");
        return NULL;
    }
    if (fd >= self->most) {
        Py_ssize_t most = fd < 64 ? 64 : (Py_ssize_t)fd * 2;
        Source *sources = PyMem_Realloc(self->sources, (size_t)most * sizeof(Source));
        if (sources == NULL)
            return PyErr_NoMemory();
        memset(sources + self->most, 0, (size_t)(most - self->most) * sizeof(Source));
        self->sources = sources;
        self->most = most;
    }
    if (!stop(self, fd) || PyObject_SetAttrString(sink, "inflow", tap) < 0)
        return NULL;
    ((Analyzer *)tap)->room = SMALLEST_READ;
    self->sources[fd] = (Source){(Analyzer *)Py_NewRef(tap), Py_NewRef(sink)};
    Py_RETURN_NONE;
}

static PyObject *
pump_stop(Pump *self, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    if ((fd == -1 && PyErr_Occurred()) || !stop(self, fd))
        return NULL;
    Py_RETURN_NONE;
}

/* Make room for a batch of `events` events. */
static bool
make_room(Pump *self, Py_ssize_t events)
{
    if (events <= self->batch)
        return true;
    struct epoll_event *list = PyMem_Realloc(self->events, (size_t)events * sizeof(struct epoll_event));
    if (list != NULL)
        self->events = list;
    Pending *pending = PyMem_Realloc(self->pending, (size_t)events * sizeof(Pending));
    if (pending != NULL)
        self->pending = pending;
    /* Small chunks stay here until all events have been read; even the last read must have room for a large chunk. */
    char *arena = PyMem_RawRealloc(self->arena, (size_t)events * (LARGE + LINE) + LARGEST_READ);
    if (arena != NULL)
        self->arena = arena;
    if (list == NULL || pending == NULL || arena == NULL) {
        PyErr_NoMemory();
        return false;
    }
    self->batch = events;
    return true;
}

/* Append a tuple to a list; steals the reference to the tuple, which may be NULL after an error. */
static bool
append(PyObject *list, PyObject *tuple)
{
    bool done = tuple != NULL && PyList_Append(list, tuple) == 0;
    Py_XDECREF(tuple);
    return done;
}

/* Return why the connection of `fd` is lost, after a read or a write that failed. */
static PyObject *
why_lost(Pump *self, int fd)
{
    int number = errno;
    PyObject *error = PyObject_CallFunction(PyExc_OSError, "is", number, strerror(number));
    PyObject *why = error == NULL ? NULL : PyObject_CallFunction(self->loss, "Oi", error, fd);
    Py_XDECREF(error);
    return why;
}

/* Write the first `length` pending chunks, and append the data that could not be written to `stuck`.  If there is no
   memory for that, the other chunks are still written before the call fails.  Once anything has failed, nothing more is
   appended: nobody would get it, and Python must not be called with an exception set. */
static bool
write_all(Pump *self, Py_ssize_t length, PyObject *stuck)
{
    bool done = true;
    for (Py_ssize_t place = 0; place < length; place++) {
        Pending *chunk = &self->pending[place];
        int outlet = chunk->tap->outlet;
        ssize_t sent = outlet < 0 ? 0 : send(outlet, chunk->chunk, chunk->size, MSG_NOSIGNAL);
        if (sent == (ssize_t)chunk->size || PyErr_Occurred())
            continue;
        PyObject *why = Py_NewRef(Py_None);
        if (sent < 0) {
            if (errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS)
                Py_SETREF(why, why_lost(self, outlet));
            sent = 0;
        }
        done = why != NULL
               && append(stuck, Py_BuildValue("(Oy#N)", chunk->sink, chunk->chunk + sent,
                                              (Py_ssize_t)(chunk->size - (size_t)sent), why));
    }
    for (Py_ssize_t place = 0; place < length; place++) {
        Py_DECREF(self->pending[place].tap);
        Py_DECREF(self->pending[place].sink);
    }
    return done;
}

static bool
later(Pump *self, int64_t *now)
{
    int64_t then;
    if (self->clock == Py_None) {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        then = (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
    } else {
        PyObject *time = PyObject_CallNoArgs(self->clock);
        if (time == NULL)
            return false;
        then = PyLong_AsLongLong(time);
        Py_DECREF(time);
        if (then == -1 && PyErr_Occurred())
            return false;
    }
    *now = then > *now ? then : *now + 1;
    return true;
}

/* Make a batch from a Python list, whose items are pairs of a file descriptor and its events. */
static bool
take_events(Pump *self, PyObject *events)
{
    Py_ssize_t number = PyList_GET_SIZE(events);
    if (!make_room(self, number))
        return false;
    for (Py_ssize_t place = 0; place < number; place++) {
        PyObject *event = PyList_GET_ITEM(events, place);
        /* Plain integers, since the conversion of anything else calls Python, which may change the list. */
        if (!PyTuple_Check(event) || PyTuple_GET_SIZE(event) != 2 || !PyLong_CheckExact(PyTuple_GET_ITEM(event, 0))
            || !PyLong_CheckExact(PyTuple_GET_ITEM(event, 1))) {
            PyErr_SetString(PyExc_TypeError, "an event is a pair of integers: a file descriptor and its events");
            return false;
        }
        long fd = PyLong_AsLong(PyTuple_GET_ITEM(event, 0)), what = PyLong_AsLong(PyTuple_GET_ITEM(event, 1));
        if ((fd == -1 || what == -1) && PyErr_Occurred())
            return false;
        if (fd != (int)fd || what != (uint32_t)what) {
            PyErr_SetString(PyExc_OverflowError, "an event has a number out of the kernel's range");
            return false;
        }
        self->events[place].data.fd = (int)fd;
        self->events[place].events = (uint32_t)what;
    }
    return true;
}

static bool
is_source(Pump *self, int fd)
{
    return fd >= 0 && fd < self->most && self->sources[fd].tap != NULL;
}

/* Relay a batch of so many events. */
static bool
relay(Pump *self, Py_ssize_t number, int64_t now, PyObject *ends, PyObject *others, PyObject *stuck)
{
    Py_ssize_t length = 0;
    size_t used = 0;
    bool done = true;
    self->number = number;
    int most = number ? (int)(BATCH_BYTES / number) : LARGEST_READ;
    most = most < FAIR_READ ? FAIR_READ : most > LARGEST_READ ? LARGEST_READ : most;
    for (Py_ssize_t place = 0; done && place < number; place++) {
        int fd = self->events[place].data.fd;
        uint32_t what = self->events[place].events;
        if (what != EPOLLIN || !is_source(self, fd)) {
            done = append(others, Py_BuildValue("(iIO)", fd, what, Py_None));
            continue;
        }
        Analyzer *tap = self->sources[fd].tap;
        int room = tap->room < most ? tap->room : most;
        char *chunk = self->arena + used;
        ssize_t size;
        do
            size = recv(fd, chunk, (size_t)room, 0);
        while (size < 0 && errno == EINTR);
        if (size <= 0) {
            if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                continue;
            PyObject *why = size < 0 ? why_lost(self, fd) : Py_NewRef(self->done);
            done = why != NULL && append(ends, Py_BuildValue("(iIN)", fd, what, why));
            continue;
        }
        if (size == room)
            tap->room = room * GROWTH < most ? room * GROWTH : most;
        else if (room > SMALLEST_READ && size < room >> 2)
            tap->room = room - (room >> SHRINKAGE) > SMALLEST_READ ? room - (room >> SHRINKAGE) : SMALLEST_READ;
        count(tap, chunk, (size_t)size, now);
        self->pending[length++] = (Pending){(Analyzer *)Py_NewRef(tap), Py_NewRef(self->sources[fd].sink), chunk,
                                            (size_t)size};
        used += ((size_t)size + LINE - 1) & ~(size_t)(LINE - 1);
        if (size > LARGE) {
            done = write_all(self, length, stuck);
            length = 0;
            used = 0;
            /* A later read may return the reply to what was just written. */
            done = done && later(self, &now);
        }
    }
    return write_all(self, length, stuck) && done;
}

/* The events and data that relaying leaves to the poller. */
typedef struct {
    PyObject *ends, *others, *stuck;
} Rest;

static void
drop(Rest *rest)
{
    Py_XDECREF(rest->ends);
    Py_XDECREF(rest->others);
    Py_XDECREF(rest->stuck);
}

static bool
begin(Pump *self, Rest *rest)
{
    if (self->relaying) {
        PyErr_SetString(PyExc_RuntimeError, "relay was called from within itself");
        return false;
    }
    *rest = (Rest){PyList_New(0), PyList_New(0), PyList_New(0)};
    self->number = 0;
    self->relaying = rest->ends != NULL && rest->others != NULL && rest->stuck != NULL;
    if (!self->relaying)
        drop(rest);
    return self->relaying;
}

/* Return the rest, with the time of the last batch unless `now` is NULL. */
static PyObject *
finish(Pump *self, Rest *rest, bool done, const int64_t *now)
{
    PyObject *result = NULL;
    Py_ssize_t number = PyList_GET_SIZE(rest->ends);
    if (done && PyList_SetSlice(rest->ends, number, number, rest->others) == 0)
        result = now == NULL ? PyTuple_Pack(2, rest->ends, rest->stuck)
                             : Py_BuildValue("OOL", rest->ends, rest->stuck, (long long)*now);
    self->relaying = false;
    drop(rest);
    return result;
}

static PyObject *
pump_relay(Pump *self, PyObject *args)
{
    PyObject *events;
    long long now;
    Rest rest;
    if (!PyArg_ParseTuple(args, "O!L:relay", &PyList_Type, &events, &now))
        return NULL;
    if (!begin(self, &rest))
        return NULL;
    bool done = take_events(self, events)
                && relay(self, PyList_GET_SIZE(events), now, rest.ends, rest.others, rest.stuck);
    return finish(self, &rest, done, NULL);
}

/* Relay further batches after the one at the time `last`, until `end`, as long as each comes within `patience`
   milliseconds and has only chunks to relay.  Any other batch is left to the next poll, since epoll reports unread data
   again; so is a batch that comes after a `silence`. */
static PyObject *
pump_go_on(Pump *self, PyObject *args)
{
    int epoll, most, patience;
    long long last, end, silence;
    Rest rest;
    if (!PyArg_ParseTuple(args, "iiiLLL:go_on", &epoll, &most, &patience, &last, &end, &silence))
        return NULL;
    if (!begin(self, &rest))
        return NULL;
    int64_t now = last;
    bool done = make_room(self, most);
    while (done && now <= end) {
        int64_t left = (end - now + 999) / 1000;
        int number, wait = left < patience ? (int)left : patience;
        self->number = 0;
        Py_BEGIN_ALLOW_THREADS
        number = epoll_wait(epoll, self->events, most, wait);
        Py_END_ALLOW_THREADS
        bool is_relayed = number > 0;
        for (int place = 0; is_relayed && place < number; place++)
            is_relayed = self->events[place].events == EPOLLIN && is_source(self, self->events[place].data.fd);
        if (!is_relayed)
            break;
        int64_t then = now;
        done = later(self, &then);
        if (!done || then - now > silence)
            break;
        now = then;
        done = relay(self, number, now, rest.ends, rest.others, rest.stuck);
        if (PyList_GET_SIZE(rest.ends) || PyList_GET_SIZE(rest.stuck))
            break;
    }
    return finish(self, &rest, done, &now);
}

/* Return the events of the last batch, after it failed. */
static PyObject *
pump_batch(Pump *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *events = PyList_New(0);
    for (Py_ssize_t place = 0; events != NULL && place < self->number; place++)
        if (!append(events, Py_BuildValue("(iI)", self->events[place].data.fd, self->events[place].events)))
            Py_CLEAR(events);
    return events;
}

static PyMethodDef pump_methods[] = {
    {"start", (PyCFunction)pump_start, METH_VARARGS, NULL},
    {"stop", (PyCFunction)pump_stop, METH_O, NULL},
    {"relay", (PyCFunction)pump_relay, METH_VARARGS, NULL},
    {"go_on", (PyCFunction)pump_go_on, METH_VARARGS, NULL},
    {"batch", (PyCFunction)pump_batch, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject Pump_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fooproxy._core.Pump",
    .tp_doc = PyDoc_STR("Relays from each source to its sink and counts: twin of fooproxy.net.pump.Pump."),
    .tp_basicsize = sizeof(Pump),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = pump_new,
    .tp_traverse = (traverseproc)pump_traverse,
    .tp_clear = (inquiry)pump_clear,
    .tp_dealloc = (destructor)pump_dealloc,
    .tp_methods = pump_methods,
};
