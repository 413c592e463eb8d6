/* The work around an optimizer step on one weight, each entry read and written once per pass.

   The same arithmetic as rgplug/kernels.py and rgplug/methods/threshold.py, which are the reference; REAL is float or
   double. A weight is seen as [rows, columns] in memory order, a row belonging to one output filter (FilterLayout):
   filter = row / rows_per_group * filters_per_group + row % filters_per_group. Masks are bytes, 1 where kept.
   No libm, no allocation, no error paths. Comparisons with NaN are false: such a weight is kept, and so stays visible.

   Compilers vectorize a loop only if nothing in it depends on an option, and they cut a parallel loop out of its
   function before they know that an option is constant. So the loops over columns are functions of their own, which
   the loops over rows call with literal options. */

#include <stddef.h>
#include <stdint.h>

#ifndef REAL
#define REAL float
#endif
#define INLINE static inline __attribute__((always_inline))
#define CHUNK 2048         /* columns that are summed in REAL before the sum goes into a double */
#define SMALL 32768        /* entries below which starting threads costs more than it saves */
#define PARALLEL(shape) schedule(static) num_threads((shape)->threads) if ((shape)->rows * (shape)->columns > SMALL)

typedef struct {
    int64_t rows, columns, rows_per_group, filters_per_group, threads;
} Shape;

INLINE int64_t filter_of(const Shape *s, int64_t row) {
    return row / s->rows_per_group * s->filters_per_group + row % s->filters_per_group;
}

INLINE REAL size_of(REAL x) { return sizeof(REAL) == 4 ? __builtin_fabsf(x) : __builtin_fabs(x); }

/* H'(x): 2 - 4|x| up to 0.4, then 0.4 up to 1, then 0; NaN stays NaN. */
INLINE REAL surrogate_derivative(REAL x) {
    const REAL size = size_of(x), slope = 2 - 4 * size;
    const REAL inside = slope < (REAL)0.4 ? (REAL)0.4 : slope;
    return size > 1 ? 0 : inside + (x - x);
}

/* ---- before ------------------------------------------------------------------------------------------------------ */

/* n columns of a row: dormant and grad in place; adds to *total (if task) and to *zeros. */
INLINE void before_columns(int64_t n, const REAL *restrict weight, REAL *restrict dormant, const uint8_t *restrict mask,
                           REAL *restrict grad, REAL t, REAL unit, double *total, int64_t *zeros,
                           const int task, const int full, const int scaled) {
    REAL sum = 0;
    int32_t found = 0;
#pragma omp simd reduction(+ : sum, found)
    for (int64_t k = 0; k < n; k++) {
        const REAL x = weight[k], old = dormant[k], a = grad[k];
        const int32_t keep = mask[k];
        const REAL theta = x == 0 ? old : x;
        REAL out = a;
        if (task || full) {
            const REAL size = size_of(theta);
            const REAL h = surrogate_derivative((scaled ? size / unit : size) - t);
            if (task) sum += theta * a * h;
            if (full) out = a * ((scaled ? size * h / unit : size * h) + 1);
        }
        found += x == 0 ? 1 : 0;
        grad[k] = keep ? out : 0;
        dormant[k] = keep ? 0 : theta;
    }
    *total += sum;
    *zeros += found;
}

/* The same where there is no gradient. */
INLINE void adopt_columns(int64_t n, const REAL *restrict weight, REAL *restrict dormant, const uint8_t *restrict mask,
                          int64_t *zeros) {
    int32_t found = 0;
#pragma omp simd reduction(+ : found)
    for (int64_t k = 0; k < n; k++) {
        const REAL x = weight[k], old = dormant[k];
        const int32_t keep = mask[k];
        const REAL theta = x == 0 ? old : x;
        found += x == 0 ? 1 : 0;
        dormant[k] = keep ? 0 : theta;
    }
    *zeros += found;
}

/* Before the step. What the host wrote at pruned positions becomes dormant; zeros: zeros in the weight. With a gradient
   A (grad may be NULL): row_grad = -sum_row A theta H' (if not NULL), then A times its surrogate factor (if full), then
   masked. scale: what |theta| is divided by, or NULL. */
void before(const Shape *s, const REAL *weight, REAL *dormant, const uint8_t *mask, REAL *grad, const REAL *threshold,
            const REAL *scale, int32_t full, REAL *row_grad, int64_t *zeros) {
    int64_t found = 0;
    const REAL unit = scale ? *scale : 1;
    const int variant = !grad ? 8 : (row_grad != NULL) * 4 + (full != 0) * 2 + (scale != NULL);
#pragma omp parallel for reduction(+ : found) PARALLEL(s)
    for (int64_t row = 0; row < s->rows; row++) {
        const REAL t = threshold ? threshold[filter_of(s, row)] : 0;
        double total = 0;
        int64_t zero = 0;
        for (int64_t from = 0; from < s->columns; from += CHUNK) {
            const int64_t n = s->columns - from < CHUNK ? s->columns - from : CHUNK, at = row * s->columns + from;
#define COLUMNS(task, full, scaled) \
    before_columns(n, weight + at, dormant + at, mask + at, grad + at, t, unit, &total, &zero, task, full, scaled)
            switch (variant) {
            case 0: case 1: COLUMNS(0, 0, 0); break;
            case 2: COLUMNS(0, 1, 0); break;
            case 3: COLUMNS(0, 1, 1); break;
            case 4: COLUMNS(1, 0, 0); break;
            case 5: COLUMNS(1, 0, 1); break;
            case 6: COLUMNS(1, 1, 0); break;
            case 7: COLUMNS(1, 1, 1); break;
            default: adopt_columns(n, weight + at, dormant + at, mask + at, &zero);
            }
        }
        found += zero;
        if (row_grad) row_grad[row] = (REAL)-total;
    }
    *zeros = found;
}

/* ---- after ------------------------------------------------------------------------------------------------------- */

/* Pruned entries of weight back to 0, dormant becomes all of theta. */
void restore(const Shape *s, REAL *restrict weight, REAL *restrict dormant, const uint8_t *restrict mask) {
    const int64_t n = s->rows * s->columns;
#pragma omp parallel for simd schedule(static) num_threads(s->threads) if (parallel : n > SMALL)
    for (int64_t k = 0; k < n; k++) {
        const REAL live = weight[k], old = dormant[k];
        const int32_t keep = mask[k];
        weight[k] = keep ? live : 0;
        dormant[k] = keep ? live : old;
    }
}

/* What is at most t in units of its layer is pruned; with `fixed`, so is what was pruned before. */
INLINE int64_t count_columns(int64_t n, const REAL *restrict theta, const uint8_t *restrict mask, REAL t, REAL unit,
                             const int scaled, const int fixed) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t k = 0; k < n; k++) {
        const REAL size = size_of(theta[k]);
        const int32_t was = mask[k];
        const int32_t low = (scaled ? size / unit : size) <= t ? 1 : 0;
        count += fixed ? low | (1 - was) : low;
    }
    return count;
}

INLINE int64_t split_columns(int64_t n, REAL *restrict weight, REAL *restrict dormant, uint8_t *restrict mask, REAL t,
                             REAL unit, int32_t some, const int scaled, const int fixed) {
    int32_t newly = 0;
#pragma omp simd reduction(+ : newly)
    for (int64_t k = 0; k < n; k++) {
        const REAL theta = dormant[k], size = size_of(theta);
        const int32_t was = mask[k];
        const int32_t low = (scaled ? size / unit : size) <= t ? 1 : 0;
        const int32_t out = some & (fixed ? low | (1 - was) : low);
        newly += out & was;
        weight[k] = out ? 0 : theta;
        dormant[k] = out ? theta : 0;
        mask[k] = (uint8_t)(1 - out);
    }
    return newly;
}

/* New mask from theta (in dormant): pruned iff |theta| / scale <= threshold, or pruned before unless recurrent; without
   a threshold (NULL), iff pruned before.
   counts: pruned entries, and how many of them were kept until now. kept: 0 where the guard kept the whole layer, which
   it does at `limit` pruned entries and more, else 1. */
void refresh(const Shape *s, REAL *weight, REAL *dormant, uint8_t *mask, const REAL *threshold, const REAL *scale,
             int32_t recurrent, double limit, int64_t *counts, REAL *kept) {
    const int64_t n = s->columns;
    const REAL unit = scale ? *scale : 1;
    const int variant = (scale != NULL) * 2 + (!recurrent || !threshold);
    int64_t pruned = 0, newly = 0;
#define LEVEL(row) (threshold ? threshold[filter_of(s, row)] : -1)
#pragma omp parallel for reduction(+ : pruned) PARALLEL(s)
    for (int64_t row = 0; row < s->rows; row++) {
        const REAL t = LEVEL(row);
        const REAL *theta = dormant + row * n;
        const uint8_t *m = mask + row * n;
        switch (variant) {
        case 0: pruned += count_columns(n, theta, m, t, unit, 0, 0); break;
        case 1: pruned += count_columns(n, theta, m, t, unit, 0, 1); break;
        case 2: pruned += count_columns(n, theta, m, t, unit, 1, 0); break;
        default: pruned += count_columns(n, theta, m, t, unit, 1, 1);
        }
    }
    const int32_t some = (double)pruned < limit;
#pragma omp parallel for reduction(+ : newly) PARALLEL(s)
    for (int64_t row = 0; row < s->rows; row++) {
        const REAL t = LEVEL(row);
        REAL *w = weight + row * n, *theta = dormant + row * n;
        uint8_t *m = mask + row * n;
        switch (variant) {
        case 0: newly += split_columns(n, w, theta, m, t, unit, some, 0, 0); break;
        case 1: newly += split_columns(n, w, theta, m, t, unit, some, 0, 1); break;
        case 2: newly += split_columns(n, w, theta, m, t, unit, some, 1, 0); break;
        default: newly += split_columns(n, w, theta, m, t, unit, some, 1, 1);
        }
    }
    counts[0] = some ? pruned : 0;
    counts[1] = newly;
    *kept = (REAL)some;
}
