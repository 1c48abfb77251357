/*
 * bench_request - what the server does for a request beside the model, step by step, on one thread.
 *
 *     spand-bench request MODEL-DIR TEXT
 *
 * Microseconds of CPU time, the median of many runs: reading the body (JSON, then every field),
 * rendering messages through the model's chat template, tokenizing; and writing the answer, whole
 * and as the chunks of a stream, with detokenizing. Prompts and answers are pieces of TEXT.
 */
#include "base/arena.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/strbuf.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/detok.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/api_error.h"
#include "server/json_in.h"
#include "server/openai_json.h"
#include "server/openai_params.h"
#include "server/sse.h"
#include "tests/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define N_RUNS     101
#define N_MESSAGES 8 /* of a chat: the text is dealt out among them */

int bench_request(int argc, char **argv);

struct parts {
    struct tokenizer *tokenizer;
    struct chat_template *chat; /* NULL: the model has none */
    struct file_map text;
    struct arena arena;
    struct token_ids ids;
};

/* Microseconds that each part takes. */
struct times {
    double read, render, tokenize;
    int n_tokens;
};

static double cpu_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* n bytes of the text, whole characters; the text over again where it is shorter. */
static void add_text(struct strbuf *out, const struct parts *p, size_t at, size_t n)
{
    const char *text = (const char *)p->text.data;
    struct strbuf piece = STRBUF_INIT;

    while (piece.len < n) {
        size_t from = at % p->text.len, len = p->text.len - from;

        len = len < n - piece.len ? len : n - piece.len;
        while (len > 0 && from + len < p->text.len && (text[from + len] & 0xc0) == 0x80)
            len--;
        if (len == 0)
            break;
        strbuf_add(&piece, text + from, len);
        at += len;
    }
    strbuf_add_json(out, piece.buf, piece.len);
    strbuf_release(&piece);
}

static void write_body(struct strbuf *out, const struct parts *p, bool is_chat, size_t n_bytes)
{
    strbuf_addstr(out, "{\"model\":\"m\",\"temperature\":0.7,\"top_p\":0.9,\"max_tokens\":256,"
                       "\"stream\":true,\"stream_options\":{\"include_usage\":true},");
    if (!is_chat) {
        strbuf_addstr(out, "\"prompt\":");
        add_text(out, p, 0, n_bytes);
    } else {
        strbuf_addstr(out, "\"messages\":[");
        for (size_t i = 0; i < N_MESSAGES; i++) {
            strbuf_addf(out, "%s{\"role\":\"%s\",\"content\":", i ? "," : "",
                        i % 2 ? "assistant" : "user");
            add_text(out, p, i * n_bytes / N_MESSAGES, n_bytes / N_MESSAGES);
            strbuf_addch(out, '}');
        }
        strbuf_addch(out, ']');
    }
    strbuf_addch(out, '}');
}

static int read_body(struct parts *p, const struct strbuf *body, bool is_chat, json_t **root,
                     struct openai_params *params, struct err *err)
{
    static const struct openai_limits limits = {.model_id = "m",
                                                .vocab_size = 1 << 20,
                                                .max_seq_len = 1 << 20,
                                                .max_prompts = 256,
                                                .max_choices = 256,
                                                .max_logprobs = 20,
                                                .json_depth = 64,
                                                .temperature = 1,
                                                .top_p = 1,
                                                .repetition_penalty = 1};
    struct api_error e = {0};

    arena_reset(&p->arena);
    if (json_in_parse(root, body->buf, body->len, limits.json_depth, &e) < 0 ||
        openai_params_read(params, is_chat ? API_CHAT : API_COMPLETIONS, *root, &limits, &p->arena,
                           &e) < 0)
        return err_set(err, ERR_INVALID, "the body is refused: %s", e.message);
    return 0;
}

/* Once from the bytes of a body to the ids of its prompt. */
static int run_prompt(struct parts *p, const struct strbuf *body, bool is_chat, struct times *out,
                      struct err *err)
{
    struct openai_params params;
    struct chat_prompt prompt = {0};
    json_t *root = NULL;
    double start = cpu_us();
    int rc = read_body(p, body, is_chat, &root, &params, err);

    out->read = cpu_us() - start;
    start = cpu_us();
    if (rc == 0 && is_chat)
        rc = chat_template_render(p->chat,
                                  &(struct chat_args){.messages = json_object_get(root, "messages"),
                                                      .add_generation_prompt = true},
                                  &prompt, err);
    out->render = cpu_us() - start;
    p->ids.n = 0;
    start = cpu_us();
    if (rc == 0 && is_chat)
        rc = chat_prompt_encode(&prompt, p->tokenizer, &p->ids, err);
    else if (rc == 0)
        rc = tokenizer_encode(p->tokenizer, params.prompts[0].text, params.prompts[0].text_len,
                              true, true, &p->ids, err);
    out->tokenize = cpu_us() - start;
    out->n_tokens = (int)p->ids.n;
    chat_prompt_release(&prompt);
    json_decref(root);
    return rc;
}

static int time_prompt(struct parts *p, bool is_chat, size_t n_bytes, struct err *err)
{
    double read[N_RUNS], render[N_RUNS], tokenize[N_RUNS], sum;
    struct strbuf body = STRBUF_INIT;
    struct times t = {0};
    int rc = 0;

    write_body(&body, p, is_chat, n_bytes);
    for (int i = 0; i < N_RUNS && rc == 0; i++) {
        rc = run_prompt(p, &body, is_chat, &t, err);
        read[i] = t.read;
        render[i] = t.render;
        tokenize[i] = t.tokenize;
    }
    strbuf_release(&body);
    if (rc < 0)
        return rc;
    t.read = bench_median(read, N_RUNS);
    t.render = bench_median(render, N_RUNS);
    t.tokenize = bench_median(tokenize, N_RUNS);
    sum = t.read + t.render + t.tokenize;
    printf("%-11s %7zu bytes %6d tokens  read %7.0f us  template %7.0f us  tokenize %7.0f us  "
           "all %7.0f us\n",
           is_chat ? "chat" : "completions", n_bytes, t.n_tokens, t.read, is_chat ? t.render : 0.0,
           t.tokenize, sum);
    return 0;
}

static void write_chunk(struct strbuf *out, const struct strbuf *head, const struct strbuf *text,
                        const char *finish)
{
    struct openai_piece piece = {
        .text = text->buf, .text_len = text->len, .finish_reason = finish, .stop_token = -1};

    sse_begin(out);
    strbuf_add(out, head->buf, head->len);
    openai_write_delta_choice(out, &piece);
    strbuf_addstr(out, "],\"usage\":null}");
    sse_end(out);
}

/* The first n ids of the text as an answer; returns microseconds. */
static double run_answer(const struct parts *p, int n, bool is_stream, size_t *n_bytes)
{
    const struct openai_head names = {.id = "chatcmpl-0123456789abcdef01234567",
                                      .object =
                                          is_stream ? "chat.completion.chunk" : "chat.completion",
                                      .model = "m",
                                      .fingerprint = "fp_0123456789",
                                      .created = 1700000000};
    const struct openai_usage usage = {.prompt_tokens = 100, .completion_tokens = n};
    struct strbuf out = STRBUF_INIT, head = STRBUF_INIT, text = STRBUF_INIT;
    struct detok d;
    double start = cpu_us();

    openai_write_head(&head, &names);
    detok_init(&d, p->tokenizer, true, true);
    for (int i = 0; i < n; i++) {
        detok_push(&d, p->ids.ids[i], &text);
        if (!is_stream)
            continue;
        write_chunk(&out, &head, &text, i + 1 == n ? "length" : NULL);
        strbuf_reset(&text);
    }
    if (is_stream) {
        sse_done(&out);
    } else {
        struct openai_piece piece = {
            .text = text.buf, .text_len = text.len, .finish_reason = "length", .stop_token = -1};

        strbuf_add(&out, head.buf, head.len);
        openai_write_message_choice(&out, &piece);
        strbuf_addstr(&out, "],\"usage\":");
        openai_write_usage(&out, &usage);
        strbuf_addch(&out, '}');
    }
    start = cpu_us() - start;
    *n_bytes = out.len;
    detok_release(&d);
    strbuf_release(&out);
    strbuf_release(&head);
    strbuf_release(&text);
    return start;
}

static void time_answer(const struct parts *p, int n)
{
    double whole[N_RUNS], stream[N_RUNS];
    size_t whole_bytes = 0, stream_bytes = 0;

    for (int i = 0; i < N_RUNS; i++) {
        whole[i] = run_answer(p, n, false, &whole_bytes);
        stream[i] = run_answer(p, n, true, &stream_bytes);
    }
    printf("answer      %6d tokens  whole %7.0f us (%zu bytes)  streamed %7.0f us (%zu bytes), "
           "%.2f us a token\n",
           n, bench_median(whole, N_RUNS), whole_bytes, bench_median(stream, N_RUNS), stream_bytes,
           bench_median(stream, N_RUNS) / n);
}

static int run_all(struct parts *p, struct err *err)
{
    static const size_t sizes[] = {200, 2000, 20000, 200000};
    static const int answers[] = {16, 256, 1024};
    int rc = 0;

    for (int is_chat = 0; is_chat < (p->chat ? 2 : 1); is_chat++) {
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]) && rc == 0; i++)
            rc = time_prompt(p, is_chat, sizes[i], err);
    }
    /* The ids of the longest prompt are what is answered with. */
    for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]) && rc == 0; i++)
        time_answer(p, answers[i]);
    return rc;
}

int bench_request(int argc, char **argv)
{
    struct parts p = {0};
    struct err err = {0}, no_chat = {0};
    char path[4200];
    int rc;

    if (argc != 3) {
        fprintf(stderr, "usage: spand-bench request MODEL-DIR TEXT\n");
        return 2;
    }
    snprintf(path, sizeof(path), "%s/tokenizer.json", argv[1]);
    arena_init(&p.arena, (size_t)64 << 20, 0);
    rc = tokenizer_open(&p.tokenizer, path, &err);
    if (rc == 0)
        rc = file_map_open(&p.text, argv[2], &err);
    if (rc == 0 && p.text.len == 0)
        rc = err_set(&err, ERR_INVALID, "%s is empty", argv[2]);
    if (rc == 0 && chat_template_open(&p.chat, argv[1], &no_chat) < 0)
        p.chat = NULL;
    if (rc == 0)
        rc = run_all(&p, &err);
    if (rc < 0)
        fprintf(stderr, "spand-bench: %s\n", err.msg);
    token_ids_release(&p.ids);
    file_map_close(&p.text);
    chat_template_free(p.chat);
    tokenizer_free(p.tokenizer);
    arena_release(&p.arena);
    return rc < 0;
}
