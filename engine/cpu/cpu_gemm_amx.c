/*
 * cpu_gemm_amx - products of prompt rows on AMX tiles.
 *
 *     A  16 outputs x 32 k, bf16: rows of the weight as they lie, gathered into 1 KiB tiles
 *     B  16 pairs of k x 16 rows x 2: the packed rows as they lie
 *     C  16 outputs x 16 rows, f32
 *
 * Two by two tiles of C share their operands, 64 bytes of loads a cycle. A thread's item is up to
 * ITEM_ROWS rows of the weight, so that the packed rows, which lie in L3, pass by seldom enough.
 * FILL_K of their k at a time lie as tiles in L2, in two buffers: while one is
 * multiplied, the copy into the other goes on a few lines a step, so that weights arrive from
 * memory behind the arithmetic; the last block of an item fills the first of the thread's next.
 * Within a block, STEPS tiles of two groups of packed rows (16 KiB) stay in L1 while the item's
 * tiles pass. Sums rest in f32 between blocks, so the order of a sum is plain ascending k, whatever
 * the number of rows.
 *
 * Each thread loads and releases its configuration once a product, and no tile state outlives it.
 * Tests run this source on tiles modelled in plain C
 * (tests/engine/cpu/cpu_amx_gemm_avx512bf16.c), since few machines have real ones.
 */
#if defined(__x86_64__)
#include "base/check.h"
#include "engine/cpu/cpu_gemm_impl.h"

#define SIDE       16 /* rows of a tile */
#define TILE_K     32
#define TILE_BYTES 1024
#define LINE       64
#define FILL_TILES 16 /* tiles of k in a buffer */
#define FILL_K     (FILL_TILES * TILE_K)
#define STEPS      8   /* tiles of k between load and store of C */
#define ITEM_ROWS  128 /* rows of weights of an item, gate and up together */
#define LEAST      32  /* outputs of the smallest items, for many threads */
#define AHEAD      4   /* pieces of a copy between the wish for a line and its use */

#define FILL_BYTES ((size_t)(ITEM_ROWS / SIDE) * FILL_TILES * TILE_BYTES)
#define TILE_SUMS  (SIDE * SIDE)

void cpu_gemm_pack_bf16(void *group, const float *x, int64_t ldx, int n_rows, int n_in);
void cpu_gemm_epilogue_bf16(const struct gemm_args *a, const struct gemm_tile *t, int n_groups);

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tile loads and stores do not say what they read and write. */
VEC_FN void memory_fence(void)
{
    __asm__ volatile("" : : : "memory");
}

static void tiles_configure(void)
{
    struct tile_config c = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = 64;
        c.rows[i] = SIDE;
    }
    /* GCC 12's intrinsic declares 8 bytes of the configuration as read: keep all its stores, and
     * keep later ones out of its place. */
    __asm__ volatile("" : : "r"(&c) : "memory");
    _tile_loadconfig(&c);
    __asm__ volatile("" : : "r"(&c) : "memory");
}

static int round_up(int n, int m)
{
    return (n + m - 1) / m * m;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* One item: its weight rows are one or two sides (gate and up) of side_rows, padded to tiles. */
struct item {
    int out0, n_out, side_rows, n_tiles;
};

static bool item_take(const struct gemm_args *a, struct gemm_queue *q, struct item *it)
{
    if (!gemm_queue_take(q, &it->out0, &it->n_out))
        return false;
    it->side_rows = round_up(it->n_out, SIDE);
    it->n_tiles = (a->w_up ? 2 : 1) * it->side_rows / SIDE;
    CHECK(it->n_tiles * SIDE <= ITEM_ROWS);
    return true;
}

/* ---- weights into tiles ---- */

/* A block of an item's weights on its way into `to` [n_tiles, FILL_TILES] tiles, row by row. */
struct fill {
    const struct gemm_args *a;
    struct item it;
    int k0;
    char *to;
    int done, n_rows; /* of the weight, padding included */
    int step;         /* rows of one piece, a power of two up to SIDE */
};

/* Some rows of a fill, all of one tile and there in full; n 0: nothing. */
struct piece {
    const char *from, *ahead; /* row 0; a row to ask memory for */
    char *to;
    size_t stride;
    int n;
};

static const uint16_t *fill_source(const struct fill *f, int row)
{
    const uint16_t *w = row >= f->it.side_rows ? f->a->w_up : f->a->w;

    return w + (int64_t)(f->it.out0 + row % f->it.side_rows) * f->a->n_in + f->k0;
}

static char *fill_target(const struct fill *f, int row)
{
    return f->to + (size_t)(row / SIDE) * FILL_TILES * TILE_BYTES + (size_t)(row % SIDE) * LINE;
}

/* The rows from row on that are outputs, of the same side. */
static int fill_rows_left(const struct fill *f, int row)
{
    return f->it.n_out - row % f->it.side_rows;
}

static bool fill_is_whole(const struct fill *f)
{
    return f->k0 + FILL_K <= f->a->n_in;
}

/* n_calls: products that will each take a piece. */
static void fill_start(struct fill *f, const struct gemm_args *a, const struct item *it, int k0,
                       char *to, int n_calls)
{
    *f = (struct fill){
        .a = a, .it = *it, .k0 = k0, .to = to, .n_rows = it->n_tiles * SIDE, .step = 1};
    while (f->step < SIDE && f->step * n_calls < f->n_rows)
        f->step *= 2;
    if (!fill_is_whole(f))
        return;
    for (int r = 0; r < AHEAD * f->step && r < it->n_out; r++) {
        const char *at = (const char *)fill_source(f, r);

        for (int i = 0; i < FILL_TILES; i++)
            _mm_prefetch(at + i * LINE, _MM_HINT_T1);
    }
}

static void fill_piece(struct fill *f, struct piece *p)
{
    int ahead = f->done + AHEAD * f->step;

    p->n = 0;
    if (f->done + f->step > f->n_rows || fill_rows_left(f, f->done) < f->step || !fill_is_whole(f))
        return;
    p->from = (const char *)fill_source(f, f->done);
    p->ahead = p->from;
    if (ahead + f->step <= f->n_rows && fill_rows_left(f, ahead) >= f->step)
        p->ahead = (const char *)fill_source(f, ahead);
    p->to = fill_target(f, f->done);
    p->stride = (size_t)f->a->n_in * 2;
    p->n = f->step;
    f->done += f->step;
}

/* Lines line .. line + n - 1 of each row of the piece; line i is a tile's row. */
VEC_FN void piece_copy(const struct piece *p, int line, int n)
{
    for (int r = 0; r < p->n; r++) {
        const char *from = p->from + (size_t)r * p->stride, *ahead = p->ahead + r * p->stride;
        char *to = p->to + r * LINE;

        for (int i = line; i < line + n; i++) {
            _mm_prefetch(ahead + i * LINE, _MM_HINT_T1);
            _mm512_storeu_si512(to + (size_t)i * TILE_BYTES, _mm512_loadu_si512(from + i * LINE));
        }
    }
}

/* What the pieces have left over: mostly nothing but the ends of odd shapes. */
static void fill_finish(struct fill *f)
{
    int n_k = min_int(FILL_K, round_up(f->a->n_in, TILE_K) - f->k0);

    for (; f->done < f->n_rows; f->done++) {
        char *to = fill_target(f, f->done);
        bool there = fill_rows_left(f, f->done) > 0;
        const uint16_t *row = there ? fill_source(f, f->done) : NULL;
        int ahead = fill_rows_left(f, f->done) > AHEAD ? AHEAD * f->a->n_in : 0;

        for (int k = 0; k < n_k; k += TILE_K, to += TILE_BYTES) {
            int left = f->a->n_in - f->k0 - k;
            __m512i x = _mm512_setzero_si512();

            if (there && left >= TILE_K) {
                _mm_prefetch((const char *)(row + k + ahead), _MM_HINT_T1);
                x = _mm512_loadu_si512(row + k);
            } else if (there && left > 0) {
                x = _mm512_maskz_loadu_epi16((1u << left) - 1, row + k);
            }
            _mm512_storeu_si512(to, x);
        }
    }
    memory_fence();
}

/* ---- products ---- */

/* The operands of two by two tiles of C; every pointer's second tile lies `..._next` bytes on. */
struct block {
    float *c;
    size_t c_next; /* floats to the sums of the next group of rows; the next outputs' follow */
    const char *w, *x;
    size_t x_next;
    const char *x_ahead; /* what the L2 should have next, in groups x_next apart */
    int n_k, lines_ahead;
    bool first;
    struct piece piece;
};

/* C += A B over n_k tiles of k: T tiles of outputs by G groups of rows. */
VEC_FN void block_sum(const struct block *b, const int T, const int G)
{
    const size_t wt = (size_t)FILL_TILES * TILE_BYTES;
    float *c = b->c, *d = b->c + b->c_next;

    if (b->first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c, LINE);
        if (G == 2)
            _tile_loadd(1, d, LINE);
        if (T == 2)
            _tile_loadd(2, c + TILE_SUMS, LINE);
        if (T == 2 && G == 2)
            _tile_loadd(3, d + TILE_SUMS, LINE);
    }
    for (int k = 0; k < b->n_k; k++) {
        const char *w = b->w + (size_t)k * TILE_BYTES, *x = b->x + (size_t)k * TILE_BYTES;
        const char *x_ahead = b->x_ahead + (size_t)(k * b->lines_ahead) * LINE;

        _tile_loadd(4, w, LINE);
        _tile_loadd(6, x, LINE);
        _tile_dpbf16ps(0, 4, 6);
        if (T == 2) {
            _tile_loadd(5, w + wt, LINE);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (G == 2) {
            _tile_loadd(7, x + b->x_next, LINE);
            _tile_dpbf16ps(1, 4, 7);
            if (T == 2)
                _tile_dpbf16ps(3, 5, 7);
        }
        for (int i = 0; i < b->lines_ahead; i++) {
            _mm_prefetch(x_ahead + i * LINE, _MM_HINT_T1);
            if (G == 2)
                _mm_prefetch(x_ahead + b->x_next + i * LINE, _MM_HINT_T1);
        }
        piece_copy(&b->piece, k * (FILL_TILES / STEPS), FILL_TILES / STEPS);
    }
    _tile_stored(0, c, LINE);
    if (G == 2)
        _tile_stored(1, d, LINE);
    if (T == 2)
        _tile_stored(2, c + TILE_SUMS, LINE);
    if (T == 2 && G == 2)
        _tile_stored(3, d + TILE_SUMS, LINE);
}

static void block_sum_any(const struct block *b, int n_tiles, int n_groups)
{
    if (n_tiles >= 2 && n_groups >= 2)
        block_sum(b, 2, 2);
    else if (n_tiles >= 2)
        block_sum(b, 2, 1);
    else if (n_groups >= 2)
        block_sum(b, 1, 2);
    else
        block_sum(b, 1, 1);
}

/* One item under way. */
struct work {
    const struct gemm_args *a;
    struct item it;
    const char *weights; /* the block's tiles */
    float *sum;          /* [n_groups, n_tiles] tiles */
    int k0, kn;          /* the block */
    int n_groups, k_pad;
    size_t group_bytes;
};

/* Packed rows of group g from tile k of the block on. */
static const char *work_rows(const struct work *w, int g, int k)
{
    return (const char *)w->a->packed + (size_t)g * w->group_bytes +
           (size_t)(w->k0 / TILE_K + k) * TILE_BYTES;
}

/* What is read after tiles k .. of group g. */
static const char *rows_after(const struct work *w, int g, int k)
{
    if (k + STEPS < w->kn / TILE_K)
        return work_rows(w, g, k + STEPS);
    if (g + 2 < w->n_groups)
        return work_rows(w, g + 2, 0);
    return w->k0 + FILL_K < w->k_pad ? work_rows(w, 0, FILL_TILES) : w->a->packed;
}

/* Two groups of rows, or the last one, by all outputs of the item. */
static void sum_groups(const struct work *w, int g, struct fill *f)
{
    int n_k = w->kn / TILE_K, n_groups = min_int(2, w->n_groups - g);
    int n_pairs = (w->it.n_tiles + 1) / 2;
    struct block b = {.c_next = (size_t)w->it.n_tiles * TILE_SUMS, .x_next = w->group_bytes};

    for (int k = 0; k < n_k; k += STEPS) {
        const char *after = rows_after(w, g, k);

        b.n_k = min_int(STEPS, n_k - k);
        b.x = work_rows(w, g, k);
        b.first = w->k0 == 0 && k == 0;
        b.lines_ahead = (SIDE + n_pairs - 1) / n_pairs;
        for (int t = 0; t < w->it.n_tiles; t += 2) {
            b.c = w->sum + ((size_t)g * (size_t)w->it.n_tiles + (size_t)t) * TILE_SUMS;
            b.w = w->weights + ((size_t)t * FILL_TILES + (size_t)k) * TILE_BYTES;
            b.x_ahead = after + (size_t)(t / 2 * STEPS * b.lines_ahead) * LINE;
            b.piece.n = 0;
            if (b.n_k == STEPS)
                fill_piece(f, &b.piece);
            block_sum_any(&b, w->it.n_tiles - t, n_groups);
        }
    }
}

/* The sums of n_groups groups from g on are complete: to their places. */
static void finish_groups(const struct work *w, int g, int n_groups)
{
    int up_tile = w->it.side_rows / SIDE;

    memory_fence();
    for (int i = g; i < g + n_groups; i++) {
        const float *sum = w->sum + (size_t)i * (size_t)w->it.n_tiles * TILE_SUMS;

        for (int t = 0; t * SIDE < w->it.n_out; t++) {
            struct gemm_tile tile = {.sum = sum + (size_t)t * TILE_SUMS,
                                     .sum_up = w->a->w_up ? sum + (size_t)(up_tile + t) * TILE_SUMS
                                                          : NULL,
                                     .ld = SIDE,
                                     .out0 = w->it.out0 + t * SIDE,
                                     .n_out = min_int(SIDE, w->it.n_out - t * SIDE),
                                     .row0 = i * SIDE};

            cpu_gemm_epilogue_bf16(w->a, &tile, 1);
        }
    }
}

static size_t scratch_bytes(int n_in)
{
    (void)n_in;
    return 2 * FILL_BYTES + sizeof(float) * ITEM_ROWS * GEMM_MAX_ROWS;
}

/* One thread's share: items until the queue is empty, the next one taken before its weights are
 * wanted. */
static void run(const struct gemm_args *a, struct gemm_queue *q, void *scratch)
{
    struct work w = {.a = a,
                     .n_groups = (a->n_rows + SIDE - 1) / SIDE,
                     .k_pad = round_up(a->n_in, TILE_K),
                     .sum = (float *)((char *)scratch + 2 * FILL_BYTES)};
    int buffer = 0, n_calls;
    bool more = item_take(a, q, &w.it);
    struct fill f;

    CHECK(a->n_rows <= GEMM_MAX_ROWS);
    if (!more)
        return;
    w.group_bytes = (size_t)w.k_pad * SIDE * 2;
    tiles_configure();
    fill_start(&f, a, &w.it, 0, scratch, 1);
    fill_finish(&f);
    while (more) {
        for (w.k0 = 0; w.k0 < w.k_pad; w.k0 += FILL_K) {
            struct item next = w.it;
            bool last = w.k0 + FILL_K >= w.k_pad;

            w.kn = min_int(FILL_K, w.k_pad - w.k0);
            w.weights = (char *)scratch + (size_t)buffer * FILL_BYTES;
            buffer = 1 - buffer;
            n_calls = (w.n_groups + 1) / 2 * ((w.it.n_tiles + 1) / 2) * (w.kn / (STEPS * TILE_K));
            if (last)
                more = item_take(a, q, &next);
            if (more)
                fill_start(&f, a, &next, last ? 0 : w.k0 + FILL_K,
                           (char *)scratch + (size_t)buffer * FILL_BYTES, n_calls);
            for (int g = 0; g < w.n_groups; g += 2) {
                sum_groups(&w, g, &f);
                if (last)
                    finish_groups(&w, g, min_int(2, w.n_groups - g));
            }
            fill_finish(&f);
            if (last)
                w.it = next;
        }
    }
    _tile_release();
}

const struct cpu_gemm cpu_gemm_amx = {
    .name = "amx",
    .lanes = SIDE,
    .k_multiple = TILE_K,
    .bf16 = true,
    .grain = ITEM_ROWS,
    .grain_gated = ITEM_ROWS / 2,
    .grain_least = LEAST,
    .scratch_bytes = scratch_bytes,
    .pack = cpu_gemm_pack_bf16,
    .run = run,
};
#endif
