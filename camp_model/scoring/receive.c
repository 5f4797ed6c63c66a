/* One side of every pair of a tile: softmax, gate, fusion with factorised messages, and pooling, in one pass.
 *
 * For own vector l of a pair, with a = softmax over the other side's real vectors of `affinity`:
 *
 *     z_l     = sum_m a_m product_lm + evidence_l
 *     gate_l  = sigmoid(z_l + gate_context * mean z)               (1 without gates)
 *     fused_l = max(gate_l * (own_l + sum_m a_m message_m) + bias, 0) + residual_l
 *     pooled  = sum_l softmax_l(score . fused_l) fused_l           (equal weights without `score`)
 *
 * or, with a hidden layer of the pooling, weights that are the mean over heads h of
 * softmax_l(last_h . max(hidden fused_l + hidden_bias, 0)). The layer is linear up to there: `hidden residual_l` comes
 * with the own items, and of the rest, which a ReLU has left, only what is not 0 is multiplied. What that is depends
 * little on the other item, so vector l of two pairs of an own item, twins, goes through the layer together: every
 * weight that is loaded serves both.
 *
 * Fused vectors stay in the second-level cache; only `pooled` is written out.
 * Vectors are GCC's generic ones, so the same text compiles for AVX-512, AVX2, NEON and plain C.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define ROWS 6
#define WIDE 4
#define OUTPUTS 8
#else
#define LANES 8
#define ROWS 4
#define WIDE 2
#define OUTPUTS 4
#endif

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4)));

/* Outputs of a hidden layer that stay in registers for two vectors, and inputs whose weights for them fit the first-level
 * cache of 32 KiB beside what streams through it. */
#define PANEL (OUTPUTS * LANES)
#define DEPTH (24 * 1024 / (PANEL * (int)sizeof(float)) / LANES * LANES)
/* Fused vectors that pass through a hidden layer together: the lists of what is not 0 of them, and their outputs, share
 * the second-level cache. */
#define GROUP_BYTES (320 * 1024)

#define INLINE static inline __attribute__((always_inline))
#define LOAD(p) (*(const vec *)(p))
/* GCC would fold a load into each of two products, and loads are what bounds them. */
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v)
#endif

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
    const float *hidden, *hidden_bias;  /* [item, L, panel * PANEL], the layer's of `residual`; [panel * PANEL] */
    const float *last;                  /* [heads, panel * PANEL] */
    int64_t panel_count, heads;
    const int32_t *own_count, *other_count;
    float *pooled;                      /* [pair, d] */
    int64_t own_items, other_items;
    int64_t pair_own, pair_other;       /* from one own, one other item to the next in the pairs' order */
    int64_t own_outer;                  /* 1: loop over own items outside, other items inside; with a layer always */
    int64_t threads;
    const float *evidence;              /* [own item, other item, L], added to the gate logits; NULL: nothing */
    float gate_context;                 /* weight of a pair's mean gate logit in each of its gates */
} Tile;

/* `rows` own vectors times `width` vectors of lanes, from dimension k on. */
INLINE void fuse_block(const Tile *t, int rows, int width, int64_t k, int count, const float *weights, int64_t stride,
                       const float *gates, const float *own, const float *residual, const float *message, float *fused,
                       vec *dots) {
    vec sum[ROWS][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int w = 0; w < width; w++) sum[r][w] = LOAD(own + r * t->dim + k + w * LANES);
    for (int m = 0; m < count; m++) {
        const float *source = message + m * t->dim + k;
        vec value[WIDE];
#pragma GCC unroll 8
        for (int w = 0; w < width; w++) value[w] = LOAD(source + w * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            float a = weights[r * stride + m];
#pragma GCC unroll 8
            for (int w = 0; w < width; w++) sum[r][w] += a * value[w];
        }
    }
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
static void attend(const Tile *t, const float *affinity, const float *product, const float *evidence, int rows,
                   int count, float *weights, int64_t stride, float *gates) {
    float total = 0.0f;
    for (int l = 0; l < rows; l++) {
        float *row = weights + l * stride;
        const float *from = affinity + l * t->row_stride;
        for (int m = 0; m < count; m++) row[m] = from[m * t->column_stride];
        softmax(row, count);
        if (product) {
            const float *inner = product + l * t->row_stride;
            float logit = evidence ? evidence[l] : 0.0f;
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

/* What is not 0 of at least one of two vectors, in the order of dimensions. */
typedef struct {
    float *first, *second; /* both vectors' numbers */
    int32_t *at;           /* where their weights lie in the DEPTH of a panel that they meet */
    int32_t *starts;       /* [blocks + 1], where every DEPTH begins */
} List;

/* Appends LANES numbers of both vectors whose weights begin at `at`; how many entries. Writes LANES of them. */
INLINE int32_t list_lanes(const float *first, const float *second, int32_t at, const List *list, int32_t count) {
#if defined(__AVX512F__)
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 a = _mm512_loadu_ps(first), b = _mm512_loadu_ps(second), zero = _mm512_setzero_ps();
    __mmask16 found = _mm512_cmp_ps_mask(a, zero, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(b, zero, _CMP_NEQ_UQ);
    __m512i places = _mm512_add_epi32(_mm512_set1_epi32(at), _mm512_mullo_epi32(lane, _mm512_set1_epi32(PANEL)));
    _mm512_storeu_ps(list->first + count, _mm512_maskz_compress_ps(found, a));
    _mm512_storeu_ps(list->second + count, _mm512_maskz_compress_ps(found, b));
    _mm512_storeu_si512(list->at + count, _mm512_maskz_compress_epi32(found, places));
    return __builtin_popcount(found);
#else
    int32_t before = count;
    for (int k = 0; k < LANES; k++) {
        list->first[count] = first[k];
        list->second[count] = second[k];
        list->at[count] = at + k * PANEL;
        count += (first[k] != 0.0f) | (second[k] != 0.0f);
    }
    return count - before;
#endif
}

static void fill_list(const float *first, const float *second, int64_t dim, const List *list) {
    int32_t count = 0, *starts = list->starts;
    for (int64_t k = 0; k < dim; k += LANES) {
        if (k % DEPTH == 0) *starts++ = count;
        count += list_lanes(first + k, second + k, (int32_t)(k % DEPTH) * PANEL, list, count);
    }
    *starts = count;
}

/* sums [2, PANEL] of both vectors += the weights of block b of the list times their numbers. */
INLINE void add_block(float *sums, const List *list, int64_t b, const float *weights) {
    vec sum[2][OUTPUTS];
#pragma GCC unroll 8
    for (int w = 0; w < OUTPUTS; w++) {
        sum[0][w] = LOAD(sums + w * LANES);
        sum[1][w] = LOAD(sums + PANEL + w * LANES);
    }
    for (int32_t k = list->starts[b]; k < list->starts[b + 1]; k++) {
        const float *from = weights + list->at[k];
        float first = list->first[k], second = list->second[k];
#pragma GCC unroll 8
        for (int w = 0; w < OUTPUTS; w++) {
            vec value = LOAD(from + w * LANES);
            IN_REGISTER(value);
            sum[0][w] += first * value;
            sum[1][w] += second * value;
        }
    }
#pragma GCC unroll 8
    for (int w = 0; w < OUTPUTS; w++) {
        *(vec *)(sums + w * LANES) = sum[0][w];
        *(vec *)(sums + PANEL + w * LANES) = sum[1][w];
    }
}

/* Buffers of one thread, for a group of pairs. The second half is for a hidden layer, where they have one own item. */
typedef struct {
    float *fused;   /* [group, L, d], real vectors only; with a hidden layer without their residual */
    float *scores;  /* [group, padded L] */
    float *weights; /* [L, stride], or the weights of a head */
    float *gates;   /* [padded L] */
    int64_t group, stride, padded;
    List *lists; /* [twins, L]; twins: half the group */
    float *sums; /* [twins, L, 2, PANEL] */
    vec *dots;   /* [twins, L, 2, heads] */
    int64_t blocks;
} Scratch;

/* The next `bytes` of a buffer, on a line of the cache. */
static void *carve(char **at, int64_t bytes) {
    void *found = *at;
    *at += (bytes + 63) / 64 * 64;
    return found;
}

/* The buffers in the memory at `base`, and how many bytes they take. */
static int64_t lay_out(const Tile *t, Scratch *s, char *base) {
    const int64_t line = LANES, size = sizeof(float), vectors = t->own_size * t->dim;
    char *at = base;
    s->stride = (t->other_size + line - 1) / line * line;
    s->padded = (t->own_size + line - 1) / line * line;
    s->group = t->panels ? GROUP_BYTES / (vectors * size) / 2 * 2 : 1;
    if (t->panels && s->group < 2) s->group = 2;
    s->fused = carve(&at, s->group * vectors * size);
    s->scores = carve(&at, s->group * s->padded * size);
    s->weights = carve(&at, (t->own_size * s->stride > s->padded ? t->own_size * s->stride : s->padded) * size);
    s->gates = carve(&at, s->padded * size);
    if (t->panels) {
        int64_t rows = s->group / 2 * t->own_size, entries = t->dim + LANES; /* LANES are written at a time */
        s->blocks = (t->dim + DEPTH - 1) / DEPTH;
        s->lists = carve(&at, rows * (int64_t)sizeof(List));
        s->sums = carve(&at, rows * 2 * PANEL * size);
        s->dots = carve(&at, rows * 2 * t->heads * (int64_t)sizeof(vec));
        for (int64_t l = 0; l < rows; l++) {
            List list = {.first = carve(&at, entries * size)};
            list.second = carve(&at, entries * size);
            list.at = carve(&at, entries * (int64_t)sizeof(int32_t));
            list.starts = carve(&at, (s->blocks + 1) * (int64_t)sizeof(int32_t));
            if (base) s->lists[l] = list;
        }
    }
    return at - base;
}

/* The fused vectors of a pair, and with `score` their scores. */
static void fuse_pair(const Tile *t, int64_t o, int64_t other, const Scratch *s, float *fused, float *scores) {
    int rows = t->own_count[o], count = t->other_count[other];
    int64_t size = t->own_size * t->dim, at = o * t->own_step + other * t->other_step;
    const float *own = t->own + o * size, *message = t->message + other * t->other_size * t->dim;
    const float *residual = t->residual && !t->panels ? t->residual + o * size : NULL;
    const float *evidence = t->evidence ? t->evidence + (o * t->other_items + other) * t->own_size : NULL;
    attend(t, t->affinity + at, t->product ? t->product + at : NULL, evidence, rows, count, s->weights, s->stride,
           s->gates);
    for (int l = 0; l < rows; l += ROWS) {
        int block = rows - l < ROWS ? rows - l : ROWS;
        vec dots[ROWS];
        memset(dots, 0, sizeof dots);
        fuse_rows(t, block, count, s->weights + l * s->stride, s->stride, s->gates + l, own + l * t->dim,
                  residual ? residual + l * t->dim : NULL, message, fused + l * t->dim, dots);
        for (int r = 0; r < block; r++) scores[l + r] = sum_lanes(dots[r]);
    }
}

/* The mean over heads of the softmax of a pair's scores: `dots` [L, 2, heads]. */
static void average_heads(const Tile *t, int rows, const vec *dots, float *head, float *weights) {
    for (int l = 0; l < rows; l++) weights[l] = 0.0f;
    for (int64_t h = 0; h < t->heads; h++) {
        for (int l = 0; l < rows; l++) head[l] = sum_lanes(dots[2 * l * t->heads + h]);
        softmax(head, rows);
        for (int l = 0; l < rows; l++) weights[l] += head[l] / t->heads;
    }
}

/* Adds to dots what a panel of the hidden layer's outputs adds to the scores of the `rows` vectors of the own item `o`
 * in each of `twins` times two pairs. */
static void hidden_panel(const Tile *t, int64_t o, int64_t panel, int64_t twins, int64_t rows, const Scratch *s) {
    const float *start = t->hidden_bias + panel * PANEL;
    int64_t step = 0, vectors = twins * rows, share = (DEPTH * OUTPUTS + vectors - 1) / vectors;
    if (t->hidden) {
        step = t->panel_count * PANEL;
        start = t->hidden + o * t->own_size * step + panel * PANEL;
    }
    for (int64_t v = 0; v < vectors; v++)
        for (int twin = 0; twin < 2; twin++)
            memcpy(s->sums + (2 * v + twin) * PANEL, start + v % rows * step, PANEL * sizeof(float));
    for (int64_t b = 0; b < s->blocks; b++) {
        const float *weights = t->panels + (panel * t->dim + b * DEPTH) * PANEL, *next = weights + DEPTH * PANEL;
        for (int64_t v = 0; v < vectors; v++) {
            /* The next weights come from far away: every vector fetches its share of them. */
            for (int64_t k = v * share; k < (v + 1) * share; k++) __builtin_prefetch(next + k * LANES, 0, 2);
            add_block(s->sums + 2 * v * PANEL, s->lists + v, b, weights);
        }
    }
    const vec zero = {0};
    for (int64_t v = 0; v < 2 * vectors; v++)
        for (int64_t h = 0; h < t->heads; h++) {
            const float *last = t->last + (h * t->panel_count + panel) * PANEL, *sums = s->sums + v * PANEL;
            vec sum = {0};
#pragma GCC unroll 8
            for (int k = 0; k < PANEL; k += LANES) sum += at_least(LOAD(sums + k), zero) * LOAD(last + k);
            s->dots[v * t->heads + h] += sum;
        }
}

/* Scores of the fused vectors of `count` pairs of the own item `o` through the hidden layer, into dots. */
static void hidden_layer(const Tile *t, int64_t o, int64_t count, const Scratch *s) {
    int64_t rows = t->own_count[o], twins = (count + 1) / 2, pair = t->own_size * t->dim;
    for (int64_t q = 0; q < twins; q++) {
        /* The last of an odd number is its own twin. */
        const float *first = s->fused + 2 * q * pair, *second = 2 * q + 1 < count ? first + pair : first;
        for (int64_t l = 0; l < rows; l++)
            fill_list(first + l * t->dim, second + l * t->dim, t->dim, s->lists + q * rows + l);
    }
    memset(s->dots, 0, twins * rows * 2 * t->heads * sizeof(vec));
    for (int64_t panel = 0; panel < t->panel_count; panel++) hidden_panel(t, o, panel, twins, rows, s);
}

/* The vector that a pair's fused ones are pooled into. */
static void pool_pair(const Tile *t, int64_t o, int64_t other, const float *weights, const float *fused) {
    int rows = t->own_count[o];
    const float *residual = t->panels && t->residual ? t->residual + o * t->own_size * t->dim : NULL;
    float *pooled = t->pooled + (o * t->pair_own + other * t->pair_other) * t->dim;
    for (int64_t k = 0; k < t->dim; k += LANES) {
        vec sum = {0};
        for (int l = 0; l < rows; l++) {
            vec x = LOAD(fused + l * t->dim + k);
            if (residual) x += LOAD(residual + l * t->dim + k);
            sum += weights[l] * x;
        }
        *(vec *)(pooled + k) = sum;
    }
}

/* `count` pairs of the outer item `outer` with the inner items from `first` on; without a hidden layer it is one. */
static void receive_pairs(const Tile *t, int64_t outer, int64_t first, int64_t count, const Scratch *s) {
    int64_t o = t->own_outer ? outer : first, other = t->own_outer ? first : outer, pair = t->own_size * t->dim;
    int rows = t->own_count[o];
    for (int64_t q = 0; q < count; q++) fuse_pair(t, o, other + q, s, s->fused + q * pair, s->scores + q * s->padded);
    if (t->panels && rows) hidden_layer(t, o, count, s);
    for (int64_t q = 0; q < count; q++) {
        float *weights = s->scores + q * s->padded;
        if (t->panels)
            average_heads(t, rows, s->dots + ((q / 2) * rows * 2 + q % 2) * t->heads, s->weights, weights);
        else
            softmax(weights, rows); /* without `score` all are 0: equal weights */
        pool_pair(t, o, other + q, weights, s->fused + q * pair);
    }
}

int32_t camp_lanes(void) { return LANES; }

int32_t camp_panel(void) { return PANEL; }

int32_t camp_receive(const Tile *t) {
    Scratch sizes = {0};
    int64_t bytes = lay_out(t, &sizes, NULL), group = sizes.group;
    int64_t outer = t->own_outer ? t->own_items : t->other_items, inner = t->own_outer ? t->other_items : t->own_items;
    int64_t groups = (inner + group - 1) / group;
    int32_t failed = 0;
#pragma omp parallel num_threads(t->threads)
    {
        Scratch s = {0};
        void *buffer = NULL;
        if (posix_memalign(&buffer, 64, bytes)) {
#pragma omp atomic write
            failed = 1;
            buffer = NULL;
        } else {
            lay_out(t, &s, buffer);
        }
#pragma omp for schedule(static)
        for (int64_t g = 0; g < outer * groups; g++) {
            int64_t first = g % groups * group;
            if (buffer) receive_pairs(t, g / groups, first, inner - first < group ? inner - first : group, &s);
        }
        free(buffer);
    }
    return failed;
}
