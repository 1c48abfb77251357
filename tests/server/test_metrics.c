/*
 * Tests of server/metrics.c: the page is what a Prometheus scraper accepts, and it adds up.
 */
#include "tests/lib/test.h"

#include "base/file_map.h"
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/engine.h"
#include "server/metrics.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MS INT64_C(1000000)

static struct metrics metrics;
static struct engine_stats stats;
static struct engine_info info;
static struct strbuf page;

static void setup(void)
{
    memset(&metrics, 0, sizeof(metrics));
    memset(&stats, 0, sizeof(stats));
    info = (struct engine_info){.model_id = "a\"b\\c\nd", .plan = "dense", .device = "cpu"};
    strbuf_init(&page);
}

static void teardown(void)
{
    strbuf_release(&page);
}

static void write_page(void)
{
    strbuf_reset(&page);
    metrics_write(&metrics, &stats, &info, &page);
    ck_assert(!page.failed);
}

/* The value of the first sample of that name whose labels hold `label` (NULL: any). */
static double sample(const char *name, const char *label)
{
    const char *line = page.buf;
    size_t len = strlen(name);

    for (; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        const char *end = strchr(line, '\n');
        const char *hit;

        if (strncmp(line, name, len) || (line[len] != '{' && line[len] != ' '))
            continue;
        hit = label ? strstr(line, label) : line;
        if (hit && hit < end)
            return atof(memrchr(line, ' ', end - line) + 1);
    }
    ck_abort_msg("no sample %s %s", name, label ? label : "");
    return 0;
}

/* `name{label="value",...} number`, checked by hand as the format's grammar has it. */
static void check_sample_line(const char *line, const char *end)
{
    const char *p = line;
    char *after;

    ck_assert(isalpha((unsigned char)*p) || *p == '_' || *p == ':');
    while (isalnum((unsigned char)*p) || *p == '_' || *p == ':')
        p++;
    if (*p == '{') {
        do {
            p++;
            while (isalnum((unsigned char)*p) || *p == '_')
                p++;
            ck_assert_msg(p[0] == '=' && p[1] == '"', "%.*s", (int)(end - line), line);
            for (p += 2; *p != '"'; p++) {
                if (*p == '\\')
                    p++;
                ck_assert(p < end);
            }
            p++;
        } while (*p == ',');
        ck_assert_msg(*p == '}', "%.*s", (int)(end - line), line);
        p++;
    }
    ck_assert_int_eq(*p, ' ');
    strtod(p + 1, &after);
    ck_assert_msg(after == end, "%.*s", (int)(end - line), line);
}

/* Every line is a comment or a sample, and no family is declared twice. */
START_TEST(metrics__writes_the_text_format)
{
    stats.n_ops = 1;
    stats.ops[0].name = "attn";
    metrics_count_response(&metrics, 0, 200);
    metrics_count_response(&metrics, 0, 418);
    write_page();
    for (char *line = page.buf; *line;) {
        char *end = strchr(line, '\n');

        ck_assert_ptr_nonnull(end);
        if (!strncmp(line, "# TYPE ", 7)) {
            size_t len = strchr(line + 7, ' ') + 1 - line;

            ck_assert_msg(!memmem(end, page.buf + page.len - end, line, len), "twice: %.*s",
                          (int)len, line);
        } else if (*line != '#') {
            check_sample_line(line, end);
        }
        line = end + 1;
    }
}
END_TEST

/* Kubernetes endpoint pickers look for these names. */
START_TEST(metrics__has_the_names_of_vllm)
{
    stats.n_waiting = 3;
    stats.n_running = 2;
    info.n_layers = 2;
    info.n_kv_heads = 2;
    info.page_tokens = 64;
    stats.pages_total = 8;
    stats.pages_used = 2;
    metrics.n_parked = 4;
    write_page();
    ck_assert_double_eq(sample("vllm:num_requests_waiting", "model_name="), 7);
    ck_assert_double_eq(sample("vllm:num_requests_running", NULL), 2);
    ck_assert_double_eq(sample("vllm:kv_cache_usage_perc", NULL), 0.25);
    ck_assert_double_eq(sample("vllm:cache_config_info", "block_size=\"64\",num_gpu_blocks=\"2\""),
                        1);
    ck_assert_double_eq(sample("spand_requests_running", NULL), 2);
    ck_assert_double_eq(sample("vllm:request_success_total", "finished_reason=\"stop\""), 0);
}
END_TEST

/* Buckets are cumulative, the last one equals the count, and the sum is in seconds. */
START_TEST(metrics__adds_up_histograms)
{
    struct engine_event ev = {.n_tokens = 1,
                              .submit_ns = 1,
                              .start_ns = 1 + MS,
                              .first_token_ns = 1 + 4 * MS,
                              .last_token_ns = 1 + 4 * MS};

    metrics_count_event(&metrics, &ev, 0);
    ev.n_tokens = 2;
    ev.last_token_ns += 2 * MS;
    ev.finish = FINISH_LENGTH;
    ev.n_completion_tokens = 3;
    ev.n_prompt_tokens = 7;
    metrics_count_event(&metrics, &ev, 1 + 4 * MS);
    write_page();
    ck_assert_double_eq(sample("spand_time_to_first_token_seconds_bucket", "le=\"0.002\""), 0);
    ck_assert_double_eq(sample("spand_time_to_first_token_seconds_bucket", "le=\"0.005\""), 1);
    ck_assert_double_eq(sample("spand_time_to_first_token_seconds_bucket", "le=\"+Inf\""), 1);
    ck_assert_double_eq_tol(sample("spand_time_to_first_token_seconds_sum", NULL), 0.004, 1e-9);
    ck_assert_double_eq(sample("spand_inter_token_latency_seconds_count", NULL), 2);
    ck_assert_double_eq(sample("vllm:inter_token_latency_seconds_bucket", "le=\"0.001\""), 2);
    ck_assert_double_eq(sample("spand_e2e_request_latency_seconds_count", NULL), 1);
    ck_assert_double_eq(sample("spand_request_prompt_tokens_sum", NULL), 7);
    ck_assert_double_eq(sample("spand_request_generation_tokens_sum", NULL), 3);
}
END_TEST

/* Ten tokens in the first news are nine gaps, not ten and not none. */
START_TEST(metrics__counts_gaps_within_the_first_event)
{
    struct engine_event ev = {
        .n_tokens = 10, .submit_ns = 1, .first_token_ns = MS, .last_token_ns = 10 * MS};

    metrics_count_event(&metrics, &ev, 0);
    ck_assert_int_eq(metrics.itl.n, 9);
    ck_assert_double_eq_tol(metrics.itl.sum, 0.009, 1e-12);
    ck_assert_int_eq(metrics.ttft.n, 1);
}
END_TEST

/* The committed list of series is the one that the code would write. */
START_TEST(metrics__have_fresh_docs)
{
    struct strbuf want = STRBUF_INIT;
    char *text;
    size_t len;
    struct err err = {0};

    metrics_print_markdown(&want);
    ck_assert_int_eq(file_read_text(&text, &len, test_path("server/METRICS.md"), 1 << 20, &err), 0);
    ck_assert_msg(!strcmp(text, want.buf), "run `make docs`");
    free(text);
    strbuf_release(&want);
}
END_TEST

TEST_SUITE(metrics)
{
    TCase *tc = test_case(suite, "page");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, metrics__writes_the_text_format);
    tcase_add_test(tc, metrics__has_the_names_of_vllm);
    tcase_add_test(tc, metrics__adds_up_histograms);
    tcase_add_test(tc, metrics__counts_gaps_within_the_first_event);
    tcase_add_test(tc, metrics__have_fresh_docs);
}
