/* The work around an optimizer step on one weight, each entry read and written once per pass.

   The same arithmetic as rgplug/kernels.py and rgplug/methods/threshold.py, which are the reference; REAL is float or
   double. A weight is seen as [rows, columns] in memory order, a row belonging to one output filter (FilterLayout):
   filter = row / rows_per_group * filters_per_group + row % filters_per_group.

   The mask lies in the dormant values: an entry is kept iff its dormant bits are 0, and a pruned value of exactly 0
   waits as -0. Only integers are compared for that, so flushed denormals cannot blur it. In the window between
   `restore` and `refresh`, dormant holds all of theta, and the mask is bytes, 1 where kept.

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

typedef __typeof__(_Generic((REAL)0, float: (int32_t)0, double: (int64_t)0)) BITS; /* of one REAL; also counts */
typedef struct {
    int64_t rows, columns, rows_per_group, filters_per_group, threads;
} Shape;

INLINE int64_t filter_of(const Shape *s, int64_t row) {
    return row / s->rows_per_group * s->filters_per_group + row % s->filters_per_group;
}

INLINE REAL value_of(BITS bits) {
    REAL x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE BITS bits_of(REAL x) {
    BITS bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* What waits for a pruned theta. */
INLINE BITS dormant_of(REAL theta) {
    const BITS bits = bits_of(theta);
    return bits == 0 ? bits_of((REAL)-0.0) : bits;
}

INLINE REAL size_of(REAL x) { return sizeof(REAL) == 4 ? __builtin_fabsf(x) : __builtin_fabs(x); }

/* Pruned iff |theta| / unit <= t: 1 or 0. */
INLINE BITS is_low(REAL theta, REAL t, REAL unit, const int scaled) {
    const REAL size = size_of(theta);
    return (scaled ? size / unit : size) <= t ? 1 : 0;
}

/* H'(x): 2 - 4|x| up to 0.4, then 0.4 up to 1, then 0; NaN stays NaN. */
INLINE REAL surrogate_derivative(REAL x) {
    const REAL size = size_of(x), slope = 2 - 4 * size;
    const REAL inside = slope < (REAL)0.4 ? (REAL)0.4 : slope;
    return size > 1 ? 0 : inside + (x - x);
}

/* ---- before ------------------------------------------------------------------------------------------------------ */

/* n columns of a row: masks grad in place; adds to *total (if task), to *zeros and to *written. */
INLINE void before_columns(int64_t n, const REAL *restrict weight, const BITS *restrict dormant, REAL *restrict grad,
                           REAL t, REAL unit, double *total, int64_t *zeros, int64_t *written, const int task,
                           const int full, const int scaled) {
    REAL sum = 0;
    BITS zero = 0, wrote = 0;
#pragma omp simd reduction(+ : sum, zero, wrote)
    for (int64_t k = 0; k < n; k++) {
        const REAL x = weight[k], a = grad[k];
        const BITS waits = dormant[k], kept = waits == 0 ? 1 : 0, none = x == 0 ? 1 : 0;
        REAL out = a;
        if (task || full) {
            const REAL theta = none ? value_of(waits) : x, size = size_of(theta);
            const REAL h = surrogate_derivative((scaled ? size / unit : size) - t);
            if (task) sum += theta * a * h;
            if (full) out = a * ((scaled ? size * h / unit : size * h) + 1);
        }
        zero += none;
        wrote += (1 - none) & (1 - kept);
        grad[k] = kept ? out : 0;
    }
    *total += sum;
    *zeros += zero;
    *written += wrote;
}

/* The same where there is no gradient. */
INLINE void count_columns(int64_t n, const REAL *restrict weight, const BITS *restrict dormant, int64_t *zeros,
                          int64_t *written) {
    BITS zero = 0, wrote = 0;
#pragma omp simd reduction(+ : zero, wrote)
    for (int64_t k = 0; k < n; k++) {
        const BITS pruned = dormant[k] == 0 ? 0 : 1, none = weight[k] == 0 ? 1 : 0;
        zero += none;
        wrote += (1 - none) & pruned;
    }
    *zeros += zero;
    *written += wrote;
}

/* What the host wrote at pruned positions takes the place of what waited there. */
static void adopt(const Shape *s, const REAL *restrict weight, BITS *restrict dormant) {
    const int64_t n = s->rows * s->columns;
#pragma omp parallel for simd schedule(static) num_threads(s->threads) if (parallel : n > SMALL)
    for (int64_t k = 0; k < n; k++) {
        const REAL x = weight[k];
        const BITS waits = dormant[k], theta = x == 0 ? waits : bits_of(x);
        dormant[k] = waits == 0 ? 0 : theta;
    }
}

/* Before the step. What the host wrote at pruned positions becomes dormant; zeros: zeros in the weight. With a gradient
   A (grad may be NULL): row_grad = -sum_row A theta H' (if not NULL), then A times its surrogate factor (if full), then
   masked. scale: what |theta| is divided by, or NULL. */
void before(const Shape *s, const REAL *weight, BITS *dormant, REAL *grad, const REAL *threshold, const REAL *scale,
            int32_t full, REAL *row_grad, double *zeros) {
    int64_t found = 0, wrote = 0;
    const REAL unit = scale ? *scale : 1;
    const int variant = !grad ? 8 : (row_grad != NULL) * 4 + (full != 0) * 2 + (scale != NULL);
#pragma omp parallel for reduction(+ : found, wrote) PARALLEL(s)
    for (int64_t row = 0; row < s->rows; row++) {
        const REAL t = threshold ? threshold[filter_of(s, row)] : 0;
        double total = 0;
        int64_t zero = 0, written = 0;
        for (int64_t from = 0; from < s->columns; from += CHUNK) {
            const int64_t n = s->columns - from < CHUNK ? s->columns - from : CHUNK, at = row * s->columns + from;
#define COLUMNS(task, full, scaled) \
    before_columns(n, weight + at, dormant + at, grad + at, t, unit, &total, &zero, &written, task, full, scaled)
            switch (variant) {
            case 0: case 1: COLUMNS(0, 0, 0); break;
            case 2: COLUMNS(0, 1, 0); break;
            case 3: COLUMNS(0, 1, 1); break;
            case 4: COLUMNS(1, 0, 0); break;
            case 5: COLUMNS(1, 0, 1); break;
            case 6: COLUMNS(1, 1, 0); break;
            case 7: COLUMNS(1, 1, 1); break;
            default: count_columns(n, weight + at, dormant + at, &zero, &written);
            }
        }
        found += zero;
        wrote += written;
        if (row_grad) row_grad[row] = (REAL)-total;
    }
    if (wrote) adopt(s, weight, dormant);
    *zeros = (double)found;
}

/* ---- after: in one pass ------------------------------------------------------------------------------------------ */

/* A layer that would empty: all of theta comes back. */
static void keep_all(const Shape *s, REAL *restrict weight, BITS *restrict dormant) {
    const int64_t n = s->rows * s->columns;
#pragma omp parallel for simd schedule(static) num_threads(s->threads) if (parallel : n > SMALL)
    for (int64_t k = 0; k < n; k++) {
        weight[k] = dormant[k] == 0 ? weight[k] : value_of(dormant[k]);
        dormant[k] = 0;
    }
}

/* The guard: at `limit` pruned entries and more all of the layer is kept, and the answer is 1. */
INLINE int32_t guard(const Shape *s, REAL *weight, BITS *dormant, double limit, int64_t pruned, int64_t newly,
                     double *counts) {
    const int32_t trips = !((double)pruned < limit);
    if (trips) keep_all(s, weight, dormant);
    counts[0] = trips ? 0 : (double)pruned;
    counts[1] = trips ? 0 : (double)newly;
    return trips;
}

/* Masks stay: pruned entries of weight back to 0. Returns how many there are. */
INLINE int64_t zero_columns(int64_t n, REAL *restrict weight, const BITS *restrict dormant) {
    BITS pruned = 0;
#pragma omp simd reduction(+ : pruned)
    for (int64_t k = 0; k < n; k++) {
        const BITS waits = dormant[k];
        const REAL live = weight[k];
        pruned += waits == 0 ? 0 : 1;
        weight[k] = waits == 0 ? live : 0;
    }
    return pruned;
}

/* Masks are drawn anew; with `fixed`, what was pruned before stays so. */
INLINE int64_t after_columns(int64_t n, REAL *restrict weight, BITS *restrict dormant, REAL t, REAL unit,
                             int64_t *newly, const int scaled, const int fixed) {
    BITS pruned = 0, lost = 0;
#pragma omp simd reduction(+ : pruned, lost)
    for (int64_t k = 0; k < n; k++) {
        const BITS waits = dormant[k], kept = waits == 0 ? 1 : 0;
        const REAL live = weight[k], theta = kept ? live : value_of(waits);
        const BITS low = is_low(theta, t, unit, scaled), out = fixed ? low | (1 - kept) : low;
        pruned += out;
        lost += out & kept;
        weight[k] = out ? 0 : theta;
        dormant[k] = out ? dormant_of(theta) : 0;
    }
    *newly += lost;
    return pruned;
}

#define LEVEL(row) (threshold ? threshold[filter_of(s, row)] : -1)

/* After the step: what it did to pruned entries is undone, and the mask is drawn anew. Pruned iff
   |theta| / scale <= threshold, or pruned before unless recurrent; without a threshold (NULL), iff pruned before.
   counts: pruned entries, and how many of them were kept until now. Returns whether the guard kept the whole layer. */
int32_t after(const Shape *s, REAL *weight, BITS *dormant, const REAL *threshold, const REAL *scale, int32_t recurrent,
              double limit, double *counts) {
    const int64_t n = s->columns;
    const REAL unit = scale ? *scale : 1;
    const int variant = !threshold ? 4 : (scale != NULL) * 2 + !recurrent;
    int64_t pruned = 0, newly = 0;
#pragma omp parallel for reduction(+ : pruned, newly) PARALLEL(s)
    for (int64_t row = 0; row < s->rows; row++) {
        const REAL t = LEVEL(row);
        REAL *w = weight + row * n;
        BITS *d = dormant + row * n;
        switch (variant) {
        case 0: pruned += after_columns(n, w, d, t, unit, &newly, 0, 0); break;
        case 1: pruned += after_columns(n, w, d, t, unit, &newly, 0, 1); break;
        case 2: pruned += after_columns(n, w, d, t, unit, &newly, 1, 0); break;
        case 3: pruned += after_columns(n, w, d, t, unit, &newly, 1, 1); break;
        default: pruned += zero_columns(n, w, d);
        }
    }
    return guard(s, weight, dormant, limit, pruned, newly, counts);
}

/* ---- after: around a method's look at theta ---------------------------------------------------------------------- */

/* Pruned entries of weight back to 0, dormant becomes all of theta. The mask has to be known elsewhere by now. */
void restore(const Shape *s, REAL *restrict weight, BITS *restrict dormant) {
    const int64_t n = s->rows * s->columns;
#pragma omp parallel for simd schedule(static) num_threads(s->threads) if (parallel : n > SMALL)
    for (int64_t k = 0; k < n; k++) {
        const REAL live = weight[k];
        const BITS waits = dormant[k];
        weight[k] = waits == 0 ? live : 0;
        dormant[k] = waits == 0 ? bits_of(live) : waits;
    }
}

INLINE int64_t refresh_columns(int64_t n, REAL *restrict weight, BITS *restrict dormant, uint8_t *restrict mask, REAL t,
                               REAL unit, int64_t *newly, const int scaled, const int fixed) {
    BITS pruned = 0, lost = 0;
#pragma omp simd reduction(+ : pruned, lost)
    for (int64_t k = 0; k < n; k++) {
        const REAL theta = value_of(dormant[k]);
        const BITS kept = mask[k], low = is_low(theta, t, unit, scaled), out = fixed ? low | (1 - kept) : low;
        pruned += out;
        lost += out & kept;
        weight[k] = out ? 0 : theta;
        dormant[k] = out ? dormant_of(theta) : 0;
        mask[k] = (uint8_t)(1 - out);
    }
    *newly += lost;
    return pruned;
}

/* As `after`, from theta (in dormant) and the mask from before `restore`, which becomes the new one. */
int32_t refresh(const Shape *s, REAL *weight, BITS *dormant, uint8_t *mask, const REAL *threshold, const REAL *scale,
                int32_t recurrent, double limit, double *counts) {
    const int64_t n = s->columns;
    const REAL unit = scale ? *scale : 1;
    const int variant = (scale != NULL) * 2 + (!recurrent || !threshold);
    int64_t pruned = 0, newly = 0;
#pragma omp parallel for reduction(+ : pruned, newly) PARALLEL(s)
    for (int64_t row = 0; row < s->rows; row++) {
        const REAL t = LEVEL(row);
        REAL *w = weight + row * n;
        BITS *d = dormant + row * n;
        uint8_t *m = mask + row * n;
        switch (variant) {
        case 0: pruned += refresh_columns(n, w, d, m, t, unit, &newly, 0, 0); break;
        case 1: pruned += refresh_columns(n, w, d, m, t, unit, &newly, 0, 1); break;
        case 2: pruned += refresh_columns(n, w, d, m, t, unit, &newly, 1, 0); break;
        default: pruned += refresh_columns(n, w, d, m, t, unit, &newly, 1, 1);
        }
    }
    const int32_t trips = guard(s, weight, dormant, limit, pruned, newly, counts);
    if (trips) __builtin_memset(mask, 1, (size_t)(s->rows * n));
    return trips;
}

/* ---- units ------------------------------------------------------------------------------------------------------- */

/* Mean and sum of squared deviations of n <= CHUNK entries of theta. */
INLINE void moments(int64_t n, const REAL *restrict weight, const BITS *restrict dormant, double *mean, double *squares,
                    const int gathered) {
    REAL theta[CHUNK];
    double sum = 0, square = 0;
#pragma omp simd
    for (int64_t k = 0; k < n; k++) {
        const REAL live = weight[k];
        const BITS waits = dormant[k];
        theta[k] = gathered || waits != 0 ? value_of(waits) : live;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < n; k++) sum += (double)theta[k];
    const double middle = sum / (double)n;
#pragma omp simd reduction(+ : square)
    for (int64_t k = 0; k < n; k++) {
        const double off = (double)theta[k] - middle;
        square += off * off;
    }
    *mean = middle;
    *squares = square;
}

/* Variance of theta after the step (correction 0). gathered: dormant holds all of theta. parts: memory for two numbers
   per CHUNK entries; they are combined in order (Chan, Golub & LeVeque 1983), so any number of threads gives the same. */
void variance(const Shape *s, const REAL *weight, const BITS *dormant, int32_t gathered, double *parts, double *out) {
    const int64_t n = s->rows * s->columns, chunks = (n + CHUNK - 1) / CHUNK;
#pragma omp parallel for PARALLEL(s)
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t at = c * CHUNK, some = n - at < CHUNK ? n - at : CHUNK;
        if (gathered) moments(some, weight + at, dormant + at, parts + 2 * c, parts + 2 * c + 1, 1);
        else moments(some, weight + at, dormant + at, parts + 2 * c, parts + 2 * c + 1, 0);
    }
    double mean = 0, squares = 0;
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t before = c * CHUNK, some = n - before < CHUNK ? n - before : CHUNK;
        const double off = parts[2 * c] - mean, share = (double)some / (double)(before + some);
        mean += off * share;
        squares += parts[2 * c + 1] + off * off * share * (double)before;
    }
    *out = squares / (double)n;
}

/* ---- margins ----------------------------------------------------------------------------------------------------- */

/* |theta| / scale - t of the entries start, start + step, ... in memory order, theta as it is between `restore` and
   `refresh`. mask: -infinity where it is 0; or NULL. */
void margins(const Shape *s, const REAL *restrict theta, const uint8_t *restrict mask, const REAL *threshold,
             const REAL *scale, int64_t start, int64_t step, REAL *restrict out) {
    const int64_t n = (s->rows * s->columns - start + step - 1) / step;
    const REAL unit = scale ? *scale : 1;
#pragma omp parallel for schedule(static) num_threads(s->threads) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = start + i * step;
        const REAL size = size_of(theta[at]), t = threshold[filter_of(s, at / s->columns)];
        out[i] = mask && !mask[at] ? -(REAL)__builtin_inf() : (scale ? size / unit : size) - t;
    }
}
