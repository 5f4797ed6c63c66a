/* One side of every pair of a tile: softmax, gate, fusion with factorised messages, and pooling, in one pass.
 *
 * For own vector l of a pair, with a = softmax over the other side's real vectors of `affinity`:
 *
 *     z_l     = sum_m a_m product_lm
 *     gate_l  = sigmoid(z_l + gate_context * mean z)               (1 without gates)
 *     fused_l = max(gate_l * (own_l + sum_m a_m message_m) + bias, 0) + residual_l
 *     pooled  = sum_l softmax_l(score . fused_l) fused_l           (equal weights without `score`)
 *
 * or, with a hidden layer of the pooling, weights that are the mean over heads h of
 * softmax_l(last_h . max(hidden fused_l + hidden_bias, 0)).
 *
 * Fused vectors stay in the second-level cache; only `pooled` is written out.
 * Vectors are GCC's generic ones, so the same text compiles for AVX-512, AVX2, NEON and plain C.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 6
#define WIDE 4
#else
#define LANES 8
#define ROWS 4
#define WIDE 2
#endif

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4)));

#define PANEL (WIDE * LANES)
/* Fused vectors that pass through a hidden layer together: they share the second-level cache with a panel. */
#define GROUP_BYTES (384 * 1024)

#define INLINE static inline __attribute__((always_inline))
#define LOAD(p) (*(const vec *)(p))

INLINE float sum_lanes(vec v) {
    float total = 0;
    for (int k = 0; k < LANES; k++) total += v[k];
    return total;
}

/* x below `bound` becomes `bound`; not-a-number stays what it is. */
INLINE vec at_least(vec x, vec bound) {
    ivec below = x < bound;
    return (vec)(((ivec)bound & below) | ((ivec)x & ~below));
}

/* e^x for x <= 0 to within 2 units in the last place: 2^n times a polynomial on [-ln2/2, ln2/2]. */
INLINE vec exp_negative(vec x) {
    const vec zero = {0};
    x = at_least(x, zero - 87.0f);
    vec shifted = x * 1.44269504f + 12582912.0f;
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * (vec)power;
}

/* Softmax in place; values[count..] up to a whole vector may be anything and become 0. */
INLINE void softmax(float *values, int count) {
    float top = values[0];
    for (int k = 1; k < count; k++) top = values[k] > top ? values[k] : top;
    int end = (count + LANES - 1) / LANES * LANES;
    for (int k = count; k < end; k++) values[k] = top - 100.0f;
    vec total = {0};
    for (int k = 0; k < end; k += LANES) {
        vec e = exp_negative(LOAD(values + k) - top);
        *(vec *)(values + k) = e;
        total += e;
    }
    float scale = sum_lanes(total);
    for (int k = count; k < end; k++) scale -= values[k];
    scale = 1.0f / scale;
    for (int k = 0; k < end; k += LANES) *(vec *)(values + k) = LOAD(values + k) * scale;
    for (int k = count; k < end; k++) values[k] = 0.0f;
}

typedef struct {
    int64_t dim, own_size, other_size;  /* d, L, M: the padded sizes */
    const float *affinity, *product;    /* [l, m] of a pair; product NULL: no gates */
    int64_t row_stride, column_stride;  /* from l to l + 1, from m to m + 1 */
    int64_t own_step, other_step;       /* from one own, one other item to the next */
    const float *own, *residual;        /* [item, L, d]; residual NULL: none */
    const float *message;               /* [item, M, d] */
    const float *bias, *score;          /* [d]; NULL: none, equal weights */
    const float *panels;                /* [panel, d, PANEL], a layer's weights for PANEL outputs each; NULL: no layer */
    const float *hidden_bias, *last;    /* [panel * PANEL], [heads, panel * PANEL] */
    int64_t panel_count, heads;
    const int32_t *own_count, *other_count;
    float *pooled;                      /* [pair, d] */
    int64_t own_items, other_items;
    int64_t pair_own, pair_other;       /* from one own, one other item to the next in the pairs' order */
    int64_t own_outer;                  /* 1: loop over own items outside, other items inside */
    int64_t threads;
    float gate_context;                 /* weight of a pair's mean gate logit in each of its gates */
} Tile;

/* sum_rw += sum_m factors_rm vectors_mw, for `rows` rows of factors and `width` vectors of lanes, in registers. */
INLINE void accumulate(vec sum[ROWS][WIDE], int rows, int width, const float *factors, int64_t stride,
                       const float *vectors, int64_t step, int64_t count) {
    for (int64_t m = 0; m < count; m++) {
        const float *source = vectors + m * step;
        vec value[WIDE];
#pragma GCC unroll 8
        for (int w = 0; w < width; w++) value[w] = LOAD(source + w * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            float a = factors[r * stride + m];
#pragma GCC unroll 8
            for (int w = 0; w < width; w++) sum[r][w] += a * value[w];
        }
    }
}

/* `rows` own vectors times `width` vectors of lanes, from dimension k on. */
INLINE void fuse_block(const Tile *t, int rows, int width, int64_t k, int count, const float *weights, int64_t stride,
                       const float *gates, const float *own, const float *residual, const float *message, float *fused,
                       vec *dots) {
    vec sum[ROWS][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int w = 0; w < width; w++) sum[r][w] = LOAD(own + r * t->dim + k + w * LANES);
    accumulate(sum, rows, width, weights, stride, message + k, t->dim, count);
    const vec zero = {0};
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int w = 0; w < width; w++) {
            int64_t at = k + w * LANES;
            vec x = sum[r][w] * gates[r];
            if (t->bias) x += LOAD(t->bias + at);
            x = at_least(x, zero);
            if (residual) x += LOAD(residual + r * t->dim + at);
            *(vec *)(fused + r * t->dim + at) = x;
            if (t->score) dots[r] += x * LOAD(t->score + at);
        }
}

#define FUSE(rows)                                                                                                   \
    case rows:                                                                                                       \
        for (; k + WIDE * LANES <= t->dim; k += WIDE * LANES)                                                        \
            fuse_block(t, rows, WIDE, k, count, weights, stride, gates, own, residual, message, fused, dots);        \
        for (; k < t->dim; k += LANES)                                                                               \
            fuse_block(t, rows, 1, k, count, weights, stride, gates, own, residual, message, fused, dots);           \
        break;

static void fuse_rows(const Tile *t, int rows, int count, const float *weights, int64_t stride, const float *gates,
                      const float *own, const float *residual, const float *message, float *fused, vec *dots) {
    int64_t k = 0;
    switch (rows) {
        FUSE(1)
        FUSE(2)
        FUSE(3)
        FUSE(4)
#if ROWS == 6
        FUSE(5)
        FUSE(6)
#endif
    }
}

/* The weights of every own vector over the other side, and its gate. */
static void attend(const Tile *t, const float *affinity, const float *product, int rows, int count, float *weights,
                   int64_t stride, float *gates) {
    float total = 0.0f;
    for (int l = 0; l < rows; l++) {
        float *row = weights + l * stride;
        const float *from = affinity + l * t->row_stride;
        for (int m = 0; m < count; m++) row[m] = from[m * t->column_stride];
        softmax(row, count);
        if (product) {
            const float *inner = product + l * t->row_stride;
            float logit = 0.0f;
            for (int m = 0; m < count; m++) logit += row[m] * inner[m * t->column_stride];
            gates[l] = logit;
            total += logit;
        } else {
            gates[l] = 1.0f;
        }
    }
    if (!product) return;
    for (int l = 0; l < rows; l++) {
        float logit = gates[l] + t->gate_context * total / rows;
        vec x = {0};
        vec e = exp_negative(x - (logit < 0 ? -logit : logit));
        gates[l] = (logit < 0 ? e[0] : 1.0f) / (1.0f + e[0]);
    }
}

/* `rows` fused vectors through one panel of the hidden layer; what it adds to their scores goes into dots [row, head]. */
INLINE void hidden_block(const Tile *t, int rows, const float *fused, int64_t panel, vec *dots) {
    const float *weights = t->panels + panel * t->dim * PANEL, *bias = t->hidden_bias + panel * PANEL;
    vec sum[ROWS][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; w++) sum[r][w] = LOAD(bias + w * LANES);
    accumulate(sum, rows, WIDE, fused, t->dim, weights, PANEL, t->dim);
    const vec zero = {0};
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; w++) sum[r][w] = at_least(sum[r][w], zero);
    for (int64_t h = 0; h < t->heads; h++) {
        const float *last = t->last + (h * t->panel_count + panel) * PANEL;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; w++) dots[r * t->heads + h] += sum[r][w] * LOAD(last + w * LANES);
    }
}

#define HIDDEN(rows)                                                                                                 \
    case rows:                                                                                                       \
        hidden_block(t, rows, fused, panel, dots);                                                                   \
        break;

static void hidden_rows(const Tile *t, int rows, const float *fused, int64_t panel, vec *dots) {
    switch (rows) {
        HIDDEN(1)
        HIDDEN(2)
        HIDDEN(3)
        HIDDEN(4)
#if ROWS == 6
        HIDDEN(5)
        HIDDEN(6)
#endif
    }
}

/* Buffers of one thread, for a group of pairs. */
typedef struct {
    float *fused;   /* [group * L, d], real vectors only */
    vec *dots;      /* [group * L, heads] */
    float *scores;  /* [group, padded L] */
    float *weights; /* [L, stride], or the weights of a head */
    float *gates;   /* [padded L] */
    int64_t stride, padded;
} Scratch;

/* The fused vectors of a pair, and with `score` their scores. */
static void fuse_pair(const Tile *t, int64_t o, int64_t other, const Scratch *s, float *fused, float *scores) {
    int rows = t->own_count[o], count = t->other_count[other];
    int64_t size = t->own_size * t->dim, at = o * t->own_step + other * t->other_step;
    const float *own = t->own + o * size, *message = t->message + other * t->other_size * t->dim;
    const float *residual = t->residual ? t->residual + o * size : NULL;
    attend(t, t->affinity + at, t->product ? t->product + at : NULL, rows, count, s->weights, s->stride, s->gates);
    for (int l = 0; l < rows; l += ROWS) {
        int block = rows - l < ROWS ? rows - l : ROWS;
        vec dots[ROWS];
        memset(dots, 0, sizeof dots);
        fuse_rows(t, block, count, s->weights + l * s->stride, s->stride, s->gates + l, own + l * t->dim,
                  residual ? residual + l * t->dim : NULL, message, fused + l * t->dim, dots);
        for (int r = 0; r < block; r++) scores[l + r] = sum_lanes(dots[r]);
    }
}

/* The mean over heads of the softmax of a pair's scores. */
static void average_heads(const Tile *t, int rows, const vec *dots, float *head, float *weights) {
    for (int l = 0; l < rows; l++) weights[l] = 0.0f;
    for (int64_t h = 0; h < t->heads; h++) {
        for (int l = 0; l < rows; l++) head[l] = sum_lanes(dots[l * t->heads + h]);
        softmax(head, rows);
        for (int l = 0; l < rows; l++) weights[l] += head[l] / t->heads;
    }
}

/* The own and the other item of pair p in the order of the loop. */
INLINE int64_t own_of(const Tile *t, int64_t p) { return t->own_outer ? p / t->other_items : p % t->own_items; }
INLINE int64_t other_of(const Tile *t, int64_t p) { return t->own_outer ? p % t->other_items : p / t->own_items; }

/* `group` pairs from `first` on, in the order of the loop. */
static void receive_pairs(const Tile *t, int64_t first, int64_t group, const Scratch *s) {
    int64_t end = t->own_items * t->other_items, total = 0;
    if (first + group < end) end = first + group;
    for (int64_t p = first; p < end; p++) {
        int64_t o = own_of(t, p), other = other_of(t, p);
        fuse_pair(t, o, other, s, s->fused + total * t->dim, s->scores + (p - first) * s->padded);
        total += t->own_count[o];
    }
    if (t->panels) {
        memset(s->dots, 0, total * t->heads * sizeof(vec));
        for (int64_t panel = 0; panel < t->panel_count; panel++)
            for (int64_t l = 0; l < total; l += ROWS)
                hidden_rows(t, total - l < ROWS ? total - l : ROWS, s->fused + l * t->dim, panel,
                            s->dots + l * t->heads);
    }
    total = 0;
    for (int64_t p = first; p < end; p++) {
        int64_t o = own_of(t, p), other = other_of(t, p);
        int rows = t->own_count[o];
        float *scores = s->scores + (p - first) * s->padded;
        if (t->panels)
            average_heads(t, rows, s->dots + total * t->heads, s->weights, scores);
        else
            softmax(scores, rows); /* without `score` all are 0: equal weights */
        const float *fused = s->fused + total * t->dim;
        float *pooled = t->pooled + (o * t->pair_own + other * t->pair_other) * t->dim;
        for (int64_t k = 0; k < t->dim; k += LANES) {
            vec sum = {0};
            for (int l = 0; l < rows; l++) sum += scores[l] * LOAD(fused + l * t->dim + k);
            *(vec *)(pooled + k) = sum;
        }
        total += rows;
    }
}

int32_t camp_lanes(void) { return LANES; }

int32_t camp_panel(void) { return PANEL; }

int32_t camp_receive(const Tile *t) {
    int64_t stride = (t->other_size + LANES - 1) / LANES * LANES, padded = (t->own_size + LANES - 1) / LANES * LANES;
    int64_t pairs = t->own_items * t->other_items, vectors = t->own_size * t->dim, group = 1;
    if (t->panels && 2 * vectors * (int64_t)sizeof(float) <= GROUP_BYTES)
        group = GROUP_BYTES / (vectors * (int64_t)sizeof(float));
    int64_t dots = t->panels ? group * t->own_size * t->heads * LANES : 0;
    int64_t weights = t->own_size * stride > padded ? t->own_size * stride : padded;
    int64_t floats = group * (vectors + padded) + dots + weights + padded;
    int32_t failed = 0;
#pragma omp parallel num_threads(t->threads)
    {
        float *buffer = NULL;
        if (posix_memalign((void **)&buffer, 64, floats * sizeof(float))) {
#pragma omp atomic write
            failed = 1;
            buffer = NULL;
        }
        Scratch s = {.fused = buffer, .stride = stride, .padded = padded};
        s.dots = (vec *)(s.fused + group * vectors);
        s.scores = (float *)s.dots + dots;
        s.weights = s.scores + group * padded;
        s.gates = s.weights + weights;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < pairs; p += group)
            if (buffer) receive_pairs(t, p, group, &s);
        free(buffer);
    }
    return failed;
}
