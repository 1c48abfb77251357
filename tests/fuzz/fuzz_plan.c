/*
 * fuzz_plan - any bytes as a plan file, a gate table or a spec: refused with a message, or a plan
 * whose spans, pages and totals stay within their bounds at every length.
 *
 * Input: a byte that says which, and behind it the file. Gates come with fixed sizes.
 */
#include "base/check.h"
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/plan/plan_draw.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define N_LAYERS 2
#define N_HEADS  4
#define N_KV     2

static char dir[64];

static const char *path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static void put(const char *name, const void *data, size_t size)
{
    FILE *f = fopen(path_of(name), "w");

    CHECK(f);
    CHECK(fwrite(data, 1, size, f) == size);
    CHECK(fclose(f) == 0);
}

static void clean_up(void)
{
    unlink(path_of("plan.json"));
    unlink(path_of("config.json"));
    unlink(path_of("full_attention_heads.tsv"));
    rmdir(dir);
}

static void start(void)
{
    static const char sizes[] = "{\"sink_size\": 128, \"recent_size\": 256}";

    snprintf(dir, sizeof(dir), "/tmp/fuzz-plan-XXXXXX");
    CHECK(mkdtemp(dir));
    put("config.json", sizes, sizeof(sizes) - 1);
    atexit(clean_up);
}

static void check_plan(struct plan *p)
{
    static const int lengths[] = {1, 63, 64, 65, 4096, 262144, 16777216};
    struct kv_geom geom[N_LAYERS * N_KV];
    int32_t window[N_LAYERS * N_HEADS];
    struct strbuf out = STRBUF_INIT;

    plan_set_window(p, 1, 4096);
    for (int fixed = 0; fixed < 2; fixed++) {
        plan_set_length(p, fixed * 1000);
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
            int n = lengths[i];

            plan_geometry(p, n, geom, window);
            for (int h = 0; h < N_LAYERS * N_KV; h++) {
                CHECK(geom[h].n_sink >= 0);
                CHECK(geom[h].ring >= KV_TILE);
                CHECK(geom[h].ring % KV_TILE == 0);
                CHECK(kv_geom_pages(geom[h], n, 64) >= 1);
                CHECK(kv_geom_keys_read(geom[h], n - 1) <= n);
            }
            for (int h = 0; h < N_LAYERS * N_HEADS; h++) {
                CHECK(window[h] >= 1);
                CHECK(window[h] <= geom[h / (N_HEADS / N_KV)].ring ||
                      geom[h / (N_HEADS / N_KV)].ring == KV_RING_DENSE);
            }
            CHECK(plan_kv_slots(p, n) * (N_HEADS / N_KV) >= plan_query_slots(p, n));
        }
    }
    plan_describe_all(p, 4096, &out);
    plan_draw_text(p, 4096, PLAN_COLOURS_256, &out);
    plan_draw_svg(p, "m", 4096, &out);
    CHECK(!out.failed);
    strbuf_release(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kv_shape shape = {.n_layers = N_LAYERS,
                             .n_heads = N_HEADS,
                             .n_kv_heads = N_KV,
                             .head_dim = 8,
                             .page_entries = 64};
    struct plan *p = NULL;
    struct err err = {0};
    char spec[256];

    if (!dir[0])
        start();
    if (size < 1)
        return 0;
    switch (data[0] % 3) {
    case 0:
        put("plan.json", data + 1, size - 1);
        snprintf(spec, sizeof(spec), "%s", path_of("plan.json"));
        break;
    case 1:
        put("full_attention_heads.tsv", data + 1, size - 1);
        snprintf(spec, sizeof(spec), "duo:%s%s", dir, data[0] & 4 ? ",0.5" : "");
        break;
    default:
        snprintf(spec, sizeof(spec), "%s%.*s",
                 data[0] & 4 ? "streaming:" : "uniform:", (int)(size - 1 < 100 ? size - 1 : 100),
                 (const char *)data + 1);
        break;
    }
    if (plan_open(&p, spec, &shape, (enum plan_convention)(data[0] / 8 % 3), &err) == 0)
        check_plan(p);
    else
        CHECK(err.msg[0]);
    plan_free(p);
    return 0;
}
