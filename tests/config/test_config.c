/*
 * Tests of config/: every type, every refusal and its message, the order of the sources, and the
 * generated files.
 */
#include "tests/lib/test.h"

#include "base/err.h"
#include "base/file_map.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "config/config_hint.h"
#include "config/config_value.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_ARGS 16

static char file[64];
static struct config cfg;
static struct err err;

static void setup(void)
{
    int fd;

    strcpy(file, "/tmp/spand-test-XXXXXX");
    fd = mkstemp(file);
    ck_assert_int_ge(fd, 0);
    close(fd);
    err = (struct err){0};
    cfg = (struct config){0};
}

static void teardown(void)
{
    config_release(&cfg);
    unlink(file);
}

static void write_config(const char *text)
{
    FILE *f = fopen(file, "wb");

    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

/* Loads with NULL-terminated lists of flags and variables; a previous config is released. */
static int load(const char *const *args, const char *const *envp, const struct config_extra *extras,
                int n_extras)
{
    struct config_sources from = {
        .argv = (char **)args, .envp = (char **)envp, .extras = extras, .n_extras = n_extras};

    while (args && args[from.argc])
        from.argc++;
    err = (struct err){0};
    config_release(&cfg);
    return config_load(&cfg, &from, &err);
}

static int load_args(const char *const *args)
{
    return load(args, NULL, NULL, 0);
}

static int load_text(const char *json)
{
    const char *args[] = {"--config", file, NULL};

    write_config(json);
    return load_args(args);
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* A refused load says why and leaves nothing behind. */
static void assert_refused(int rc, int want_rc, const char *want)
{
    static const struct config nothing;

    ck_assert_msg(rc == want_rc, "rc %d, want %d: %s", rc, want_rc, err.msg);
    ck_assert_msg(strstr(err.msg, want), "message \"%s\", want \"%s\"", err.msg, want);
    ck_assert_mem_eq(&cfg, &nothing, sizeof(cfg));
}

/* Without any source every key has its default, and every default passes its own bounds. */
START_TEST(config__starts_from_the_defaults)
{
    ck_assert_msg(config_init(&cfg, &err) == 0, "%s", err.msg);
    ck_assert_str_eq(cfg.model, "models/demo-llama");
    ck_assert_str_eq(cfg.served_model_name, "");
    ck_assert_int_eq(cfg.max_batch, 32);
    ck_assert_int_eq(cfg.max_body_bytes, 32 << 20);
    ck_assert_int_eq(cfg.connection_memory_bytes, 128 << 10);
    ck_assert_double_eq(cfg.gpu_memory_fraction, 0.9);
    ck_assert(cfg.metrics);
    ck_assert(!cfg.debug_endpoints);
    ck_assert_int_eq(cfg.dtype, CONFIG_DTYPE_AUTO);
    ck_assert_int_eq(cfg.action, CONFIG_RUN);
}
END_TEST

/* The words of each ENUM stand in the order of its C enum. */
START_TEST(config__keeps_words_and_enums_in_step)
{
    ck_assert_int_eq(load_args(ARGS("--dtype=f16", "--weights=random", "--sampling-defaults=model",
                                    "--log-level=debug", "--log-format=json")),
                     0);
    ck_assert_int_eq(cfg.dtype, CONFIG_DTYPE_F16);
    ck_assert_int_eq(cfg.weights, CONFIG_WEIGHTS_RANDOM);
    ck_assert_int_eq(cfg.sampling_defaults, CONFIG_SAMPLING_DEFAULTS_MODEL);
    ck_assert_int_eq(cfg.log_level, LOG_DEBUG);
    ck_assert_int_eq(cfg.log_format, LOG_JSON);
    ck_assert_int_eq(load_args(ARGS("--dtype=bf16", "--log-level=error")), 0);
    ck_assert_int_eq(cfg.dtype, CONFIG_DTYPE_BF16);
    ck_assert_int_eq(cfg.log_level, LOG_ERROR);
}
END_TEST

/* Both ways to write a flag, dashes or underscores, and the last one of a key wins. */
START_TEST(config__reads_flags)
{
    ck_assert_int_eq(load_args(ARGS("--max-batch", "8", "--chunk_tokens=64", "--port=1", "--port=2",
                                    "--host=::", "--gpu-memory-fraction", "0.5")),
                     0);
    ck_assert_int_eq(cfg.max_batch, 8);
    ck_assert_int_eq(cfg.chunk_tokens, 64);
    ck_assert_int_eq(cfg.port, 2);
    ck_assert_str_eq(cfg.host, "::");
    ck_assert_double_eq(cfg.gpu_memory_fraction, 0.5);
}
END_TEST

/* Switches stand alone, are negated, or get a word; they never eat the next argument. */
START_TEST(config__reads_switches)
{
    ck_assert_int_eq(load_args(ARGS("--no-metrics", "--debug-endpoints", "--pin-threads=off",
                                    "--log-requests=TRUE")),
                     0);
    ck_assert(!cfg.metrics);
    ck_assert(cfg.debug_endpoints);
    ck_assert(!cfg.pin_threads);
    ck_assert(cfg.log_requests);
    assert_refused(load_args(ARGS("--metrics", "false")), ERR_INVALID, "\"false\": unexpected");
}
END_TEST

static const struct {
    const char *text;
    int64_t bytes;
} sizes[] = {
    {"0", 0},
    {"4096", 4096},
    {"4096B", 4096},
    {"3K", 3 << 10},
    {"3KiB", 3 << 10},
    {"5m", 5 << 20},
    {"5mib", 5 << 20},
    {"7G", 7LL << 30},
    {"2TiB", 2LL << 40},
    {"1024T", 1LL << 50},
};

/* Every suffix, in any case, as a flag and as a JSON string. */
START_TEST(config__reads_bytes)
{
    char text[64];

    ck_assert_int_eq(load_args(ARGS("--kv-memory", sizes[_i].text)), 0);
    ck_assert_int_eq(cfg.kv_memory, sizes[_i].bytes);
    snprintf(text, sizeof(text), "{\"kv_memory\": \"%s\"}", sizes[_i].text);
    ck_assert_int_eq(load_text(text), 0);
    ck_assert_int_eq(cfg.kv_memory, sizes[_i].bytes);
}
END_TEST

/* Each JSON type where it belongs; a whole number may stand for a fraction or a length. */
START_TEST(config__reads_a_file)
{
    ck_assert_msg(load_text("{\"model\": \"m\", \"max_batch\": 3, \"kv_memory\": 1073741824,\n"
                            " \"gpu_memory_fraction\": 1, \"metrics\": false,\n"
                            " \"dtype\": \"f32\", \"plan_length\": 8192}") == 0,
                  "%s", err.msg);
    ck_assert_str_eq(cfg.model, "m");
    ck_assert_int_eq(cfg.max_batch, 3);
    ck_assert_int_eq(cfg.kv_memory, 1 << 30);
    ck_assert_double_eq(cfg.gpu_memory_fraction, 1.0);
    ck_assert(!cfg.metrics);
    ck_assert_int_eq(cfg.dtype, CONFIG_DTYPE_F32);
    ck_assert_str_eq(cfg.plan_length, "8192");
}
END_TEST

/* Defaults < file < environment < flags, key by key. */
START_TEST(config__overrides_in_order)
{
    const char *args[] = {"--config", file, "--port=4", NULL};

    write_config("{\"max_batch\": 2, \"chunk_tokens\": 2, \"port\": 2}");
    ck_assert_msg(load(args, ARGS("SPAND_CHUNK_TOKENS=3", "SPAND_PORT=3", "HOME=/"), NULL, 0) == 0,
                  "%s", err.msg);
    ck_assert_int_eq(cfg.max_waiting, 512);
    ck_assert_int_eq(cfg.max_batch, 2);
    ck_assert_int_eq(cfg.chunk_tokens, 3);
    ck_assert_int_eq(cfg.port, 4);
}
END_TEST

/* The file: --config before SPAND_CONFIG before the caller's. */
START_TEST(config__chooses_the_file)
{
    char env[128];
    const char *envp[] = {env, NULL};
    const char *args[] = {"--config=/nonexistent/flag", NULL};
    struct config_sources from = {.file = file};

    write_config("{\"port\": 5}");
    ck_assert_int_eq(config_load(&cfg, &from, &err), 0);
    ck_assert_int_eq(cfg.port, 5);
    snprintf(env, sizeof(env), "SPAND_CONFIG=%s", file);
    ck_assert_int_eq(load(NULL, envp, NULL, 0), 0);
    ck_assert_int_eq(cfg.port, 5);
    assert_refused(load(args, envp, NULL, 0), ERR_NOT_FOUND, "/nonexistent/flag: No such file");
}
END_TEST

static const struct {
    const char *flag;
    const char *want;
} bad_flags[] = {
    /* names */
    {"--max-bacth=8", "--max-bacth: no such flag; did you mean --max-batch?"},
    {"--maxbatch=8", "did you mean --max-batch?"},
    {"--prot=8", "did you mean --port?"},
    {"--modle=x", "did you mean --model?"},
    {"--no-metric", "did you mean --no-metrics?"},
    {"--confg=x", "did you mean --config?"},
    {"--halp", "did you mean --help?"},
    {"--max-model-len=8", "did you mean --max-seq-len?"},
    {"--gpu-memory-utilization=1", "did you mean --gpu-memory-fraction?"},
    {"--entirely-different=1", "--entirely-different: no such flag; --help lists them"},
    {"--MAX-BATCH=8", "no such flag"},
    {"--=1", "no such flag"},
    {"--", "unexpected argument"},
    {"-p", "unexpected argument"},
    {"word", "\"word\": unexpected argument"},
    {"", "\"\": unexpected argument"},
    /* shapes */
    {"--port", "--port: the value is missing, want 0..65535"},
    {"--config", "--config: the value is missing"},
    {"--no-port", "--no-port: port is no switch"},
    {"--no-metrics=1", "takes no value"},
    {"--help=1", "takes no value"},
    /* numbers */
    {"--max-batch=0", "--max-batch: \"0\" is out of range, want 1..16384 sequences"},
    {"--max-batch=16385", "is out of range, want 1..16384 sequences"},
    {"--max-batch=99999999999999999999", "is out of range"},
    {"--max-batch=-99999999999999999999", "is out of range"},
    {"--max-batch=", "\"\" is not a whole number"},
    {"--max-batch=8x", "is not a whole number"},
    {"--max-batch= 8", "is not a whole number"},
    {"--max-batch=8 ", "is not a whole number"},
    {"--max-batch=+8", "is not a whole number"},
    {"--max-batch=0x8", "is not a whole number"},
    {"--max-batch=8.0", "is not a whole number"},
    {"--max-batch=-", "is not a whole number"},
    {"--weights-seed=-1", "is out of range, want 0..9007199254740991"},
    {"--port=65536", "\"65536\" is out of range, want 0..65535"},
    /* bytes */
    {"--kv-memory=4KB", "is not a number of bytes"},
    {"--kv-memory=4 K", "is not a number of bytes"},
    {"--kv-memory=K", "is not a number of bytes"},
    {"--kv-memory=1.5G", "is not a number of bytes"},
    {"--kv-memory=-1", "is out of range, want 0..1024TiB"},
    {"--kv-memory=1025T", "is out of range"},
    {"--kv-memory=9223372036854775807T", "is out of range"},
    {"--max-body-bytes=1", "want 1KiB..1GiB"},
    /* fractions */
    {"--gpu-memory-fraction=0", "is out of range, want 0.05..1"},
    {"--gpu-memory-fraction=1.01", "is out of range"},
    {"--gpu-memory-fraction=nan", "is not a number"},
    {"--gpu-memory-fraction=inf", "is not a number"},
    {"--gpu-memory-fraction=1e999", "is out of range"},
    {"--gpu-memory-fraction=0x1", "is not a number"},
    {"--gpu-memory-fraction= 1", "is not a number"},
    {"--gpu-memory-fraction=", "is not a number"},
    {"--gpu-memory-fraction=e", "is not a number"},
    {"--gpu-memory-fraction=0.5.5", "is not a number"},
    /* switches and words */
    {"--metrics=maybe", "--metrics: \"maybe\" is not a switch, want true or false"},
    {"--metrics=", "is not a switch"},
    {"--dtype=bf61", "--dtype: \"bf61\" is unknown, want one of auto, f32, bf16, f16"},
    {"--dtype=bf", "is unknown"},
    {"--dtype=f32 bf16", "is unknown"},
    {"--dtype=", "is unknown"},
    /* texts with a syntax */
    {"--device=gpu", "--device: \"gpu\" is unknown, want auto, cpu, cuda or cuda:N"},
    {"--device=cuda:", "is unknown"},
    {"--device=cuda:-1", "is unknown"},
    {"--device=cuda:64", "is unknown"},
    {"--device=cuda:1x", "is unknown"},
    {"--plan-length=0", "is unknown, want request or 1..16777216"},
    {"--plan-length=16777217", "is unknown"},
    {"--plan-length=many", "is unknown"},
    {"--model=", "--model: \"\" is empty, want a path of 1..4096 bytes"},
    {"--host=", "is empty"},
    {"--host=a\xff", "is not UTF-8"},
};

/* Each mistake is refused with the flag, the value, and what is wanted. */
START_TEST(config__refuses_bad_flags)
{
    assert_refused(load_args(ARGS(bad_flags[_i].flag)), ERR_INVALID, bad_flags[_i].want);
}
END_TEST

/* What a device may be. */
START_TEST(config__takes_every_device)
{
    static const char *const devices[] = {"auto", "cpu", "cuda", "cuda:0", "cuda:63"};

    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(load_args(ARGS("--device", devices[i])), 0);
        ck_assert_str_eq(cfg.device, devices[i]);
    }
}
END_TEST

/* A value is not taken from the next flag; with an equals sign it may look like one. */
START_TEST(config__does_not_take_a_flag_for_a_value)
{
    assert_refused(load_args(ARGS("--model", "--port=1")), ERR_INVALID, "the value is missing");
    ck_assert_int_eq(load_args(ARGS("--model=--port=1")), 0);
    ck_assert_str_eq(cfg.model, "--port=1");
    assert_refused(load_args(ARGS("--port", "-1")), ERR_INVALID, "is out of range");
}
END_TEST

static const struct {
    const char *text;
    int rc;
    const char *want;
} bad_files[] = {
    {"", ERR_PARSE, ":1:0: "},
    {"{\"port\": 1,}", ERR_PARSE, ":1:"},
    {"{\"port\": 1, \"port\": 2}", ERR_PARSE, "duplicate"},
    {"[1]", ERR_PARSE, "not a JSON object"},
    {"{\"max_bacth\": 1}", ERR_INVALID, ": max_bacth: no such key; did you mean max_batch?"},
    {"{\"max-batch\": 1}", ERR_INVALID, "did you mean max_batch?"},
    {"{\"\": 1}", ERR_INVALID, "no such key"},
    {"{\"entirely_different\": 1}", ERR_INVALID, "entirely_different: no such key"},
    {"{\"max_batch\": 0}", ERR_INVALID, ": max_batch: \"0\" is out of range, want 1..16384"},
    {"{\"max_batch\": 1e3}", ERR_INVALID,
     "wrong JSON type (number with a fraction), want 1..16384"},
    {"{\"max_batch\": \"8\"}", ERR_INVALID, "\"8\" has the wrong JSON type (string)"},
    {"{\"max_batch\": null}", ERR_INVALID, "wrong JSON type (null)"},
    {"{\"max_batch\": {\"a\": [1]}}", ERR_INVALID, "wrong JSON type (object)"},
    {"{\"max_batch\": 99999999999999999999}", ERR_PARSE, "too big integer"},
    {"{\"metrics\": 1}", ERR_INVALID, "wrong JSON type (whole number), want true or false"},
    {"{\"metrics\": \"true\"}", ERR_INVALID, "wrong JSON type (string)"},
    {"{\"model\": 1}", ERR_INVALID, "wrong JSON type"},
    {"{\"model\": \"\"}", ERR_INVALID, "is empty"},
    {"{\"model\": \"a\\u0000b\"}", ERR_PARSE, "NUL"},
    {"{\"host\": 1}", ERR_INVALID, "wrong JSON type"},
    {"{\"plan_length\": 0}", ERR_INVALID, "want request or 1..16777216"},
    {"{\"dtype\": 1}", ERR_INVALID, "wrong JSON type"},
    {"{\"dtype\": \"f64\"}", ERR_INVALID, "\"f64\" is unknown, want one of auto"},
    {"{\"kv_memory\": 1.5}", ERR_INVALID, "wrong JSON type"},
    {"{\"kv_memory\": true}", ERR_INVALID, "wrong JSON type (true)"},
    {"{\"gpu_memory_fraction\": \"0.5\"}", ERR_INVALID, "wrong JSON type (string)"},
    {"{\"gpu_memory_fraction\": 2}", ERR_INVALID, "is out of range, want 0.05..1"},
};

/* Each mistake in a file is refused with the file, the key and what is wanted. */
START_TEST(config__refuses_bad_files)
{
    assert_refused(load_text(bad_files[_i].text), bad_files[_i].rc, bad_files[_i].want);
    ck_assert_ptr_nonnull(strstr(err.msg, file));
}
END_TEST

/* A missing file and a directory are named. */
START_TEST(config__refuses_a_file_that_cannot_be_read)
{
    assert_refused(load_args(ARGS("--config", "/nonexistent")), ERR_NOT_FOUND,
                   "config file: /nonexistent: No such file");
    assert_refused(load_args(ARGS("--config", "/tmp")), ERR_IO, "directory");
    assert_refused(load_args(ARGS("--config", "/dev/zero")), ERR_INVALID, "larger than");
}
END_TEST

/* Variables are checked like flags, and only upper case counts. */
START_TEST(config__refuses_bad_variables)
{
    assert_refused(load(NULL, ARGS("SPAND_MAX_BATCH=0"), NULL, 0), ERR_INVALID,
                   "environment SPAND_MAX_BATCH: \"0\" is out of range, want 1..16384 sequences");
    assert_refused(load(NULL, ARGS("SPAND_MAX_BACTH=1"), NULL, 0), ERR_INVALID,
                   "SPAND_MAX_BACTH: no such variable; did you mean SPAND_MAX_BATCH?");
    assert_refused(load(NULL, ARGS("SPAND_Port=1"), NULL, 0), ERR_INVALID, "no such variable");
    assert_refused(load(NULL, ARGS("SPAND_=1"), NULL, 0), ERR_INVALID, "no such variable");
    assert_refused(load(NULL, ARGS("SPAND_HELP=1"), NULL, 0), ERR_INVALID, "no such variable");
    assert_refused(load(NULL, ARGS("SPAND_DEBUG_ENDPOINTS=2"), NULL, 0), ERR_INVALID,
                   "is not a switch");
}
END_TEST

/* What Kubernetes puts into the environment for a service named spand does not stop the daemon. */
START_TEST(config__leaves_foreign_variables_alone)
{
    ck_assert_msg(load(NULL,
                       ARGS("SPAND_PORT=tcp://10.0.0.1:8000", "SPAND_PORT_8000_TCP=tcp://10.0.0.1",
                            "SPAND_SERVICE_HOST=10.0.0.1", "SPAND_TEST_ROOT=.", "SPANDEX=1",
                            "SPAND_MAX_BATCH", "PATH=/bin"),
                       NULL, 0) == 0,
                  "%s", err.msg);
    ck_assert_int_eq(cfg.port, 8000);
    ck_assert_int_eq(cfg.max_batch, 32);
    assert_refused(load(NULL, ARGS("SPAND_PORT=x"), NULL, 0), ERR_INVALID,
                   "environment SPAND_PORT");
}
END_TEST

/* Help and version win over any mistake behind them; --print-config needs a good config. */
START_TEST(config__reads_actions)
{
    ck_assert_int_eq(load(ARGS("--help", "--nonsense"), ARGS("SPAND_PORT=x"), NULL, 0), 0);
    ck_assert_int_eq(cfg.action, CONFIG_SHOW_HELP);
    ck_assert_int_eq(load_args(ARGS("-h")), 0);
    ck_assert_int_eq(cfg.action, CONFIG_SHOW_HELP);
    ck_assert_int_eq(load_args(ARGS("--version")), 0);
    ck_assert_int_eq(cfg.action, CONFIG_SHOW_VERSION);
    ck_assert_int_eq(load_args(ARGS("--print-config", "--port=7")), 0);
    ck_assert_int_eq(cfg.action, CONFIG_SHOW_CONFIG);
    ck_assert_int_eq(cfg.port, 7);
    assert_refused(load_args(ARGS("--print-config", "--port=x")), ERR_INVALID, "--port");
}
END_TEST

static struct {
    const char *prompt;
    int max_tokens;
    int64_t seed, cache;
    double temperature;
    bool json;
} extra;

static const struct config_extra extras[] = {
    {"prompt", CONFIG_STRING, &extra.prompt, "The text to continue.", 0, 0},
    {"max_tokens", CONFIG_INT, &extra.max_tokens, "The length.", 1, 100},
    {"seed", CONFIG_INT64, &extra.seed, "The seed.", 0, 0},
    {"cache", CONFIG_BYTES, &extra.cache, "A size.", 0, 0},
    {"temperature", CONFIG_DOUBLE, &extra.temperature, "The temperature.", 0, 2},
    {"json", CONFIG_BOOL, &extra.json, "Prints JSON.", 0, 0},
};

/* Flags of a subcommand stand among the keys, in any order, a text of theirs may be anything. */
START_TEST(config__reads_extras)
{
    memset(&extra, 0, sizeof(extra));
    extra.json = true;
    ck_assert_msg(load(ARGS("--prompt", "--port=1", "--max-tokens", "9", "--port=3", "--seed=-5",
                            "--cache=2K", "--temperature", "0.25", "--no-json"),
                       NULL, extras, 6) == 0,
                  "%s", err.msg);
    ck_assert_str_eq(extra.prompt, "--port=1");
    ck_assert_int_eq(extra.max_tokens, 9);
    ck_assert_int_eq(extra.seed, -5);
    ck_assert_int_eq(extra.cache, 2048);
    ck_assert_double_eq(extra.temperature, 0.25);
    ck_assert(!extra.json);
    ck_assert_int_eq(cfg.port, 3);
}
END_TEST

/* They are checked and hinted at like keys, and are no keys of files or variables. */
START_TEST(config__refuses_bad_extras)
{
    assert_refused(load(ARGS("--max-tokens=101"), NULL, extras, 6), ERR_INVALID,
                   "--max-tokens: \"101\" is out of range, want 1..100");
    assert_refused(load(ARGS("--seed=x"), NULL, extras, 6), ERR_INVALID, "is not a whole number");
    assert_refused(load(ARGS("--promt=x"), NULL, extras, 6), ERR_INVALID, "did you mean --prompt?");
    assert_refused(load(ARGS("--prompt"), NULL, extras, 6), ERR_INVALID, "the value is missing");
    assert_refused(load(NULL, ARGS("SPAND_PROMPT=x"), extras, 6), ERR_INVALID, "no such variable");
    assert_refused(load_args(ARGS("--prompt=x")), ERR_INVALID, "no such flag");
}
END_TEST

/* A value of any length gives a message of bounded length. */
START_TEST(config__cuts_long_values_in_messages)
{
    char flag[10000] = "--model=";
    char name[10000] = "--";

    memset(flag + 8, 'a', 9000);
    assert_refused(load_args(ARGS(flag)), ERR_INVALID, "a\"... is too long, want a path");
    ck_assert_uint_lt(strlen(err.msg), 200);
    memset(name + 2, 'b', 9000);
    assert_refused(load_args(ARGS(name)), ERR_INVALID, "no such flag");
}
END_TEST

/* What --print-config prints is a file that gives the same config. */
START_TEST(config__reads_back_what_it_prints)
{
    struct strbuf first = STRBUF_INIT, second = STRBUF_INIT;

    ck_assert_int_eq(load_args(ARGS("--model=a \"b\"\n\\", "--kv-memory=1025", "--port=1",
                                    "--max-body-bytes=3M", "--gpu-memory-fraction=0.7",
                                    "--no-metrics", "--dtype=bf16", "--plan-length=128")),
                     0);
    config_print_json(&cfg, &first);
    ck_assert_msg(load_text(first.buf) == 0, "%s", err.msg);
    config_print_json(&cfg, &second);
    ck_assert_str_eq(first.buf, second.buf);
    ck_assert_str_eq(cfg.model, "a \"b\"\n\\");
    ck_assert_int_eq(cfg.kv_memory, 1025);
    strbuf_release(&first);
    strbuf_release(&second);
}
END_TEST

static void assert_file_is(const char *path, const struct strbuf *want)
{
    char *text;

    ck_assert_msg(file_read_text(&text, NULL, test_path(path), 1 << 20, &err) == 0, "%s", err.msg);
    ck_assert_msg(strcmp(text, want->buf) == 0, "%s is stale: run `make docs`", path);
    free(text);
}

/* The generated files are those of the table. */
START_TEST(config__has_fresh_docs)
{
    struct strbuf page = STRBUF_INIT, defaults = STRBUF_INIT;

    config_print_markdown(&page);
    assert_file_is("config/CONFIG.md", &page);
    ck_assert_int_eq(config_init(&cfg, &err), 0);
    config_print_json(&cfg, &defaults);
    assert_file_is("config/default.json", &defaults);
    strbuf_release(&page);
    strbuf_release(&defaults);
}
END_TEST

/* The files that operators start from are accepted as they are. */
START_TEST(config__accepts_the_shipped_files)
{
    static const char *const files[] = {"config/default.json", "config/example-server.json"};

    for (int i = 0; i < 2; i++)
        ck_assert_msg(load_args(ARGS("--config", test_path(files[i]))) == 0, "%s", err.msg);
}
END_TEST

/* Help names every flag, within 80 columns of prose, and each text is made of sentences. */
START_TEST(config__helps)
{
    struct strbuf help = STRBUF_INIT;
    char flag[80];

    config_print_help(extras, 6, &help);
    ck_assert_ptr_nonnull(strstr(help.buf, "--prompt TEXT"));
    for (int i = 0; i < config_n_keys; i++) {
        const struct config_key *key = &config_keys[i];

        if (!key->name)
            continue;
        snprintf(flag, sizeof(flag), "%s", key->name);
        for (char *p = flag; *p; p++)
            *p = *p == '_' ? '-' : *p;
        ck_assert_msg(strstr(help.buf, flag), "no --%s in the help", flag);
        ck_assert_msg(key->help[strlen(key->help) - 1] == '.', "%s: no full stop", key->name);
    }
    for (char *line = strtok(help.buf, "\n"); line; line = strtok(NULL, "\n"))
        ck_assert_msg(strncmp(line, "      ", 6) != 0 || strlen(line) <= 80, "long: %s", line);
    strbuf_release(&help);
}
END_TEST

/* The distance counts slips: insertion, deletion, replacement, swap. */
START_TEST(config_hint__counts_slips)
{
    ck_assert_int_eq(config_hint_distance("", ""), 0);
    ck_assert_int_eq(config_hint_distance("", "abc"), 3);
    ck_assert_int_eq(config_hint_distance("abc", ""), 3);
    ck_assert_int_eq(config_hint_distance("port", "port"), 0);
    ck_assert_int_eq(config_hint_distance("prot", "port"), 1);
    ck_assert_int_eq(config_hint_distance("por", "port"), 1);
    ck_assert_int_eq(config_hint_distance("ports", "port"), 1);
    ck_assert_int_eq(config_hint_distance("pert", "port"), 1);
    ck_assert_int_eq(config_hint_distance("kitten", "sitting"), 3);
}
END_TEST

/* Every synonym leads to a key that exists. */
START_TEST(config_hint__knows_other_servers_names)
{
    static const char *const theirs[] = {"max_num_seqs", "ctx_size",   "load_format", "alias",
                                         "block_size",   "model_path", "seed"};

    for (size_t i = 0; i < sizeof(theirs) / sizeof(theirs[0]); i++)
        ck_assert_ptr_nonnull(config_key_find(config_hint(theirs[i], NULL, 0)));
    ck_assert_ptr_null(config_hint("zzzzzzzzzz", NULL, 0));
    ck_assert_ptr_null(config_hint("", NULL, 0));
}
END_TEST

static int allocs_left;

static void *limited_malloc(size_t size)
{
    return allocs_left-- > 0 ? malloc(size) : NULL;
}

/* Every allocation of the JSON library fails once: an error each time, no leak, no crash. */
START_TEST(config__survives_failing_allocations)
{
    const char *args[] = {"--config", file, NULL};
    int rc = -1, n = 0;

    write_config("{\"model\": \"m\", \"max_batch\": 3, \"kv_memory\": \"1G\", \"metrics\": false}");
    while (rc != 0 && n < 1000) {
        allocs_left = n++;
        json_set_alloc_funcs(limited_malloc, free);
        rc = load_args(args);
        json_set_alloc_funcs(malloc, free);
        ck_assert(rc == 0 || err.msg[0]);
    }
    ck_assert_int_eq(rc, 0);
    ck_assert_int_gt(n, 5);
    ck_assert_int_eq(cfg.max_batch, 3);
}
END_TEST

TEST_SUITE(config)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, config__starts_from_the_defaults);
    tcase_add_test(tc, config__keeps_words_and_enums_in_step);
    tcase_add_test(tc, config__reads_flags);
    tcase_add_test(tc, config__reads_switches);
    tcase_add_loop_test(tc, config__reads_bytes, 0, sizeof(sizes) / sizeof(sizes[0]));
    tcase_add_test(tc, config__reads_a_file);
    tcase_add_test(tc, config__overrides_in_order);
    tcase_add_test(tc, config__chooses_the_file);
    tcase_add_loop_test(tc, config__refuses_bad_flags, 0, sizeof(bad_flags) / sizeof(bad_flags[0]));
    tcase_add_test(tc, config__takes_every_device);
    tcase_add_test(tc, config__does_not_take_a_flag_for_a_value);
    tcase_add_loop_test(tc, config__refuses_bad_files, 0, sizeof(bad_files) / sizeof(bad_files[0]));
    tcase_add_test(tc, config__refuses_a_file_that_cannot_be_read);
    tcase_add_test(tc, config__refuses_bad_variables);
    tcase_add_test(tc, config__leaves_foreign_variables_alone);
    tcase_add_test(tc, config__reads_actions);
    tcase_add_test(tc, config__reads_extras);
    tcase_add_test(tc, config__refuses_bad_extras);
    tcase_add_test(tc, config__cuts_long_values_in_messages);
    tcase_add_test(tc, config__reads_back_what_it_prints);
    tcase_add_test(tc, config__has_fresh_docs);
    tcase_add_test(tc, config__accepts_the_shipped_files);
    tcase_add_test(tc, config__helps);
    tcase_add_test(tc, config_hint__counts_slips);
    tcase_add_test(tc, config_hint__knows_other_servers_names);
    tcase_add_test(tc, config__survives_failing_allocations);
}
