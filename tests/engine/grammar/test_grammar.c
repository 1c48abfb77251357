/*
 * Grammars: which texts they take, byte by byte through the demo model's vocabulary; that a mask is
 * what trying every token comes to; what is refused; and that nothing grows without bound.
 */
#include "base/err.h"
#include "base/rng.h"
#include "base/strbuf.h"
#include "engine/backend.h"
#include "engine/grammar/grammar.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/lib/test.h"

#include <stdlib.h>
#include <string.h>

#define VOCAB 6144
#define WORDS SAMPLE_MASK_WORDS(VOCAB)

static const int eos_ids[] = {0, 1};
static struct tokenizer *tokenizer;
static struct grammar_cache *cache;
static int32_t byte_token[256];

static void open_cache(int64_t max_bytes, int64_t timeout_ns)
{
    struct err err = {0};

    ck_assert_msg(grammar_cache_new(&cache,
                                    &(struct grammar_cache_params){.tokenizer = tokenizer,
                                                                   .vocab_size = VOCAB,
                                                                   .eos_ids = eos_ids,
                                                                   .n_eos = 2,
                                                                   .n_max = 4,
                                                                   .max_bytes = max_bytes,
                                                                   .timeout_ns = timeout_ns},
                                    &err) == 0,
                  "%s", err.msg);
}

static void setup(void)
{
    struct err err = {0};

    ck_assert_msg(tokenizer_open(&tokenizer, test_path("models/demo-llama/tokenizer.json"), &err) ==
                      0,
                  "%s", err.msg);
    open_cache(8 << 20, INT64_C(20000000000));
    memset(byte_token, -1, sizeof(byte_token));
    for (int32_t id = 0; id < VOCAB; id++) {
        struct strbuf s = STRBUF_INIT;

        if (tokenizer_token_bytes(tokenizer, id, &s) && s.len == 1)
            byte_token[(unsigned char)s.buf[0]] = id;
        strbuf_release(&s);
    }
}

static void teardown(void)
{
    grammar_cache_free(cache);
    tokenizer_free(tokenizer);
}

static struct grammar *compile(enum engine_grammar_kind kind, const char *text)
{
    struct grammar *g = NULL;
    struct err err = {0};

    ck_assert_msg(grammar_cache_get(cache, kind, text, strlen(text), &g, &err) == 0, "%s: %s", text,
                  err.msg);
    return g;
}

static bool has(const uint32_t *mask, int32_t token)
{
    return mask[token / 32] >> (token % 32) & 1;
}

/* Can the text be written byte by byte, and may it end there? */
static bool accepts(struct grammar *g, const char *text)
{
    struct grammar_run run;
    struct err err = {0};
    static uint32_t mask[WORDS];
    bool ok = true;

    ck_assert_int_eq(grammar_run_init(&run, &g->masks, &err), 0);
    for (const char *p = text; *p && ok; p++) {
        int32_t token = byte_token[(unsigned char)*p];

        ck_assert_int_ge(token, 0);
        memset(mask, 0xff, sizeof(mask));
        grammar_run_mask(&run, g->scratch, mask);
        ok = has(mask, token);
        if (ok)
            grammar_run_take(&run, g->scratch, token);
    }
    if (ok) {
        memset(mask, 0xff, sizeof(mask));
        grammar_run_mask(&run, g->scratch, mask);
        ok = grammar_run_can_end(&run);
        ck_assert_int_eq(has(mask, eos_ids[0]), ok);
        ck_assert_int_eq(has(mask, eos_ids[1]), ok);
    }
    grammar_run_release(&run);
    return ok;
}

#define R ENGINE_GRAMMAR_REGEX
#define S ENGINE_GRAMMAR_JSON_SCHEMA
#define E ENGINE_GRAMMAR_EBNF
#define C ENGINE_GRAMMAR_CHOICE
#define O ENGINE_GRAMMAR_JSON_OBJECT

static const struct {
    enum engine_grammar_kind kind;
    const char *text;
    const char *yes[8], *no[8];
} languages[] = {
    {R, "a|bc*", {"a", "b", "bccc"}, {"", "ab", "c", "ac"}},
    {R, "^[a-c]{2,3}$", {"ab", "ccc"}, {"a", "abca", "ad"}},
    {R, "\\d+(\\.\\d{1,2})?", {"1", "12.5", "0.25"}, {".5", "1.", "1.234"}},
    {R, "[^a-y\\s]z?", {"z", "zz", "A", "\xc3\xa9", "\xf0\x9f\x98\x80z"}, {"a", " ", "\xc3"}},
    {R, "(?:x(?<n>y)?){2}", {"xx", "xyx", "xyxy"}, {"x", "xyy"}},
    {R,
     "\\u00e9\\x41\\t",
     {"\xc3\xa9"
      "A\t"},
     {"\xc3\xa9"
      "A"}},
    {R, "", {""}, {"a"}},
    {C, "[\"yes\",\"no\",\"yesterday\"]", {"yes", "no", "yesterday"}, {"y", "yesno", ""}},
    {E, "root ::= \"a\" root \"b\" | \"\"", {"", "ab", "aaabbb"}, {"a", "aab", "ba"}},
    {E,
     "# sums\nroot ::= term (\" + \" term)*\nterm ::= [0-9]+ | \"(\" root \")\"\n",
     {"1", "1 + 22", "((1) + (2 + 3))"},
     {"", "1 +", "(1", "1)"}},
    {E, "root ::= ws 'x' ws\nws ::= [ \\t]*", {"x", " \tx "}, {"", " "}},
    {E, "root ::= a a\na ::= b?\nb ::= \"\\u00e9\"{2,3}", {"", "\xc3\xa9\xc3\xa9"}, {"\xc3\xa9"}},
    {O, "", {"{}", "{\"a\": [1, {\"b\": null}]}", "{\n  \"x\": -1.5e3}"}, {"[]", "{\"a\"}", "{,}"}},
    {S, "{}", {"1", "\"\\u00e9\"", "[]", "true"}, {"", "tru", "\"a"}},
    {S, "{\"type\":\"string\"}", {"\"\"", "\"a\\n\xe2\x82\xac\""}, {"\"\n\"", "\"\\ud800\"", "a"}},
    {S,
     "{\"type\":\"string\",\"minLength\":1,\"maxLength\":2}",
     {"\"a\"", "\"\xe2\x82\xac\\n\""},
     {"\"\"", "\"abc\""}},
    {S, "{\"type\":\"string\",\"pattern\":\"^a\\\"+$\"}", {"\"a\\\"\""}, {"\"a\"", "\"a\"\""}},
    {S, "{\"type\":\"string\",\"pattern\":\"b\"}", {"\"b\"", "\"abc\""}, {"\"ac\""}},
    {S, "{\"type\":\"integer\"}", {"0", "-7", "120"}, {"01", "1.0", "-", "+1"}},
    {S,
     "{\"type\":\"integer\",\"minimum\":-5,\"maximum\":117}",
     {"-5", "0", "99", "117"},
     {"-6", "118", "-0", "200", "1170"}},
    {S,
     "{\"type\":\"integer\",\"exclusiveMinimum\":9,\"exclusiveMaximum\":1000}",
     {"10", "999"},
     {"9", "1000", "5"}},
    {S,
     "{\"type\":\"integer\",\"multipleOf\":7,\"minimum\":0}",
     {"0", "7", "91", "7007"},
     {"8", "07", "-7"}},
    {S,
     "{\"type\":\"number\",\"multipleOf\":0.25}",
     {"0", "-3", "7.5", "12.25", "0.75"},
     {"0.1", "7.55", "1.", "0.255"}},
    {S, "{\"type\":\"number\",\"multipleOf\":0.001}", {"0", "-3.141", "2.5"}, {"0.0001", "1."}},
    {S,
     "{\"type\":\"number\",\"multipleOf\":0.3,\"minimum\":-0.6,\"exclusiveMaximum\":1.5}",
     {"-0.6", "-0.3", "0", "0.3", "0.9", "1.2"},
     {"-0.9", "0.1", "1.5", "0.6000", "1"}},
    {S,
     "{\"type\":\"number\",\"multipleOf\":0.05,\"exclusiveMinimum\":0.9,\"maximum\":1.1}",
     {"0.95", "1", "1.05", "1.1"},
     {"0.9", "0.96", "1.15", "1.10"}},
    {S,
     "{\"type\":\"integer\",\"multipleOf\":1.5,\"minimum\":0}",
     {"0", "3", "6", "300"},
     {"1", "2", "1.5", "301"}},
    {S, "{\"type\":\"integer\",\"multipleOf\":0.5}", {"-1", "0", "7"}, {"0.5"}},
    {S,
     "{\"$ref\":\"#/$defs/a%20b%7E1%25\",\"type\":\"string\",\"$defs\":{\"a "
     "b/%\":{\"const\":\"x\"}}}",
     {"\"x\""},
     {"\"y\"", "1"}},
    {S,
     "{\"type\":[\"number\",\"null\"],\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"null\"}]}",
     {"3", "null"},
     {"3.5", "\"a\""}},
    {S,
     "{\"type\":\"number\",\"minimum\":0.5,\"maximum\":2}",
     {"0.500000", "1", "1.25", "2", "2.000000"},
     {"0.4", "0", "2.000001", "3", "-1"}},
    {S,
     "{\"type\":\"number\",\"exclusiveMinimum\":-1,\"maximum\":0}",
     {"0", "-0.999999", "-0.000001"},
     {"-1", "-1.0", "0.1", "1"}},
    {S, "{\"enum\":[\"a\",1,null,{\"b\":[2]}]}", {"\"a\"", "1", "null", "{\"b\":[2]}"}, {"2", "a"}},
    {S, "{\"type\":\"string\",\"enum\":[\"a\",1]}", {"\"a\""}, {"1"}},
    {S, "{\"const\":\"x\\\"y\"}", {"\"x\\\"y\""}, {"\"x\""}},
    {S, "{\"type\":[\"boolean\",\"null\"]}", {"true", "false", "null"}, {"0"}},
    {S, "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"null\"}]}", {"3", "null"}, {"\"3\""}},
    {S,
     "{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":1,\"maxItems\":2}",
     {"[true]", "[true, false]", "[true,false]"},
     {"[]", "[true,true,true]", "[1]"}},
    {S,
     "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":false}",
     {"[]", "[1]", "[1,2]"},
     {"[2]", "[1,2,3]", "[1,]"}},
    {S, "{\"type\":\"array\",\"maxItems\":0}", {"[]", "[ ]"}, {"[1]"}},
    {S,
     "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{"
     "\"const\":3}},\"required\":[\"b\"],\"additionalProperties\":false}",
     {"{\"b\":2}", "{\"a\":1,\"b\":2}", "{\"b\": 2, \"c\": 3}", "{\"a\":1,\"b\":2,\"c\":3}"},
     {"{}", "{\"a\":1}", "{\"b\":2,\"a\":1}", "{\"b\":2,\"d\":1}", "{\"b\":2,}"}},
    {S,
     "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{"
     "\"const\":3}}}",
     {"{}", "{\"a\":1,\"c\":3}", "{\"c\":3}", "{\"b\":2,\"c\":3}"},
     {"{\"c\":3,\"a\":1}", "{,\"a\":1}"}},
    {S,
     "{\"type\":\"object\",\"properties\":{\"ab\":{\"const\":1}},\"additionalProperties\":{"
     "\"const\":0}}",
     {"{}", "{\"ab\":1}", "{\"ab\":1,\"x\":0}", "{\"a\":0}", "{\"abc\":0,\"\":0}",
      "{\"\xc3\xa9\":0}"},
     {"{\"ab\":0}", "{\"x\":1}", "{\"x\":0,\"ab\":0}"}},
    {S, "{\"type\":\"object\",\"required\":[\"k\"]}", {"{\"k\":[]}"}, {"{}"}},
    {S,
     "{\"$defs\":{\"n\":{\"type\":\"object\",\"properties\":{\"v\":{\"const\":0},\"n\":{\"$ref\":"
     "\"#/$defs/n\"}},\"required\":[\"v\"]}},\"$ref\":\"#/$defs/n\"}",
     {"{\"v\":0}", "{\"v\":0,\"n\":{\"v\":0,\"n\":{\"v\":0}}}"},
     {"{\"n\":{}}", "{\"v\":0,\"n\":{}}"}},
    {S,
     "{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"a\"}},\"required\":["
     "\"k\"]},{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"b\"},\"x\":{\"const\":1}},"
     "\"required\":[\"k\",\"x\"]}]}",
     {"{\"k\":\"a\"}", "{\"k\":\"b\",\"x\":1}"},
     {"{\"k\":\"b\"}", "{\"k\":\"a\",\"x\":1}"}},
    {S,
     "{\"type\":\"string\",\"format\":\"date\"}",
     {"\"2024-02-28\""},
     {"\"2024-13-01\"", "\"\""}},
    {S,
     "{\"type\":\"string\",\"format\":\"ipv4\"}",
     {"\"127.0.0.1\""},
     {"\"256.0.0.1\"", "\"1.1\""}},
};

/* Each language has what belongs to it and nothing else of the examples. */
START_TEST(grammar__takes_what_belongs_to_it)
{
    struct grammar *g = compile(languages[_i].kind, languages[_i].text);

    for (int k = 0; k < 8 && languages[_i].yes[k]; k++)
        ck_assert_msg(accepts(g, languages[_i].yes[k]), "%s must take %s", languages[_i].text,
                      languages[_i].yes[k]);
    for (int k = 0; k < 8 && languages[_i].no[k]; k++)
        ck_assert_msg(!accepts(g, languages[_i].no[k]), "%s must not take %s", languages[_i].text,
                      languages[_i].no[k]);
    grammar_unref(g);
}
END_TEST

static void copy_run(struct grammar_run *to, const struct grammar_run *from)
{
    *to = *from;
    to->nodes = malloc((size_t)from->n_nodes_room * sizeof(*from->nodes));
    memcpy(to->nodes, from->nodes, (size_t)from->n_nodes * sizeof(*from->nodes));
}

/* Random texts of a grammar: at every place the mask has exactly the tokens that can be taken. */
START_TEST(grammar__masks_are_what_trying_every_token_gives)
{
    struct grammar *g = compile(languages[_i].kind, languages[_i].text);
    static uint32_t mask[WORDS];
    struct grammar_run run, one;
    struct err err = {0};
    uint64_t n = 0;

    ck_assert_int_eq(grammar_run_init(&run, &g->masks, &err), 0);
    for (int step = 0; step < 12; step++) {
        int32_t allowed[VOCAB], n_allowed = 0;

        memset(mask, 0xff, sizeof(mask));
        grammar_run_mask(&run, g->scratch, mask);
        for (int32_t t = 2; t < VOCAB; t++) {
            copy_run(&one, &run);
            grammar_run_take(&one, g->scratch, t);
            /* A token without bytes is taken as the end. */
            if (g->masks.vocab->text_at[t] == g->masks.vocab->text_at[t + 1])
                one.is_lost = true;
            ck_assert_msg(has(mask, t) == !one.is_lost, "%s: token %d after %d", languages[_i].text,
                          (int)t, step);
            if (has(mask, t))
                allowed[n_allowed++] = t;
            grammar_run_release(&one);
        }
        if (n_allowed == 0)
            break;
        grammar_run_take(&run, g->scratch,
                         allowed[rng_u64(7, (uint64_t)_i, n++) % (uint64_t)n_allowed]);
    }
    grammar_run_release(&run);
    grammar_unref(g);
}
END_TEST

static const struct {
    enum engine_grammar_kind kind;
    const char *text, *want;
} refused[] = {
    {R, "(a", ") is missing"},
    {R, "a)", "without its"},
    {R, "a**", "nothing to repeat"},
    {R, "[b-a]", "out of order"},
    {R, "[a", "] is missing"},
    {R, "a{2,1}", "malformed"},
    {R, "a{99999}", "4096"},
    {R, "(?=a)b", "look-around"},
    {R, "\\1", "not supported"},
    {R, "a^b", "at the ends"},
    {R, "\\", "backslash"},
    {R, "[^\\s\\S]", "no text"},
    {R, "\xff", "UTF-8"},
    {E, "x ::= \"a\"", "no rule 'root'"},
    {E, "root ::= x", "rule 'x' is not defined"},
    {E, "root ::= root \"a\" | \"b\"", "call itself"},
    {E, "root ::= a \"x\" | \"y\"\na ::= \"z\"? root", "call itself"},
    {E, "root ::= \"a", "closing quote"},
    {E, "root ::= \"a\"\nroot ::= \"b\"", "defined twice"},
    {E, "root ::= \"a\" root", "no text"},
    {E, "root \"a\"", "name and ::="},
    {C, "[]", "array of strings"},
    {C, "[1]", "strings"},
    {C, "[\"\"]", "not empty"},
    {S, "[", "JSON"},
    {S, "3", "must be an object"},
    {S, "false", "no text"},
    {S, "{\"type\":\"strin\"}", "'type'"},
    {S, "{\"patternProperties\":{}}", "'patternProperties'"},
    {S, "{\"not\":{}}", "'not'"},
    {S, "{\"uniqueItems\":true}", "'uniqueItems'"},
    {S, "{\"$ref\":\"#/$defs/x\"}", "points to nothing"},
    {S, "{\"$ref\":\"http://x/y\"}", "same schema"},
    {S, "{\"$ref\":\"#\"}", "no text"},
    {S, "{\"minLength\":-1}", "'minLength'"},
    {S, "{\"maxLength\":1000000}", "'maxLength'"},
    {S, "{\"pattern\":\"a\",\"maxLength\":3}", "'pattern'"},
    {S, "{\"format\":\"color\"}", "'format'"},
    {S, "{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "'oneOf'"},
    {S, "{\"anyOf\":[{}],\"minimum\":1}", "'minimum'"},
    {S, "{\"anyOf\":[{\"type\":\"string\"}],\"type\":\"integer\"}", "'type'"},
    {S, "{\"type\":\"number\",\"multipleOf\":0.3}", "'multipleOf'"},
    {S, "{\"multipleOf\":0.00000001}", "'multipleOf'"},
    {S, "{\"enum\":[]}", "'enum'"},
    {S, "{\"minimum\":5,\"maximum\":4,\"type\":\"integer\"}", "no text"},
    {S, "{\"required\":[\"a\"],\"additionalProperties\":false}", "no text"},
    {S, "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}",
     "no text"},
};

/* What is wrong, not supported or unsatisfiable is an error that says so. */
START_TEST(grammar__refuses)
{
    struct grammar *g = NULL;
    struct err err = {0};
    int rc = grammar_cache_get(cache, refused[_i].kind, refused[_i].text, strlen(refused[_i].text),
                               &g, &err);

    ck_assert_msg(rc < 0, "%s was taken", refused[_i].text);
    ck_assert_msg(strstr(err.msg, refused[_i].want) != NULL, "%s: %s", refused[_i].text, err.msg);
    ck_assert_ptr_null(g);
}
END_TEST

/* What is too large for its budget is refused, in memory and in time. */
START_TEST(grammar__keeps_to_its_budget)
{
    static const char *const large[] = {"(a{4000}b?){4000}", "(.*a.{20}){3}", "[a-z]{4096}{400}"};
    struct grammar *g = NULL;

    for (int i = 0; i < 3; i++) {
        struct err err = {0};

        ck_assert_int_lt(grammar_cache_get(cache, R, large[i], strlen(large[i]), &g, &err), 0);
    }
    grammar_cache_free(cache);
    open_cache(1 << 30, 1000000);
    for (int i = 0; i < 2; i++) {
        struct err err = {0};

        ck_assert_int_eq(grammar_cache_get(cache, R, large[i], strlen(large[i]), &g, &err),
                         ERR_LIMIT);
    }
}
END_TEST

/* The same text is compiled once, as long as it is among the last few. */
START_TEST(grammar__is_kept_for_the_next)
{
    struct grammar *a = compile(R, "abc"), *b = compile(R, "abc"), *c = compile(C, "[\"abc\"]");

    ck_assert_ptr_eq(a, b);
    ck_assert_ptr_ne(a, c);
    for (char text[] = "x0"; text[1] < '4'; text[1]++)
        grammar_unref(compile(R, text));
    grammar_unref(b);
    b = compile(R, "abc");
    ck_assert_ptr_ne(a, b);
    grammar_unref(a);
    grammar_unref(b);
    grammar_unref(c);
}
END_TEST

/* Nesting as deep as a stack may be narrows the choice; nothing breaks. */
START_TEST(grammar__survives_deep_nesting)
{
    struct grammar *g = compile(O, "");
    struct grammar_run run;
    struct err err = {0};
    static uint32_t mask[WORDS];
    const char *start = "{\"a\":";
    int depth = 0;

    ck_assert_int_eq(grammar_run_init(&run, &g->masks, &err), 0);
    for (; *start; start++)
        grammar_run_take(&run, g->scratch, byte_token[(unsigned char)*start]);
    for (; depth < 2 * GRAMMAR_MAX_FRAMES; depth++) {
        memset(mask, 0xff, sizeof(mask));
        grammar_run_mask(&run, g->scratch, mask);
        if (!has(mask, byte_token['[']))
            break;
        grammar_run_take(&run, g->scratch, byte_token['[']);
    }
    ck_assert_int_gt(depth, 50);
    ck_assert_int_lt(depth, 2 * GRAMMAR_MAX_FRAMES);
    for (; depth > 0; depth--) {
        memset(mask, 0xff, sizeof(mask));
        grammar_run_mask(&run, g->scratch, mask);
        ck_assert(has(mask, byte_token[']']));
        grammar_run_take(&run, g->scratch, byte_token[']']);
    }
    grammar_run_take(&run, g->scratch, byte_token['}']);
    ck_assert(grammar_run_must_end(&run));
    grammar_run_release(&run);
    grammar_unref(g);
}
END_TEST

TEST_SUITE(grammar)
{
    TCase *tc = test_case(suite, "core");
    int n = (int)(sizeof(languages) / sizeof(languages[0]));

    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, grammar__takes_what_belongs_to_it, 0, n);
    tcase_add_loop_test(tc, grammar__masks_are_what_trying_every_token_gives, 0, n);
    tcase_add_loop_test(tc, grammar__refuses, 0, (int)(sizeof(refused) / sizeof(refused[0])));
    tcase_add_test(tc, grammar__keeps_to_its_budget);
    tcase_add_test(tc, grammar__is_kept_for_the_next);
    tcase_add_test(tc, grammar__survives_deep_nesting);
}
