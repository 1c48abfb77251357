/*
 * Whole searches on a tiny model with random weights: what is written, what is kept when a run is
 * stopped, and what is said about bad input.
 */
#include "base/err.h"
#include "base/file_map.h"
#include "base/json_file.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/plan/plan.h"
#include "engine/plan/search/calibration.h"
#include "engine/plan/search/search_run.h"
#include "tests/lib/test.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct job {
    char root[64], output[128], input[128];
    struct config config;
    struct model_config model;
    struct search_options o;
};

static void write_file(const char *path, const char *text, size_t len)
{
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fwrite(text, 1, len, f), len);
    fclose(f);
}

/* A search over lengths 128 and 256 of a tiny model, on texts of its own. */
static void job_init(struct job *j)
{
    static char *flags[] = {"--weights", "random", "--device",    "cpu",  "--max-batch", "4",
                            "--threads", "2",      "--dtype",     "f32",  "--kv-memory", "16MiB",
                            "--model",   NULL,     "--log-level", "error"};
    struct config_sources from = {.argc = sizeof(flags) / sizeof(flags[0]), .argv = flags};
    struct err err = {0};
    FILE *f;

    memset(j, 0, sizeof(*j));
    strcpy(j->root, "/tmp/spand-search-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(j->root));
    flags[13] = (char *)(uintptr_t)test_path("tests/fixtures/engine/tiny");
    ck_assert_msg(config_load(&j->config, &from, &err) == 0, "%s", err.msg);
    ck_assert_msg(model_config_load(&j->model, j->config.model, &err) == 0, "%s", err.msg);
    snprintf(j->output, sizeof(j->output), "%s/plan.json", j->root);
    snprintf(j->input, sizeof(j->input), "%s/texts.jsonl", j->root);
    f = fopen(j->input, "w");
    for (int i = 0; i < 12; i++)
        fprintf(
            f, "{\"text\": \"Number %d of the texts is about the number %d, and \xc3\xa9 too.\"}\n",
            i, i * 37 % 100);
    fclose(f);
    j->o = (struct search_options){
        .config = &j->config,
        .model = &j->model,
        .output = j->output,
        .input = j->input,
        .template_text = "Q: {text} A:",
        .source = SOURCE_FILE,
        .raw_prompts = true,
        .baselines = true,
        .n_lengths = 2,
        .length = {128, 256},
        .items = 4,
        .validate_items = 3,
        .validate_length = 384,
        .validate_best = 2,
        .answer_tokens = 12,
        .n_intervals = 3,
        .gap = 1e-4,
        .max_nodes = 100,
        .density = 0.75,
        .seed = 1,
        .grid = {.kind = GRID_EIGHTH, .shortest = 128, .longest = 256, .longest_cap = 512}};
    j->o.caps =
        (struct search_caps){.n = 3, .length = {256, 384, 512}, .density = {0.75, 0.75, 0.75}};
    snprintf(j->o.dir, sizeof(j->o.dir), "%s/report", j->root);
}

static void job_release(struct job *j)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", j->root);
    ck_assert_int_eq(system(command), 0);
    config_release(&j->config);
}

static bool is_there(const struct job *j, const char *name)
{
    char path[4300];
    struct stat st;

    snprintf(path, sizeof(path), "%s/%s", j->o.dir, name);
    return stat(path, &st) == 0 && st.st_size > 0;
}

static void fails(struct job *j, int code, const char *message)
{
    struct err err = {0};
    struct stat st;

    ck_assert_int_eq(search_run(&j->o, STAGE_ALL, "test", &err), code);
    ck_assert_msg(strstr(err.msg, message) != NULL, "'%s' has no '%s'", err.msg, message);
    ck_assert_int_ne(stat(j->output, &st), 0); /* no plan, whole or partial */
}

static char *read_output(const struct job *j)
{
    struct err err = {0};
    char *text;

    ck_assert_msg(file_read_text(&text, NULL, j->output, 1 << 20, &err) == 0, "%s", err.msg);
    return text;
}

/* What the original's loader reads: exactly two tables that it cares for, of lists of numbers. */
static void check_two_keys(const char *path, int n_layers, int n_heads)
{
    static const char *const keys[] = {"alphas", "betas"};
    struct err err = {0};
    json_t *root;

    ck_assert_int_eq(json_file_load(&root, path, 1 << 20, &err), 0);
    for (int k = 0; k < 2; k++) {
        const json_t *table = json_object_get(root, keys[k]);

        ck_assert_int_eq(json_array_size(table), n_layers);
        for (int l = 0; l < n_layers; l++) {
            ck_assert_int_eq(json_array_size(json_array_get(table, (size_t)l)), n_heads);
            for (int h = 0; h < n_heads; h++)
                ck_assert(
                    json_is_number(json_array_get(json_array_get(table, (size_t)l), (size_t)h)));
        }
    }
    json_decref(root);
}

START_TEST(search__writes_a_plan_that_loads)
{
    static const char *const names[] = {"calibration.jsonl",   "profile_128.csv", "profile_256.csv",
                                        "pareto.csv",          "plans.csv",       "front.svg",
                                        "spans.svg",           "index.html",      "plan_0.json",
                                        "validation_dense.csv"};
    struct job j;
    struct err err = {0};
    struct plan *plan;
    struct kv_shape shape = {.n_layers = 3,
                             .n_heads = 4,
                             .n_kv_heads = 2,
                             .head_dim = 16,
                             .page_entries = 64,
                             .dtype = DTYPE_F32};
    char path[4300], *page;

    job_init(&j);
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "spand-plan <test>", &err) == 0, "%s", err.msg);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        ck_assert_msg(is_there(&j, names[i]), "%s is missing", names[i]);
    ck_assert(!is_there(&j, "calibration.part"));
    check_two_keys(j.output, 3, 4);
    ck_assert_msg(plan_open(&plan, j.output, &shape, PLAN_SPAN_AUTO, &err) == 0, "%s", err.msg);
    for (int i = 0; i < j.o.caps.n; i++)
        ck_assert(plan_kv_density(plan, j.o.caps.length[i]) <= 0.75 + 1e-9);
    for (int i = 0; i < 12; i += 2) /* one rule a KV head */
        ck_assert(memcmp(&plan->rules[i], &plan->rules[i + 1], sizeof(plan->rules[i])) == 0);
    plan_free(plan);
    snprintf(path, sizeof(path), "%s/index.html", j.o.dir);
    ck_assert_int_eq(file_read_text(&page, NULL, path, 1 << 22, &err), 0);
    ck_assert_ptr_nonnull(strstr(page, "spand-plan &lt;test&gt;"));
    for (const char *at = page; (at = strstr(at, "http")); at++) /* nothing to fetch */
        ck_assert(strncmp(at, "http://www.w3.org/2000/svg", 26) == 0);
    free(page);
    job_release(&j);
}
END_TEST

/* Nothing but a config.json: random tokens take the place of texts, so that times can be measured.
 */
START_TEST(search__does_without_texts_where_weights_are_random)
{
    struct job j;
    struct err err = {0};
    struct calibration items;
    char dir[128], path[160], *text = NULL;
    size_t len;

    job_init(&j);
    snprintf(dir, sizeof(dir), "%s/bare", j.root);
    ck_assert_int_eq(mkdir(dir, 0755), 0);
    ck_assert_int_eq(file_read_text(&text, &len,
                                    test_path("tests/fixtures/engine/tiny/config.json"), 1 << 20,
                                    &err),
                     0);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    write_file(path, text, len);
    free(text);
    free(j.config.model);
    j.config.model = strdup(dir);
    j.o.source = SOURCE_BOTH;
    j.o.input = NULL;
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "a command", &err) == 0, "%s", err.msg);
    ck_assert(access(j.output, R_OK) == 0);
    ck_assert_int_eq(calibration_get(&items, &j.o, &err), 0);
    ck_assert(items.was_kept);
    for (int i = 0; i < items.n_items; i++)
        ck_assert_str_eq(items.items[i].source, "random");
    calibration_release(&items);
    job_release(&j);
}
END_TEST

START_TEST(search__has_a_rule_for_each_query_head_on_request)
{
    struct job j;
    struct err err = {0};

    job_init(&j);
    j.o.per_query_head = true;
    j.o.max_rules_per_layer = 2;
    j.o.validate_best = 0;
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
    check_two_keys(j.output, 3, 4);
    job_release(&j);
}
END_TEST

/* A second run finds every stage done, and writes the same plan. */
START_TEST(search__makes_nothing_twice)
{
    struct job j;
    struct err err = {0};
    struct stat before, after;
    char path[4300], *first, *second;

    job_init(&j);
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
    first = read_output(&j);
    snprintf(path, sizeof(path), "%s/profile_256.csv", j.o.dir);
    ck_assert_int_eq(stat(path, &before), 0);
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
    ck_assert_int_eq(stat(path, &after), 0);
    ck_assert_int_eq(before.st_ino, after.st_ino);
    second = read_output(&j);
    ck_assert_str_eq(first, second);
    free(first);
    free(second);
    job_release(&j);
}
END_TEST

/* Runs a search in a child that is interrupted once `name` is there. Returns its exit status. */
static int run_interrupted(const struct job *j, const char *name)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        struct err err = {0};

        search_catch_signals();
        _exit(search_run(&j->o, STAGE_ALL, "test", &err) == ERR_CLOSED ? 3 : 4);
    }
    for (int i = 0; i < 3000 && !is_there(j, name); i++) {
        if (waitpid(child, &status, WNOHANG) == child)
            return WEXITSTATUS(status);
        usleep(2000);
    }
    kill(child, SIGINT);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return WEXITSTATUS(status);
}

/* Rewrites focus.csv so that windows lose the second token of every answer alone; the mean loss of
 * those tokens at the length. */
static double lose_second_tokens(const struct job *j, int length)
{
    struct err err = {0};
    char path[4300], *text, *line, *rest;
    struct strbuf out = STRBUF_INIT;
    struct calibration items = {0};
    double sum = 0;
    int n = 0;

    ck_assert_msg(calibration_get(&items, &j->o, &err) == 0, "%s", err.msg);
    snprintf(path, sizeof(path), "%s/focus.csv", j->o.dir);
    ck_assert_msg(file_read_text(&text, NULL, path, 1 << 20, &err) == 0, "%s", err.msg);
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        int item, token, id;
        float dense, window;

        if (sscanf(line, "%d,%d,%d,%f,%f", &item, &token, &id, &dense, &window) != 5) {
            strbuf_addf(&out, "%s\n", line);
            continue;
        }
        strbuf_addf(&out, "%d,%d,%d,%.9g,%.9g\n", item, token, id, (double)dense,
                    (double)dense + (token == 1 ? 0.7 : 0.69));
        if (token == 1 && items.items[item].length == length) {
            sum += (double)dense;
            n++;
        }
    }
    write_file(path, out.buf, out.len);
    strbuf_release(&out);
    free(text);
    calibration_release(&items);
    ck_assert_int_gt(n, 0);
    return sum / n;
}

START_TEST(search__focus_leaves_loss_to_tokens_that_windows_lose)
{
    struct job j;
    struct err err = {0};
    char path[4300], *text;
    double want, got = 0;
    int n_items = 0;

    job_init(&j);
    j.o.focus = true;
    /* Of random weights no answer depends on anything far enough; or some do. */
    if (search_run(&j.o, STAGE_PROFILE, "test", &err) < 0)
        ck_assert_msg(strstr(err.msg, "focus: no answer at") != NULL, "%s", err.msg);
    want = lose_second_tokens(&j, 256);
    ck_assert_msg(search_run(&j.o, STAGE_PROFILE, "test", &err) == 0, "%s", err.msg);
    snprintf(path, sizeof(path), "%s/profile_256.csv", j.o.dir);
    unlink(path); /* it may be of the first run's tokens */
    ck_assert_msg(search_run(&j.o, STAGE_PROFILE, "test", &err) == 0, "%s", err.msg);
    ck_assert_msg(file_read_text(&text, NULL, path, 1 << 20, &err) == 0, "%s", err.msg);
    ck_assert_ptr_nonnull(strstr(text, "# items "));
    ck_assert_int_eq(sscanf(strstr(text, "# items "), "# items %d loss %lf", &n_items, &got), 2);
    ck_assert_int_eq(n_items, j.o.items);
    ck_assert_double_eq_tol(got, want, 1e-3);
    free(text);
    job_release(&j);
}
END_TEST

/* Tokens that the written plan keeps in a layer of 4 query heads at n tokens. */
static double layer_tokens(const struct job *j, size_t layer, int n)
{
    struct err err = {0};
    json_t *root;
    double sum = 0;

    ck_assert_int_eq(json_file_load(&root, j->output, 1 << 20, &err), 0);
    for (size_t h = 0; h < 4; h++) {
        double alpha = json_number_value(
            json_array_get(json_array_get(json_object_get(root, "alphas"), layer), h));
        double beta = json_number_value(
            json_array_get(json_array_get(json_object_get(root, "betas"), layer), h));

        sum += fmin(fmax(alpha + beta * n, 128), n);
    }
    json_decref(root);
    return sum;
}

START_TEST(search__scales_layers_to_what_their_spans_cost)
{
    struct job j;
    struct err err = {0};
    char path[4300], *text;
    struct strbuf out = STRBUF_INIT;
    double kept[3];

    job_init(&j);
    j.o.scale_layers = true;
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
    snprintf(path, sizeof(path), "%s/layer_scale.csv", j.o.dir);
    ck_assert_msg(file_read_text(&text, NULL, path, 1 << 20, &err) == 0, "%s", err.msg);
    strbuf_addf(&out, "%.*s\nlength,unit,factor\n", (int)(strchr(text, '\n') - text), text);
    /* Had layer 1 cost nothing, it would get the least. */
    for (int i = 0; i < j.o.n_lengths; i++)
        for (int unit = 0; unit < 6; unit++)
            strbuf_addf(&out, "%d,%d,%g\n", j.o.length[i], unit, unit / 2 == 1 ? 1e-9 : 1.0);
    write_file(path, out.buf, out.len);
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
    for (size_t layer = 0; layer < 3; layer++)
        kept[layer] = layer_tokens(&j, layer, 512);
    ck_assert_double_lt(kept[1], kept[0]);
    ck_assert_double_lt(kept[1], kept[2]);
    strbuf_release(&out);
    free(text);
    job_release(&j);
}
END_TEST

START_TEST(search__goes_on_after_ctrl_c_at_any_stage)
{
    static const char *const at[] = {"calibration.part", "calibration.jsonl", "profile_128.csv",
                                     "plan_0.json", "validation_dense.csv"};
    struct job j;
    struct err err = {0};
    struct stat st;
    char *whole, *resumed;
    int n_stopped = 0;

    job_init(&j);
    j.o.items = 8;
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
    whole = read_output(&j);
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        int status;

        unlink(j.output);
        snprintf(j.o.dir, sizeof(j.o.dir), "%s/report_%zu", j.root, i);
        status = run_interrupted(&j, at[i]);
        ck_assert_msg(status == 3 || (status == 4 && stat(j.output, &st) == 0),
                      "interrupted at %s: exit %d", at[i], status);
        ck_assert(status == 4 || stat(j.output, &st) != 0);
        n_stopped += status == 3;
        ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
        resumed = read_output(&j);
        ck_assert_str_eq(whole, resumed);
        free(resumed);
    }
    printf("search: stopped %d times of 5, and went on to the same plan\n", n_stopped);
    ck_assert_int_ge(n_stopped, 2); /* the others were done before the signal came */
    free(whole);
    job_release(&j);
}
END_TEST

/* A file may grow to so many bytes only, as on a disk that fills up, in each stage in turn. */
START_TEST(search__leaves_no_partial_plan_on_a_full_disk)
{
    static const rlim_t limits[] = {100, 600, 3000, 6000};
    struct job j;

    job_init(&j);
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        pid_t child = fork();
        int status;
        struct stat st;

        if (child == 0) {
            struct rlimit limit = {.rlim_cur = limits[i], .rlim_max = RLIM_INFINITY};
            struct err err = {0};
            int rc;

            setrlimit(RLIMIT_FSIZE, &limit);
            rc = search_run(&j.o, STAGE_ALL, "test", &err);
            _exit(rc == ERR_IO && strstr(err.msg, j.root) ? 3 : 4);
        }
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_msg(WEXITSTATUS(status) == 3, "limit %d: exit %d", (int)limits[i],
                      WEXITSTATUS(status));
        ck_assert_int_eq(WEXITSTATUS(status), 3);
        ck_assert(stat(j.output, &st) != 0 || st.st_size > 800);
    }
    job_release(&j);
}
END_TEST

START_TEST(search__refuses_bad_calibration_files)
{
    static const struct {
        const char *text, *message;
        int code;
    } cases[] = {
        {"", "holds no texts", ERR_INVALID},
        {"\n \n", "holds no texts", ERR_INVALID},
        {"{\"text\": \"a\xff\"}\n", ":1: not UTF-8", ERR_PARSE},
        {"{\"text\": \"a\"}\n\xc3(\n", ":2: not UTF-8", ERR_PARSE},
        {"{\"text\": \"a\"\n", ":1: no JSON object", ERR_PARSE},
        {"{\"text\": 3}\n", ":1: want an object with a string", ERR_PARSE},
        {"{\"other\": \"a\"}\n", ":1: want an object with a string", ERR_PARSE},
        {"[1]\n", ":1: want an object with a string", ERR_PARSE},
        {"{\"text\": \"\"}\n", ":1: the text is empty", ERR_PARSE},
        {"{\"text\": \"a\", \"answer\": 1}\n", ":1: \"answer\" is no string", ERR_PARSE},
        {"{\"text\": \"short\"}\n", "no text fills 128 tokens", ERR_INVALID},
    };
    struct job j;

    job_init(&j);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_file(j.input, cases[i].text, strlen(cases[i].text));
        fails(&j, cases[i].code, cases[i].message);
    }
    unlink(j.input);
    fails(&j, ERR_NOT_FOUND, "texts.jsonl");
    job_release(&j);
}
END_TEST

START_TEST(search__refuses_prompts_longer_than_the_context)
{
    struct job j;
    char *text = malloc(2100);

    job_init(&j);
    memset(text, 'x', 2100);
    memcpy(text, "{\"prompt\": \"", 12);
    memcpy(text + 2090, "\"}\n", 3);
    write_file(j.input, text, 2093);
    fails(&j, ERR_CONTEXT, "the context of 1024 is too short");
    free(text);
    job_release(&j);
}
END_TEST

START_TEST(search__asks_first_whether_it_can_write)
{
    struct job j;

    job_init(&j);
    j.o.output = "/nowhere/plan.json";
    fails(&j, ERR_IO, "/nowhere/plan.json: cannot write there");
    ck_assert(!is_there(&j, "calibration.jsonl"));
    job_release(&j);
}
END_TEST

START_TEST(search__says_that_answers_are_missing)
{
    struct job j;

    job_init(&j);
    j.o.answers = ANSWERS_GIVEN;
    fails(&j, ERR_INVALID, "no answer is given");
    job_release(&j);
}
END_TEST

START_TEST(search__takes_given_answers_and_whole_context_loss)
{
    struct job j;
    struct err err = {0};
    FILE *f;

    job_init(&j);
    f = fopen(j.input, "w");
    for (int i = 0; i < 8; i++) {
        fprintf(f, "{\"prompt\": \"");
        for (int k = 0; k < (i % 2 ? 100 : 225); k++)
            fputc('a' + (i + k) % 26, f);
        fprintf(f, "\", \"answer\": \"yes %d\"}\n", i);
    }
    fclose(f);
    j.o.answers = ANSWERS_GIVEN;
    j.o.whole_context_loss = j.o.log_odds = true;
    j.o.validate_best = 0;
    ck_assert_msg(search_run(&j.o, STAGE_ALL, "test", &err) == 0, "%s", err.msg);
    job_release(&j);
}
END_TEST

START_TEST(search__says_which_length_fits_the_memory)
{
    struct job j;

    job_init(&j);
    j.o.profile_memory = 1100000;
    fails(&j, ERR_NO_ROOM, "tokens would fit");
    ck_assert(is_there(&j, "calibration.jsonl"));
    ck_assert(is_there(&j, "profile_128.csv"));
    job_release(&j);
}
END_TEST

START_TEST(search__keeps_earlier_stages_when_a_density_cannot_be_kept)
{
    struct job j;

    job_init(&j);
    j.o.caps.density[0] = 0.3;
    fails(&j, ERR_INVALID, "density 0.3000 at 256 tokens cannot be kept");
    ck_assert(is_there(&j, "calibration.jsonl"));
    ck_assert(is_there(&j, "profile_256.csv"));
    job_release(&j);
}
END_TEST

TEST_SUITE(search)
{
    TCase *tc = test_case(suite, "core");

    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, search__writes_a_plan_that_loads);
    tcase_add_test(tc, search__does_without_texts_where_weights_are_random);
    tcase_add_test(tc, search__has_a_rule_for_each_query_head_on_request);
    tcase_add_test(tc, search__makes_nothing_twice);
    tcase_add_test(tc, search__focus_leaves_loss_to_tokens_that_windows_lose);
    tcase_add_test(tc, search__scales_layers_to_what_their_spans_cost);
    tcase_add_test(tc, search__goes_on_after_ctrl_c_at_any_stage);
    tcase_add_test(tc, search__leaves_no_partial_plan_on_a_full_disk);
    tcase_add_test(tc, search__refuses_bad_calibration_files);
    tcase_add_test(tc, search__refuses_prompts_longer_than_the_context);
    tcase_add_test(tc, search__asks_first_whether_it_can_write);
    tcase_add_test(tc, search__says_that_answers_are_missing);
    tcase_add_test(tc, search__takes_given_answers_and_whole_context_loss);
    tcase_add_test(tc, search__says_which_length_fits_the_memory);
    tcase_add_test(tc, search__keeps_earlier_stages_when_a_density_cannot_be_kept);
}
