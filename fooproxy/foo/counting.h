/* What counts one leg of one session, as plain structures, so that the pump can count without calling Python. */

#ifndef FOOPROXY_COUNTING_H
#define FOOPROXY_COUNTING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* A block of 64-bit integers in the array that its owner has handed in; the array cannot be resized meanwhile. */
typedef struct {
    PyObject_HEAD
    Py_buffer view;
    int64_t *numbers;
    Py_ssize_t size;
} Row;

/* Requests that were read at the same time. */
typedef struct {
    int64_t time, count;
} Asked;

/* Twin of fooproxy.foo.latency.Exchange, whose rules it follows. */
typedef struct {
    PyObject_HEAD
    Row *latency;
    int64_t open, asked, last;
    int64_t late, unmatched;
    Asked *later; /* a ring of `capacity` entries, a power of two */
    uint16_t first, length, capacity;
    uint16_t lowest, width; /* `buckets` has the counts of `width` buckets from `lowest` on */
    uint16_t cut_short;
    uint8_t unfinished; /* how many legs are in the middle of a line */
    uint8_t muted;      /* which legs are muted: a bit for each, see `leg` */
    uint8_t special;    /* further work after each chunk: WATCHED, PAIRED */
    uint8_t places[2];  /* where `pair` is in the unfinished line of each leg; the requests' leg is second */
    uint32_t seqs[2];   /* the seq of that line, as far as it has been read */
    uint32_t unpaired;
    int64_t *buckets;
} Exchange;

enum { WATCHED = 1, PAIRED = 2 };

enum { WORDS = 3 };

/* Twin of fooproxy.foo.analyzer.Analysis; it has no queue, since it counts at once. */
typedef struct {
    PyObject_HEAD
    Row *total, *latency;
    PyObject *block; /* the block that the row `total` belongs to */
    PyObject *settled;                     /* a list of the watched exchanges that have become settled */
    PyObject *transitions, *kinds, *heads; /* see fooproxy.foo.grammar.Automaton */
    uint8_t absorbing;
    /* The words that usual lines begin with, each with the state that it leads to. */
    uint32_t words[WORDS];
    uint8_t after[WORDS], known; /* the number of words found */
    bool requests;
} Analysis;

enum { BYTES, REQ, ACK, NAK, INVALID, COUNTS };

/* Twin of fooproxy.foo.analyzer.Analyzer. */
typedef struct {
    PyObject_HEAD
    Analysis *analysis;
    Exchange *exchange;
    int64_t counts[COUNTS];
    int outlet;         /* for the pump, as is `room` */
    unsigned state : 8; /* the place in the grammar that the unfinished line has reached; 0 between lines */
    int room : 24;      /* with `state` in one word, since there are two of these for each session */
} Analyzer;

extern PyTypeObject Row_Type, Exchange_Type, Analysis_Type, Analyzer_Type;

/* Count the next `size` bytes of a leg, read at `time` (microseconds). */
void count(Analyzer *analyzer, const char *chunk, size_t size, int64_t time);

int add_counting(PyObject *module);

#endif
