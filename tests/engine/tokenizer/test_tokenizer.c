/*
 * The tokenizer's promises beyond equal ids: refusals, limits, questions, long words, threads.
 */
#include "base/err.h"
#include "base/strbuf.h"
#include "engine/tokenizer/detok.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/lib/test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIXTURE(name) "tests/fixtures/tokenizers/" name "/tokenizer.json"

static struct tokenizer *open_fixture(const char *path)
{
    struct tokenizer *t = NULL;
    struct err err = {0};

    ck_assert_msg(tokenizer_open(&t, test_path(path), &err) == 0, "%s", err.msg);
    return t;
}

static void encode(const struct tokenizer *t, const char *text, bool special, bool parse,
                   struct token_ids *ids)
{
    struct err err = {0};

    ids->n = 0;
    ck_assert_msg(tokenizer_encode(t, text, strlen(text), special, parse, ids, &err) == 0, "%s",
                  err.msg);
}

static void check_ids(const struct token_ids *ids, const int32_t *want, size_t n)
{
    ck_assert_uint_eq(ids->n, n);
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq(ids->ids[i], want[i]);
}

/* What is not a tokenizer.json that this tokenizer can follow to the letter, and the words why. */
static const struct {
    const char *json, *says;
    int code;
} refusals[] = {
    {"", "line 1", ERR_PARSE},
    {"[]", "not an object", ERR_PARSE},
    {"{}", "no model", ERR_PARSE},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "Unigram", ERR_UNSUPPORTED},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", "WordPiece", ERR_UNSUPPORTED},
    {"{\"model\":{\"vocab\":{}}}", "without merges", ERR_UNSUPPORTED},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", "vocab", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":{}}}", "merges", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "'a'", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":2147483648},\"merges\":[]}}", "'a'", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", "'a'", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "share",
     ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", "dupl", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "'b'", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", "'aa'", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", "pair", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "pair", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[7]}}", "pair", ERR_PARSE},
    {"{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{},\"merges\":[]}}", "dropout",
     ERR_UNSUPPORTED},
    {"{\"model\":{\"type\":\"BPE\",\"fuse_unk\":1,\"vocab\":{},\"merges\":[]}}", "fuse_unk",
     ERR_PARSE},
#define WITH(rest) "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}," rest "}"
    {WITH("\"normalizer\":7"), "normalizer", ERR_PARSE},
    {WITH("\"normalizer\":{\"type\":\"Precompiled\"}"), "Precompiled", ERR_UNSUPPORTED},
    {WITH("\"normalizer\":{\"type\":\"Replace\",\"content\":\"\"}"), "pattern", ERR_PARSE},
    {WITH("\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}"), "UnicodeScripts", ERR_UNSUPPORTED},
    {WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"}}"), "group",
     ERR_UNSUPPORTED},
    {WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[z-a]\"}}"), "range",
     ERR_UNSUPPORTED},
    {WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{Nope}\"}}"), "Nope",
     ERR_UNSUPPORTED},
    {WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":"
          "\"X\"}"),
     "behavior", ERR_UNSUPPORTED},
    {WITH("\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"), "one character",
     ERR_PARSE},
    {WITH("\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"a\",0],\"cls\":[\"b\",9]}"),
     "not in the vocabulary", ERR_PARSE},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}"), "without a text",
     ERR_UNSUPPORTED},
    {WITH("\"decoder\":{\"type\":\"CTC\"}"), "CTC", ERR_UNSUPPORTED},
    {WITH("\"added_tokens\":{}"), "added_tokens", ERR_PARSE},
    {WITH("\"added_tokens\":[7]"), "object", ERR_PARSE},
    {WITH("\"added_tokens\":[{\"id\":1}]"), "content", ERR_PARSE},
    {WITH("\"added_tokens\":[{\"content\":\"x\",\"special\":true},{\"content\":\"x\"}]"), "twice",
     ERR_PARSE},
    {WITH("\"truncation\":{\"max_length\":-1}"), "max_length", ERR_PARSE},
    {WITH("\"padding\":{\"strategy\":{\"Fixed\":1000000000}}"), "range", ERR_PARSE},
};

/* A bad file is refused with the reason, and nothing is left behind. */
START_TEST(tokenizer__refuses_with_a_reason)
{
    struct tokenizer *t = NULL;
    struct err err = {0};
    const char *json = refusals[_i].json;

    ck_assert_int_eq(tokenizer_open_text(&t, json, strlen(json), "file", &err), refusals[_i].code);
    ck_assert_ptr_null(t);
    ck_assert_msg(strstr(err.msg, refusals[_i].says) != NULL, "'%s' in '%s'", refusals[_i].says,
                  err.msg);
    ck_assert_msg(strncmp(err.msg, "file: ", 6) == 0, "%s", err.msg);
}
END_TEST

/* Sequences that nest without end are refused, not followed. */
START_TEST(tokenizer__refuses_deep_sequences)
{
    struct strbuf json = STRBUF_INIT;
    struct tokenizer *t = NULL;
    struct err err = {0};

    strbuf_addstr(&json,
                  "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]},\"normalizer\":");
    for (int i = 0; i < 100; i++)
        strbuf_addstr(&json, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 100; i++)
        strbuf_addstr(&json, "]}");
    strbuf_addch(&json, '}');
    ck_assert_int_eq(tokenizer_open_text(&t, json.buf, json.len, "file", &err), ERR_UNSUPPORTED);
    strbuf_release(&json);
}
END_TEST

START_TEST(tokenizer__a_missing_file_is_not_found)
{
    struct tokenizer *t = NULL;
    struct err err = {0};

    ck_assert_int_eq(tokenizer_open(&t, test_path("tests/no/such/tokenizer.json"), &err),
                     ERR_NOT_FOUND);
}
END_TEST

/* Text of a client may spell a special token and gets its letters. */
START_TEST(tokenizer__special_tokens_in_text_stay_text)
{
    struct tokenizer *t = open_fixture(FIXTURE("gpt2"));
    struct token_ids ids = {0};
    const int32_t parsed[] = {64, 50256, 65};
    const int32_t plain[] = {64, 27, 91, 437, 1659, 5239, 91, 29, 65};

    encode(t, "a<|endoftext|>b", true, true, &ids);
    check_ids(&ids, parsed, 3);
    encode(t, "a<|endoftext|>b", true, false, &ids);
    check_ids(&ids, plain, 9);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

/* So do markers that the file does not flag, like DeepSeek's roles. */
START_TEST(tokenizer__unflagged_markers_stay_text_too)
{
    struct tokenizer *t = open_fixture(FIXTURE("deepseek"));
    struct token_ids ids = {0};
    int32_t user = tokenizer_id(t, "<\xef\xbd\x9cUser\xef\xbd\x9c>");

    ck_assert_int_ge(user, 0);
    encode(t, "<\xef\xbd\x9cUser\xef\xbd\x9c>", true, true, &ids);
    check_ids(&ids, &user, 1);
    encode(t, "<\xef\xbd\x9cUser\xef\xbd\x9c>", true, false, &ids);
    ck_assert_uint_gt(ids.n, 1);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

/* Invalid UTF-8 counts as U+FFFD, one for each maximal part. */
START_TEST(tokenizer__replaces_invalid_bytes)
{
    struct tokenizer *t = open_fixture(FIXTURE("gpt2"));
    struct token_ids a = {0}, b = {0};

    encode(t, "x\xe2\x82y\xff\xfe\xed\xa0\x80z\xf0\x9f", true, true, &a);
    encode(
        t,
        "x\xef\xbf\xbdy\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd",
        true, true, &b);
    check_ids(&a, b.ids, b.n);
    token_ids_release(&a);
    token_ids_release(&b);
    tokenizer_free(t);
}
END_TEST

/* The post-processor's ids stand around every text, also around none. */
START_TEST(tokenizer__adds_bos_where_the_file_does)
{
    struct tokenizer *t = open_fixture(FIXTURE("llama3"));
    struct token_ids ids = {0};
    int32_t bos = tokenizer_id(t, "<|begin_of_text|>");

    ck_assert(tokenizer_adds_bos(t));
    ck_assert_int_eq(tokenizer_bos(t), bos);
    ck_assert(tokenizer_is_special(t, bos));
    encode(t, "", true, true, &ids);
    check_ids(&ids, &bos, 1);
    encode(t, "", false, true, &ids);
    ck_assert_uint_eq(ids.n, 0);
    tokenizer_free(t);
    t = open_fixture(FIXTURE("gpt2"));
    ck_assert(!tokenizer_adds_bos(t));
    ck_assert_int_eq(tokenizer_bos(t), -1);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

START_TEST(tokenizer__answers_about_its_vocabulary)
{
    struct tokenizer *t = open_fixture(FIXTURE("gpt-neox-20b"));
    struct strbuf bytes = STRBUF_INIT;

    ck_assert_int_eq(tokenizer_vocab_size(t), 50281);
    ck_assert_int_eq(tokenizer_n_ids(t), 50281);
    ck_assert_int_eq(tokenizer_id(t, "<|endoftext|>"), 0);
    ck_assert_int_eq(tokenizer_id(t, "no such token"), -1);
    ck_assert_str_eq(tokenizer_token_text(t, 0), "<|endoftext|>");
    ck_assert_ptr_null(tokenizer_token_text(t, -1));
    ck_assert_ptr_null(tokenizer_token_text(t, 50281));
    ck_assert(tokenizer_is_special(t, 0));
    ck_assert(!tokenizer_is_special(t, 50254));
    ck_assert(tokenizer_token_bytes(t, tokenizer_id(t, "\xc4\xa0the"), &bytes));
    ck_assert_str_eq(bytes.buf, " the");
    ck_assert(!tokenizer_token_bytes(t, 60000, &bytes));
    strbuf_release(&bytes);
    tokenizer_free(t);
}
END_TEST

/* A token's bytes are those of the middle of a text: spaces kept, half characters possible. */
START_TEST(tokenizer__token_bytes_are_raw)
{
    struct tokenizer *t = open_fixture(FIXTURE("llama2-prepend"));
    struct strbuf bytes = STRBUF_INIT;

    ck_assert(tokenizer_token_bytes(t, tokenizer_id(t, "<0xE4>"), &bytes));
    ck_assert_uint_eq(bytes.len, 1);
    ck_assert_int_eq((unsigned char)bytes.buf[0], 0xe4);
    strbuf_reset(&bytes);
    ck_assert(tokenizer_token_bytes(t, tokenizer_id(t, "\xe2\x96\x81"), &bytes));
    ck_assert_str_eq(bytes.buf, " ");
    strbuf_release(&bytes);
    tokenizer_free(t);
}
END_TEST

/* The file's own truncation is applied only when asked for: gpt2's says 50. */
START_TEST(tokenizer__file_limits_are_a_choice)
{
    struct tokenizer *t = open_fixture(FIXTURE("gpt2"));
    struct token_ids ids = {0};
    struct err err = {0};
    char text[201];

    memset(text, '!', 200);
    for (int i = 1; i < 200; i += 2)
        text[i] = 'a';
    text[200] = '\0';
    encode(t, text, true, true, &ids);
    ck_assert_uint_eq(ids.n, 200);
    ck_assert_int_eq(tokenizer_file_limits(t, true, &ids, &err), 0);
    ck_assert_uint_eq(ids.n, 50);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

#define TINY(rest)                                                                                 \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4},\"merges\":" \
    "[]},"                                                                                         \
    "\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"d\",3],\"sep\":[\"e\",4]}," rest   \
    "}"

static const struct {
    const char *json;
    int32_t want[16];
    size_t n;
} limits[] = {
    {TINY("\"truncation\":{\"max_length\":4,\"direction\":\"Right\"}"), {3, 0, 1, 4}, 4},
    {TINY("\"truncation\":{\"max_length\":4,\"direction\":\"Left\"}"), {3, 2, 0, 4}, 4},
    {TINY("\"truncation\":{\"max_length\":1}"), {3, 4}, 2},
    {TINY("\"truncation\":{\"max_length\":9}"), {3, 0, 1, 2, 0, 4}, 6},
    {TINY("\"padding\":{\"strategy\":{\"Fixed\":8},\"pad_id\":2}"), {3, 0, 1, 2, 0, 4, 2, 2}, 8},
    {TINY("\"padding\":{\"strategy\":\"BatchLongest\",\"direction\":\"Left\",\"pad_to_multiple_"
          "of\":4}"),
     {0, 0, 3, 0, 1, 2, 0, 4},
     8},
};

/* Truncation leaves what the post-processor adds; padding comes last. */
START_TEST(tokenizer__file_limits_cut_and_pad)
{
    struct tokenizer *t = NULL;
    struct token_ids ids = {0};
    struct err err = {0};
    const char *json = limits[_i].json;

    ck_assert_msg(tokenizer_open_text(&t, json, strlen(json), "file", &err) == 0, "%s", err.msg);
    encode(t, "abca", true, true, &ids);
    ck_assert_int_eq(tokenizer_file_limits(t, true, &ids, &err), 0);
    check_ids(&ids, limits[_i].want, limits[_i].n);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

/* A megabyte without a space takes the heap's time, not the square of its length. */
START_TEST(tokenizer__long_words_take_no_square_time)
{
    struct tokenizer *t = open_fixture(_i ? FIXTURE("llama2-prepend") : FIXTURE("gpt2"));
    struct token_ids ids = {0};
    struct err err = {0};
    struct strbuf back = STRBUF_INIT;
    size_t n = 1 << 20;
    char *text = malloc(n + 1);
    clock_t start = clock();

    ck_assert_ptr_nonnull(text);
    for (size_t i = 0; i < n; i++)
        text[i] = (char)('a' + (i * i / 7 + i) % 26);
    text[n] = '\0';
    ck_assert_int_eq(tokenizer_encode(t, text, n, true, true, &ids, &err), 0);
    ck_assert_int_eq(tokenizer_decode(t, ids.ids, ids.n, true, &back), 0);
    ck_assert_str_eq(back.buf, text);
    ck_assert_msg((clock() - start) / CLOCKS_PER_SEC < 30, "took %ld s",
                  (long)((clock() - start) / CLOCKS_PER_SEC));
    free(text);
    strbuf_release(&back);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

/* A long run of marks in the wrong order is put right without the square of its length. */
START_TEST(tokenizer__many_marks_take_no_square_time)
{
    struct tokenizer *t = open_fixture(FIXTURE("gpt-neox-20b"));
    struct token_ids ids = {0};
    struct err err = {0};
    struct strbuf text = STRBUF_INIT;
    clock_t start = clock();

    strbuf_addch(&text, 'a');
    for (int i = 0; i < 200000; i++)
        strbuf_addstr(&text, "\xcc\x81\xcc\xa7");
    ck_assert_int_eq(tokenizer_encode(t, text.buf, text.len, true, true, &ids, &err), 0);
    ck_assert_msg((clock() - start) / CLOCKS_PER_SEC < 30, "too slow");
    strbuf_release(&text);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

struct job {
    const struct tokenizer *t;
    const char *text;
    struct token_ids ids;
    int rc;
};

static void *encode_often(void *arg)
{
    struct job *job = arg;
    struct err err = {0};

    for (int i = 0; i < 50 && job->rc == 0; i++) {
        job->ids.n = 0;
        job->rc =
            tokenizer_encode(job->t, job->text, strlen(job->text), true, true, &job->ids, &err);
    }
    return NULL;
}

/* Several threads use one tokenizer at once. */
START_TEST(tokenizer__may_be_shared_by_threads)
{
    struct tokenizer *t = open_fixture(FIXTURE("qwen2"));
    struct job jobs[4] = {{0}};
    pthread_t threads[4];

    for (int i = 0; i < 4; i++) {
        jobs[i].t = t;
        jobs[i].text =
            "The quick brown fox, e\xcc\x81te\xcc\x81 <think> 12345 \xe4\xbd\xa0\xe5\xa5\xbd";
        ck_assert_int_eq(pthread_create(&threads[i], NULL, encode_often, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(jobs[i].rc, 0);
        check_ids(&jobs[i].ids, jobs[0].ids.ids, jobs[0].ids.n);
    }
    for (int i = 0; i < 4; i++)
        token_ids_release(&jobs[i].ids);
    tokenizer_free(t);
}
END_TEST

/* The bytes of an emoji come as one piece, with its last token. */
START_TEST(detok__holds_half_characters)
{
    struct tokenizer *t = open_fixture(FIXTURE("gpt2"));
    struct token_ids ids = {0};
    struct strbuf out = STRBUF_INIT;
    struct detok d;

    encode(t, "\xf0\x9f\xa6\x94", true, true, &ids);
    ck_assert_uint_gt(ids.n, 1);
    detok_init(&d, t, true, true);
    for (size_t i = 0; i + 1 < ids.n; i++)
        detok_push(&d, ids.ids[i], &out);
    ck_assert_uint_eq(out.len, 0);
    detok_push(&d, ids.ids[ids.n - 1], &out);
    ck_assert_str_eq(out.buf, "\xf0\x9f\xa6\x94");
    strbuf_reset(&out);
    detok_reset(&d, true, true);
    detok_push(&d, ids.ids[0], &out);
    detok_finish(&d, &out);
    ck_assert_str_eq(out.buf, "\xef\xbf\xbd");
    detok_release(&d);
    strbuf_release(&out);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

/* The space that Llama-2 drops at the start of a text is kept in a completion. */
START_TEST(detok__a_completion_keeps_its_leading_space)
{
    struct tokenizer *t = open_fixture(_i ? FIXTURE("llama2-always") : FIXTURE("llama2-first"));
    int32_t id = tokenizer_id(t, "\xe2\x96\x81the");
    struct strbuf out = STRBUF_INIT;
    struct detok d;

    ck_assert_int_ge(id, 0);
    detok_init(&d, t, true, true);
    detok_push(&d, id, &out);
    ck_assert_str_eq(out.buf, "the");
    strbuf_reset(&out);
    detok_reset(&d, true, false);
    detok_push(&d, id, &out);
    ck_assert_str_eq(out.buf, " the");
    strbuf_reset(&out);
    detok_reset(&d, true, true);
    detok_prime(&d, &id, 1);
    detok_push(&d, id, &out);
    ck_assert_str_eq(out.buf, " the");
    detok_release(&d);
    strbuf_release(&out);
    tokenizer_free(t);
}
END_TEST

/* A prompt that ends inside a character: the completion that ends it gives it whole. */
START_TEST(detok__priming_completes_a_cut_character)
{
    struct tokenizer *t = open_fixture(FIXTURE("gpt2"));
    struct token_ids ids = {0};
    struct strbuf out = STRBUF_INIT;
    struct detok d;

    encode(t, "x\xf0\x9f\xa6\x94", true, true, &ids);
    detok_init(&d, t, true, false);
    detok_prime(&d, ids.ids, ids.n - 1);
    detok_push(&d, ids.ids[ids.n - 1], &out);
    ck_assert_str_eq(out.buf, "\xf0\x9f\xa6\x94");
    detok_release(&d);
    strbuf_release(&out);
    token_ids_release(&ids);
    tokenizer_free(t);
}
END_TEST

/* Byte tokens: a run that is no UTF-8 is spelled as one U+FFFD a byte, as the library does it. */
START_TEST(detok__a_bad_run_of_byte_tokens)
{
    struct tokenizer *t = open_fixture(FIXTURE("llama2-prepend"));
    struct strbuf out = STRBUF_INIT;
    struct detok d;
    int32_t e4 = tokenizer_id(t, "<0xE4>"), a = tokenizer_id(t, "<0x41>");

    detok_init(&d, t, true, true);
    detok_push(&d, a, &out);
    ck_assert_uint_eq(out.len, 0);
    detok_push(&d, e4, &out);
    detok_finish(&d, &out);
    ck_assert_str_eq(out.buf, "\xef\xbf\xbd\xef\xbf\xbd");
    strbuf_reset(&out);
    detok_reset(&d, true, true);
    for (int i = 0; i < DETOK_HOLD_BYTES; i++)
        detok_push(&d, a, &out);
    ck_assert_uint_eq(out.len, 0);
    detok_push(&d, a, &out); /* beyond the bound: the reader waits no longer */
    ck_assert_uint_eq(out.len, DETOK_HOLD_BYTES + 1);
    detok_release(&d);
    strbuf_release(&out);
    tokenizer_free(t);
}
END_TEST

TEST_SUITE(tokenizer)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_loop_test(tc, tokenizer__refuses_with_a_reason, 0,
                        (int)(sizeof(refusals) / sizeof(refusals[0])));
    tcase_add_test(tc, tokenizer__refuses_deep_sequences);
    tcase_add_test(tc, tokenizer__a_missing_file_is_not_found);
    tcase_add_test(tc, tokenizer__special_tokens_in_text_stay_text);
    tcase_add_test(tc, tokenizer__unflagged_markers_stay_text_too);
    tcase_add_test(tc, tokenizer__replaces_invalid_bytes);
    tcase_add_test(tc, tokenizer__adds_bos_where_the_file_does);
    tcase_add_test(tc, tokenizer__answers_about_its_vocabulary);
    tcase_add_test(tc, tokenizer__token_bytes_are_raw);
    tcase_add_test(tc, tokenizer__file_limits_are_a_choice);
    tcase_add_loop_test(tc, tokenizer__file_limits_cut_and_pad, 0,
                        (int)(sizeof(limits) / sizeof(limits[0])));
    tcase_add_loop_test(tc, tokenizer__long_words_take_no_square_time, 0, 2);
    tcase_add_test(tc, tokenizer__many_marks_take_no_square_time);
    tcase_add_test(tc, tokenizer__may_be_shared_by_threads);
    tcase_add_test(tc, detok__holds_half_characters);
    tcase_add_loop_test(tc, detok__a_completion_keeps_its_leading_space, 0, 2);
    tcase_add_test(tc, detok__priming_completes_a_cut_character);
    tcase_add_test(tc, detok__a_bad_run_of_byte_tokens);
}
