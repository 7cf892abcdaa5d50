/* A log-linear histogram of durations: FINE equal steps within each power of two, so an error below 0.4%. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>

enum { FINE = 256, FINE_BITS = 8, STEPS = FINE * (64 - FINE_BITS + 1) };

struct histogram {
    uint64_t count, slowest, steps[STEPS];
};

static inline void record(struct histogram *h, uint64_t ns)
{
    unsigned power = 63 - (unsigned)__builtin_clzll(ns | 1);
    unsigned shift = power - FINE_BITS;
    h->steps[power < FINE_BITS ? ns : (shift + 1) * FINE + ((ns >> shift) & (FINE - 1))]++;
    h->count++;
    if (ns > h->slowest)
        h->slowest = ns;
}

/* The middle of the step in which the `part` (0 to 1) of all durations is reached, in microseconds. */
static inline double percentile_us(const struct histogram *h, double part)
{
    uint64_t seen = 0;
    for (unsigned i = 0; i < STEPS; i++) {
        seen += h->steps[i];
        if ((double)seen > part * (double)h->count)
            return (i < FINE ? i : (FINE + i % FINE + 0.5) * (double)(1ull << (i / FINE - 1))) / 1e3;
    }
    return (double)h->slowest / 1e3;
}

#endif
