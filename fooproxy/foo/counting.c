/* Counts messages and matches replies with requests: the compiled twins of analyzer.py's and latency.py's classes.

   It repeats their rules, not the grammar: grammar.py derives an automaton from the grammar, and `count` runs it over
   each chunk at once, not in batches.  Nothing here can fail once an object exists: without memory, the chunks of open
   requests are no longer kept apart, and a session's own histogram misses a latency. */

#include "counting.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

/* The places of Latency's numbers; the module exports their names, and a test compares them. */
enum { ASKED, GIVEN_UP, UNMATCHED, LATE_REPLIES, SUM, LONGEST, REPLIED, SEEN, FIRST_BUCKET };

#define LONGEST_LATENCY (((int64_t)1 << 27) - 1)
#define BUCKETS 384
#define MOST_OPEN 256
#define LATE ((int64_t)1 << 62)

static int
bucket(int64_t microseconds)
{
    if (microseconds < 32)
        return (int)microseconds;
    int shift = 59 - __builtin_clzll((unsigned long long)microseconds);
    return (shift << 4) + (int)(microseconds >> shift);
}

/* Row */

static PyObject *
row_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"numbers", "start", "size", NULL};
    PyObject *numbers;
    Py_ssize_t start, size;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Onn:Row", names, &numbers, &start, &size))
        return NULL;
    Row *self = (Row *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (PyObject_GetBuffer(numbers, &self->view, PyBUF_CONTIG | PyBUF_FORMAT) < 0) {
        self->view.obj = NULL;
        Py_DECREF(self);
        return NULL;
    }
    const char *format = self->view.format;
    if (self->view.itemsize != 8 || format == NULL || (strcmp(format, "q") != 0 && strcmp(format, "l") != 0)) {
        PyErr_SetString(PyExc_TypeError, "the numbers are not signed 64-bit integers");
        Py_DECREF(self);
        return NULL;
    }
    if (start < 0 || size < 0 || start > self->view.len / 8 - size) {
        PyErr_SetString(PyExc_ValueError, "the block is not inside the array of numbers");
        Py_DECREF(self);
        return NULL;
    }
    self->numbers = (int64_t *)self->view.buf + start;
    self->size = size;
    return (PyObject *)self;
}

static void
row_dealloc(Row *self)
{
    PyBuffer_Release(&self->view);
    Py_TYPE(self)->tp_free(self);
}

PyTypeObject Row_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fooproxy._core.Row",
    .tp_doc = PyDoc_STR("A block of `size` numbers from place `start` of the array `numbers` on."),
    .tp_basicsize = sizeof(Row),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = row_new,
    .tp_dealloc = (destructor)row_dealloc,
};

/* Return the row of a Block, as a new reference; it has at least `least` numbers. */
static Row *
row_of(PyObject *block, Py_ssize_t least)
{
    PyObject *row = PyObject_GetAttrString(block, "row");
    if (row != NULL && (!Py_IS_TYPE(row, &Row_Type) || ((Row *)row)->size < least)) {
        PyErr_Format(PyExc_TypeError, "the row of a block must be a Row of %zd numbers or more", least);
        Py_CLEAR(row);
    }
    return (Row *)row;
}

/* Exchange */

static Asked *
later(Exchange *self, unsigned position)
{
    return &self->later[(self->first + position) & (self->capacity - 1)];
}

static int64_t
in_flight(Exchange *self)
{
    int64_t requests = self->open;
    for (unsigned position = 0; position < self->length; position++)
        requests += later(self, position)->count;
    return requests;
}

static bool
grow_later(Exchange *self)
{
    unsigned capacity = self->capacity ? self->capacity * 2u : 4;
    Asked *ring = PyMem_Malloc(capacity * sizeof(Asked));
    if (ring == NULL)
        return false;
    for (unsigned position = 0; position < self->length; position++)
        ring[position] = *later(self, position);
    PyMem_Free(self->later);
    self->later = ring;
    self->first = 0;
    self->capacity = (uint16_t)capacity;
    return true;
}

static void
drop_later(Exchange *self)
{
    PyMem_Free(self->later);
    self->later = NULL;
    self->first = self->length = self->capacity = 0;
}

static void
request(Exchange *self, int64_t time, int64_t count)
{
    if (!self->open) {
        self->asked = time;
        self->open = count;
    } else if (self->length < MOST_OPEN && (self->length < self->capacity || grow_later(self))) {
        self->length++;
        *later(self, self->length - 1u) = (Asked){time, count};
    } else {
        if (self->length)
            later(self, self->length - 1u)->count += count;
        else
            self->open += count;
        self->last = time;
    }
}

static void
answered(Exchange *self, int number, int64_t count)
{
    int lowest = self->lowest, end = lowest + self->width;
    if (number < lowest || number >= end) {
        /* Leave some room for the latencies that are likely to follow. */
        int from = self->width && lowest < number ? lowest : number & ~3;
        int to = self->width && end > number ? end : (number | 3) + 1;
        int64_t *buckets = PyMem_Calloc((size_t)(to - from), sizeof(int64_t));
        if (buckets == NULL)
            return;
        if (self->width)
            memcpy(buckets + (lowest - from), self->buckets, self->width * sizeof(int64_t));
        PyMem_Free(self->buckets);
        self->buckets = buckets;
        self->lowest = (uint16_t)from;
        self->width = (uint16_t)(to - from);
    }
    self->buckets[number - self->lowest] += count;
}

static void
reply(Exchange *self, int64_t time, int64_t count)
{
    int64_t *total = self->latency->numbers;
    self->last = time;
    if (count)
        total[REPLIED] = time;
    while (count) {
        if (!self->open || (time <= self->asked && self->asked != LATE)) {
            self->unmatched += count;
            total[UNMATCHED] += count;
            return;
        }
        int64_t matched = count < self->open ? count : self->open;
        count -= matched;
        if (self->asked == LATE) {
            self->late += matched;
            total[LATE_REPLIES] += matched;
        } else {
            /* Any times give a valid bucket, even if the array was overwritten. */
            uint64_t passed = (uint64_t)time - (uint64_t)self->asked;
            int64_t span = passed < LONGEST_LATENCY ? (int64_t)passed : LONGEST_LATENCY;
            if (span > total[LONGEST])
                total[LONGEST] = span;
            int number = bucket(span);
            total[FIRST_BUCKET + number] += matched;
            total[SUM] += span * matched;
            answered(self, number, matched);
        }
        self->open -= matched;
        if (!self->open && self->length) {
            self->asked = later(self, 0)->time;
            self->open = later(self, 0)->count;
            self->first++;
            if (!--self->length && self->capacity > 16)
                drop_later(self);
        }
    }
}

static PyObject *
exchange_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"total", NULL};
    PyObject *total;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:Exchange", names, &total))
        return NULL;
    Row *row = row_of(total, FIRST_BUCKET + BUCKETS);
    if (row == NULL)
        return NULL;
    Exchange *self = (Exchange *)type->tp_alloc(type, 0);
    if (self == NULL)
        Py_DECREF(row);
    else
        self->latency = row;
    return (PyObject *)self;
}

static void
exchange_dealloc(Exchange *self)
{
    PyMem_Free(self->later);
    PyMem_Free(self->buckets);
    Py_XDECREF(self->latency);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *
exchange_request(Exchange *self, PyObject *args)
{
    long long time, count;
    if (!PyArg_ParseTuple(args, "LL:request", &time, &count))
        return NULL;
    request(self, time, count);
    Py_RETURN_NONE;
}

static PyObject *
exchange_reply(Exchange *self, PyObject *args)
{
    long long time, count;
    if (!PyArg_ParseTuple(args, "LL:reply", &time, &count))
        return NULL;
    reply(self, time, count);
    Py_RETURN_NONE;
}

static PyObject *
exchange_cut_short(Exchange *self, PyObject *argument)
{
    long long time = PyLong_AsLongLong(argument);
    if (time == -1 && PyErr_Occurred())
        return NULL;
    self->cut_short++;
    self->latency->numbers[ASKED]++;
    request(self, time, 1);
    Py_RETURN_NONE;
}

/* Count in another block from now on, including the requests in flight. */
static PyObject *
exchange_move(Exchange *self, PyObject *total)
{
    Row *row = row_of(total, FIRST_BUCKET + BUCKETS);
    if (row == NULL)
        return NULL;
    self->latency->numbers[ASKED] -= in_flight(self);
    row->numbers[ASKED] += in_flight(self);
    Py_SETREF(self->latency, row);
    Py_RETURN_NONE;
}

static int64_t
last_request(Exchange *self)
{
    if (self->length)
        return later(self, self->length - 1u)->time;
    return self->asked == LATE ? 0 : self->asked;
}

static PyObject *
exchange_resumed(Exchange *self, PyObject *Py_UNUSED(ignored))
{
    if (self->open) {
        int64_t last = last_request(self);
        if (last > self->last)
            self->last = last;
        self->open = in_flight(self);
        self->asked = LATE;
        drop_later(self);
    }
    Py_RETURN_NONE;
}

/* Replace everything by the state of another exchange: see Waiting.state in latency.py. */
static PyObject *
exchange_restore(Exchange *self, PyObject *args)
{
    PyObject *open, *buckets, *number, *answers;
    long long last, late, unmatched, cut_short;
    if (!PyArg_ParseTuple(args, "O!LLLLO!:restore", &PyList_Type, &open, &last, &late, &unmatched, &cut_short,
                          &PyDict_Type, &buckets))
        return NULL;
    drop_later(self);
    PyMem_Free(self->buckets);
    self->buckets = NULL;
    self->lowest = self->width = 0;
    self->open = self->asked = 0;
    for (Py_ssize_t place = 0; place < PyList_GET_SIZE(open); place++) {
        long long time, count;
        /* To iterate over anything else calls Python, which may change the list. */
        if (!PyList_CheckExact(PyList_GET_ITEM(open, place))) {
            PyErr_SetString(PyExc_TypeError, "an entry of open requests is a list of a time and a count");
            return NULL;
        }
        PyObject *pair = PyList_AsTuple(PyList_GET_ITEM(open, place));
        bool fine = pair != NULL && PyArg_ParseTuple(pair, "LL:restore", &time, &count);
        Py_XDECREF(pair);
        if (!fine)
            return NULL;
        request(self, time, count);
    }
    for (Py_ssize_t position = 0; PyDict_Next(buckets, &position, &number, &answers);) {
        /* The conversion of anything else calls Python, which may change the dictionary. */
        if (!PyLong_CheckExact(number) || !PyLong_CheckExact(answers)) {
            PyErr_SetString(PyExc_TypeError, "the buckets and their counts are integers");
            return NULL;
        }
        long place = PyLong_AsLong(number);
        long long count = PyLong_AsLongLong(answers);
        if (PyErr_Occurred())
            return NULL;
        if (place < 0 || place >= BUCKETS) {
            PyErr_Format(PyExc_ValueError, "there is no bucket %ld", place);
            return NULL;
        }
        answered(self, (int)place, count);
    }
    self->last = last;
    self->late = late;
    self->unmatched = unmatched;
    self->cut_short = (uint16_t)cut_short;
    Py_RETURN_NONE;
}

static PyObject *
exchange_end(Exchange *self, PyObject *Py_UNUSED(ignored))
{
    self->latency->numbers[GIVEN_UP] += in_flight(self);
    Py_RETURN_NONE;
}

static PyObject *
exchange_get_in_flight(Exchange *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(in_flight(self));
}

static PyObject *
exchange_get_settled(Exchange *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(!self->open && !self->unfinished);
}

static PyObject *
exchange_get_last_request(Exchange *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(last_request(self));
}

static PyObject *
exchange_get_buckets(Exchange *self, void *Py_UNUSED(closure))
{
    PyObject *found = PyDict_New();
    for (int place = 0; found != NULL && place < self->width; place++) {
        if (!self->buckets[place])
            continue;
        PyObject *number = PyLong_FromLong(self->lowest + place);
        PyObject *count = PyLong_FromLongLong(self->buckets[place]);
        if (number == NULL || count == NULL || PyDict_SetItem(found, number, count) < 0)
            Py_CLEAR(found);
        Py_XDECREF(number);
        Py_XDECREF(count);
    }
    return found;
}

/* Return the number of requests that have been answered. */
static int64_t
matched(Exchange *self)
{
    int64_t requests = self->late;
    for (int place = 0; place < self->width; place++)
        requests += self->buckets[place];
    return requests;
}

static PyObject *
exchange_get_replies(Exchange *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(matched(self) + self->unmatched);
}

static PyObject *
exchange_get_requests(Exchange *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(matched(self) + in_flight(self) - self->cut_short);
}

/* The later chunks with open requests, in the form of `Exchange.later` in latency.py. */
static PyObject *
exchange_get_later(Exchange *self, void *Py_UNUSED(closure))
{
    PyObject *found = PyList_New(self->length);
    for (unsigned position = 0; found != NULL && position < self->length; position++) {
        Asked *asked = later(self, position);
        PyObject *pair = Py_BuildValue("[LL]", (long long)asked->time, (long long)asked->count);
        if (pair == NULL)
            Py_CLEAR(found);
        else
            PyList_SET_ITEM(found, position, pair);
    }
    return found;
}

static PyMethodDef exchange_methods[] = {
    {"request", (PyCFunction)exchange_request, METH_VARARGS, NULL},
    {"reply", (PyCFunction)exchange_reply, METH_VARARGS, NULL},
    {"cut_short", (PyCFunction)exchange_cut_short, METH_O, NULL},
    {"move", (PyCFunction)exchange_move, METH_O, NULL},
    {"resumed", (PyCFunction)exchange_resumed, METH_NOARGS, NULL},
    {"restore", (PyCFunction)exchange_restore, METH_VARARGS, NULL},
    {"end", (PyCFunction)exchange_end, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef exchange_members[] = {
    {"open", T_LONGLONG, offsetof(Exchange, open), READONLY, NULL},
    {"asked", T_LONGLONG, offsetof(Exchange, asked), READONLY, NULL},
    {"last", T_LONGLONG, offsetof(Exchange, last), READONLY, NULL},
    {"late", T_LONGLONG, offsetof(Exchange, late), READONLY, NULL},
    {"unmatched", T_LONGLONG, offsetof(Exchange, unmatched), READONLY, NULL},
    {"cut", T_USHORT, offsetof(Exchange, cut_short), READONLY, NULL},
    {"unpaired", T_UINT, offsetof(Exchange, unpaired), READONLY, NULL},
    {"special", T_UBYTE, offsetof(Exchange, special), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef exchange_getset[] = {
    {"in_flight", (getter)exchange_get_in_flight, NULL, NULL, NULL},
    {"settled", (getter)exchange_get_settled, NULL, NULL, NULL},
    {"last_request", (getter)exchange_get_last_request, NULL, NULL, NULL},
    {"requests", (getter)exchange_get_requests, NULL, NULL, NULL},
    {"replies", (getter)exchange_get_replies, NULL, NULL, NULL},
    {"buckets", (getter)exchange_get_buckets, NULL, NULL, NULL},
    {"later", (getter)exchange_get_later, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Exchange_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fooproxy._core.Exchange",
    .tp_doc = PyDoc_STR("The open requests of one session: twin of fooproxy.foo.latency.Exchange."),
    .tp_basicsize = sizeof(Exchange),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = exchange_new,
    .tp_dealloc = (destructor)exchange_dealloc,
    .tp_methods = exchange_methods,
    .tp_members = exchange_members,
    .tp_getset = exchange_getset,
};

/* Analysis */

/* Find the canonical heads of four bytes, each a type and a space. */
static void
find_words(Analysis *self)
{
    const uint8_t *transitions = (const uint8_t *)PyBytes_AS_STRING(self->transitions);
    for (Py_ssize_t state = 0; state < PyTuple_GET_SIZE(self->heads) && self->known < WORDS; state++) {
        PyObject *head = PyTuple_GET_ITEM(self->heads, state);
        if (!PyBytes_Check(head) || PyBytes_GET_SIZE(head) != sizeof(uint32_t))
            continue;
        unsigned reached = 0;
        for (size_t byte = 0; byte < sizeof(uint32_t); byte++)
            reached = transitions[reached << 8 | (uint8_t)PyBytes_AS_STRING(head)[byte]];
        if (reached == (unsigned)state) {
            memcpy(&self->words[self->known], PyBytes_AS_STRING(head), sizeof(uint32_t));
            self->after[self->known++] = (uint8_t)reached;
        }
    }
}

static PyObject *
analysis_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"latency", "requests", "total", "settled", "automaton", NULL};
    PyObject *latency, *total, *settled, *automaton, *transitions, *kinds, *heads;
    int requests, absorbing;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OpOO!O!:Analysis", names, &latency, &requests, &total,
                                     &PyList_Type, &settled, &PyTuple_Type, &automaton)
        || !PyArg_ParseTuple(automaton, "SSO!i:Analysis", &transitions, &kinds, &PyTuple_Type, &heads, &absorbing))
        return NULL;
    Py_ssize_t states = PyBytes_GET_SIZE(kinds);
    if (states < 1 || states > 255 || PyBytes_GET_SIZE(transitions) != states * 256 || absorbing < 1
        || absorbing > states || PyTuple_GET_SIZE(heads) != states) {
        PyErr_SetString(PyExc_ValueError, "the tables of the automaton do not fit together");
        return NULL;
    }
    for (Py_ssize_t place = 0; place < states * 256; place++) {
        if ((uint8_t)PyBytes_AS_STRING(transitions)[place] >= states
            || (uint8_t)PyBytes_AS_STRING(kinds)[place >> 8] >= COUNTS
            || ((place & 255) == '\n') != (PyBytes_AS_STRING(transitions)[place] == 0)) {
            PyErr_SetString(PyExc_ValueError, "the automaton leads to no state, or not by a newline to the first");
            return NULL;
        }
    }
    Analysis *self = (Analysis *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->latency = row_of(latency, FIRST_BUCKET + BUCKETS);
    self->total = self->latency ? row_of(total, COUNTS) : NULL;
    if (self->total == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    self->block = Py_NewRef(total);
    self->settled = Py_NewRef(settled);
    self->transitions = Py_NewRef(transitions);
    self->kinds = Py_NewRef(kinds);
    self->heads = Py_NewRef(heads);
    self->absorbing = (uint8_t)absorbing;
    self->requests = requests;
    find_words(self);
    return (PyObject *)self;
}

static void
analysis_dealloc(Analysis *self)
{
    Py_XDECREF(self->total);
    Py_XDECREF(self->latency);
    Py_XDECREF(self->block);
    Py_XDECREF(self->settled);
    Py_XDECREF(self->transitions);
    Py_XDECREF(self->kinds);
    Py_XDECREF(self->heads);
    Py_TYPE(self)->tp_free(self);
}

static PyMemberDef analysis_members[] = {
    {"requests", T_BOOL, offsetof(Analysis, requests), READONLY, NULL},
    {"total", T_OBJECT_EX, offsetof(Analysis, block), READONLY, NULL},
    {"settled", T_OBJECT_EX, offsetof(Analysis, settled), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject Analysis_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fooproxy._core.Analysis",
    .tp_doc = PyDoc_STR("Counts one kind of leg: twin of fooproxy.foo.analyzer.Analysis."),
    .tp_basicsize = sizeof(Analysis),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = analysis_new,
    .tp_dealloc = (destructor)analysis_dealloc,
    .tp_members = analysis_members,
};

/* Analyzer */

/* Return the bit of a leg. */
static uint8_t
leg(const Analyzer *self)
{
    return self->analysis->requests ? 1 : 2;
}

static void
mute(Analyzer *self, bool muted)
{
    uint8_t others = self->exchange->muted & (uint8_t)~leg(self);
    self->exchange->muted = muted ? others | leg(self) : others;
}

static void
set_state(Analyzer *self, unsigned state)
{
    self->exchange->unfinished = (uint8_t)(self->exchange->unfinished + (state != 0) - (self->state != 0));
    self->state = (uint8_t)state;
}

/* Twin of pairing.py. */
enum { TYPE, GAP, SEQ, REST, MINUS = 7919 };

static void
pair(Exchange *self, bool requests, const uint8_t *here, const uint8_t *end)
{
    unsigned place = self->places[requests];
    uint32_t seq = self->seqs[requests];
    while (here < end) {
        if (place == REST && (here = memchr(here, '\n', (size_t)(end - here))) == NULL)
            break;
        uint8_t byte = *here++;
        if (byte == '\n') {
            uint32_t mixed = seq * 0x9E3779B1u;
            mixed = (mixed ^ mixed >> 15) * 0x85EBCA6Bu;
            self->unpaired += requests ? mixed : 0 - mixed;
            place = TYPE;
            seq = 0;
        } else if (place == TYPE) {
            if (byte == ' ' || byte == '\t')
                place = GAP;
        } else if (byte >= '0' && byte <= '9') {
            seq = seq * 10 + (uint32_t)(byte - '0');
            place = SEQ;
        } else if (place == GAP && byte == '-') {
            seq = MINUS;
            place = SEQ;
        } else if (place == SEQ || (byte != ' ' && byte != '\t' && byte != '+')) {
            place = REST;
        }
    }
    self->places[requests] = (uint8_t)place;
    self->seqs[requests] = seq;
}

static void
do_more(Analyzer *self, const char *chunk, size_t size)
{
    Exchange *exchange = self->exchange;
    if (exchange->special & PAIRED)
        pair(exchange, self->analysis->requests, (const uint8_t *)chunk, (const uint8_t *)chunk + size);
    if (exchange->special & WATCHED && !exchange->open && !exchange->unfinished)
        if (PyList_Append(self->analysis->settled, (PyObject *)exchange) < 0)
            PyErr_Clear();
}

void
count(Analyzer *self, const char *chunk, size_t size, int64_t time)
{
    const Analysis *analysis = self->analysis;
    const uint8_t *transitions = (const uint8_t *)PyBytes_AS_STRING(analysis->transitions);
    const uint8_t *kinds = (const uint8_t *)PyBytes_AS_STRING(analysis->kinds);
    const uint8_t *here = (const uint8_t *)chunk, *end = here + size;
    unsigned absorbing = analysis->absorbing, state = self->state;
    int64_t found[COUNTS] = {0};

    while (here < end) {
        if (state == 0 && end - here >= (ptrdiff_t)sizeof(uint32_t)) {
            uint32_t word;
            memcpy(&word, here, sizeof(word));
            for (int place = 0; place < analysis->known; place++) {
                if (word == analysis->words[place]) {
                    state = analysis->after[place];
                    here += sizeof(word);
                    break;
                }
            }
        }
        const uint8_t *row = transitions + (state << 8);
        if (state >= absorbing) {
            /* Only a newline leads out of this state. */
            here = memchr(here, '\n', (size_t)(end - here));
            if (here == NULL)
                break;
        } else if (state != 0) {
            /* Skip bytes that keep the state, such as digits; no step depends on the previous one.  An empty line, which
               keeps it too, counts. */
            while (here < end && row[*here] == state)
                here++;
            if (here == end)
                break;
        }
        unsigned next = row[*here++];
        if (next == 0)
            found[kinds[state]]++;
        state = next;
    }
    set_state(self, state);
    found[BYTES] = (int64_t)size;
    int64_t *total = analysis->total->numbers;
    for (int kind = 0; kind < COUNTS; kind++) {
        self->counts[kind] += found[kind];
        total[kind] += found[kind];
    }

    int64_t *latency = analysis->latency->numbers;
    if (time > latency[SEEN])
        latency[SEEN] = time;
    Exchange *exchange = self->exchange;
    int64_t ended = found[REQ] + found[ACK] + found[NAK] + found[INVALID];
    if (!analysis->requests) {
        reply(exchange, time, found[ACK] + found[NAK]);
    } else if (ended) {
        latency[ASKED] += ended;
        request(exchange, time, ended);
    } else {
        exchange->last = time;
    }
    if (exchange->special)
        do_more(self, chunk, size);
}

static PyObject *
analyzer_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"analysis", "exchange", NULL};
    PyObject *analysis, *exchange;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!:Analyzer", names, &Analysis_Type, &analysis, &Exchange_Type,
                                     &exchange))
        return NULL;
    Analyzer *self = (Analyzer *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->analysis = (Analysis *)Py_NewRef(analysis);
        self->exchange = (Exchange *)Py_NewRef(exchange);
        self->outlet = self->room = -1;
    }
    return (PyObject *)self;
}

static void
analyzer_dealloc(Analyzer *self)
{
    Py_XDECREF(self->analysis);
    Py_XDECREF(self->exchange);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *
analyzer_feed(Analyzer *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 2) {
        PyErr_SetString(PyExc_TypeError, "feed takes a chunk and a time");
        return NULL;
    }
    long long time = PyLong_AsLongLong(args[1]);
    if (time == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer chunk;
    if (PyObject_GetBuffer(args[0], &chunk, PyBUF_SIMPLE) < 0)
        return NULL;
    if (chunk.len && !(self->exchange->muted & leg(self)))
        count(self, chunk.buf, (size_t)chunk.len, time);
    PyBuffer_Release(&chunk);
    Py_RETURN_NONE;
}

static PyObject *
analyzer_take_back(Analyzer *self, PyObject *argument)
{
    long long size = PyLong_AsLongLong(argument);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    set_state(self, 0);
    self->exchange->places[self->analysis->requests] = TYPE;
    self->exchange->seqs[self->analysis->requests] = 0;
    self->counts[BYTES] -= size;
    self->analysis->total->numbers[BYTES] -= size;
    Py_RETURN_NONE;
}

/* Count for another analysis of the same kind of leg from now on. */
static PyObject *
analyzer_move(Analyzer *self, PyObject *analysis)
{
    if (!PyObject_TypeCheck(analysis, &Analysis_Type)
        || ((Analysis *)analysis)->transitions != self->analysis->transitions) {
        PyErr_SetString(PyExc_TypeError, "an analyzer moves to an Analysis with the same automaton");
        return NULL;
    }
    Py_SETREF(self->analysis, (Analysis *)Py_NewRef(analysis));
    Py_RETURN_NONE;
}

/* Replace everything by the state of another analyzer: see Derived.state in analyzer.py. */
static PyObject *
analyzer_restore(Analyzer *self, PyObject *args)
{
    long long counts[COUNTS];
    PyObject *head;
    int muted;
    if (!PyArg_ParseTuple(args, "LLLLLSp:restore", &counts[BYTES], &counts[REQ], &counts[ACK], &counts[NAK],
                          &counts[INVALID], &head, &muted))
        return NULL;
    Py_ssize_t state = PySequence_Index(self->analysis->heads, head);
    if (state < 0)
        return NULL;
    for (int kind = 0; kind < COUNTS; kind++)
        self->counts[kind] = counts[kind];
    set_state(self, (unsigned)state);
    mute(self, muted);
    Py_RETURN_NONE;
}

static PyObject *
analyzer_get_muted(Analyzer *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->exchange->muted & leg(self));
}

static int
analyzer_set_muted(Analyzer *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "is_muted cannot be deleted");
        return -1;
    }
    int muted = PyObject_IsTrue(value);
    if (muted >= 0)
        mute(self, muted);
    return muted < 0 ? -1 : 0;
}

static PyObject *
analyzer_get_room(Analyzer *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->room);
}

static int
analyzer_set_room(Analyzer *self, PyObject *value, void *Py_UNUSED(closure))
{
    long room = value == NULL ? -1 : PyLong_AsLong(value);
    if (room < 0 || room >= 1 << 23) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "no read is that large");
        return -1;
    }
    self->room = (int)room;
    return 0;
}

static PyObject *
analyzer_get_head(Analyzer *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(PyTuple_GET_ITEM(self->analysis->heads, self->state));
}

static PyMethodDef analyzer_methods[] = {
    {"feed", (PyCFunction)(void (*)(void))analyzer_feed, METH_FASTCALL, NULL},
    {"move", (PyCFunction)analyzer_move, METH_O, NULL},
    {"take_back", (PyCFunction)analyzer_take_back, METH_O, NULL},
    {"restore", (PyCFunction)analyzer_restore, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef analyzer_members[] = {
    {"analysis", T_OBJECT_EX, offsetof(Analyzer, analysis), READONLY, NULL},
    {"exchange", T_OBJECT_EX, offsetof(Analyzer, exchange), READONLY, NULL},
    {"bytes", T_LONGLONG, offsetof(Analyzer, counts[BYTES]), READONLY, NULL},
    {"req", T_LONGLONG, offsetof(Analyzer, counts[REQ]), READONLY, NULL},
    {"ack", T_LONGLONG, offsetof(Analyzer, counts[ACK]), READONLY, NULL},
    {"nak", T_LONGLONG, offsetof(Analyzer, counts[NAK]), READONLY, NULL},
    {"invalid", T_LONGLONG, offsetof(Analyzer, counts[INVALID]), READONLY, NULL},
    {"outlet", T_INT, offsetof(Analyzer, outlet), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef analyzer_getset[] = {
    {"head", (getter)analyzer_get_head, NULL, NULL, NULL},
    {"room", (getter)analyzer_get_room, (setter)analyzer_set_room, NULL, NULL},
    {"is_muted", (getter)analyzer_get_muted, (setter)analyzer_set_muted, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Analyzer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fooproxy._core.Analyzer",
    .tp_doc = PyDoc_STR("Counts one leg of one session: twin of fooproxy.foo.analyzer.Analyzer."),
    .tp_basicsize = sizeof(Analyzer),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = analyzer_new,
    .tp_dealloc = (destructor)analyzer_dealloc,
    .tp_methods = analyzer_methods,
    .tp_members = analyzer_members,
    .tp_getset = analyzer_getset,
};

/* Constants that both twins must share: a test compares them with the names in latency.py and analyzer.py. */
int
add_counting(PyObject *module)
{
    PyTypeObject *types[] = {&Row_Type, &Exchange_Type, &Analysis_Type, &Analyzer_Type};
    for (size_t place = 0; place < sizeof(types) / sizeof(types[0]); place++)
        if (PyModule_AddType(module, types[place]) < 0)
            return -1;
    PyObject *numbers = Py_BuildValue("(ssssssssi)", "asked", "given_up", "unmatched", "late", "sum", "longest",
                                      "replied", "seen", BUCKETS);
    if (numbers == NULL || PyModule_AddObject(module, "LATENCY", numbers) < 0) {
        Py_XDECREF(numbers);
        return -1;
    }
    PyObject *counts = Py_BuildValue("(sssss)", "bytes", "req", "ack", "nak", "invalid");
    if (counts == NULL || PyModule_AddObject(module, "COUNTS", counts) < 0) {
        Py_XDECREF(counts);
        return -1;
    }
    return 0;
}
