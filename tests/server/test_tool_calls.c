/* Calls of tools in every family's frame, whole and byte by byte. */
#include "server/tool_calls.h"
#include "tests/lib/test.h"

#include <jansson.h>
#include <string.h>

#define F "{\"name\": \"f\", \"arguments\": {\"x\": [1, {\"y\": \"}\\\"\"}], \"z\": null} }"
#define G "{\"parameters\":{},\"name\":\"g\"}"

static const struct {
    enum tool_format format;
    const char *text, *content;
    const char *calls[4]; /* name, arguments, name, arguments */
} cases[] = {
    {TOOLS_HERMES, "Hi <b>", "Hi <b>", {0}},
    {TOOLS_HERMES,
     "Hi <tool_call>\n" F "\n</tool_call>",
     "Hi ",
     {"f", "{\"x\": [1, {\"y\": \"}\\\"\"}], \"z\": null}"}},
    {TOOLS_HERMES,
     "<tool_call>" F "</tool_call>\n<tool_call>" G "</tool_call> bye",
     "\n bye",
     {"f", "{\"x\": [1, {\"y\": \"}\\\"\"}], \"z\": null}", "g", "{}"}},
    {TOOLS_HERMES, "<tool_call>{\"a\":1}</tool_call>", "{\"a\":1}", {0}},
    {TOOLS_HERMES, "a <tool_ca", "a <tool_ca", {0}},
    {TOOLS_HERMES, "<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":", "", {"f", "{\"x\":"}},
    {TOOLS_HERMES,
     "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}</tool_call>",
     "",
     {"f", "{\"x\":1}"}},
    {TOOLS_LLAMA3, "{\"name\":\"f\",\"parameters\":{\"a\":\"b c\"}}", "", {"f", "{\"a\":\"b c\"}"}},
    {TOOLS_LLAMA3,
     "<|python_tag|>" G "; " F,
     "",
     {"g", "{}", "f", "{\"x\": [1, {\"y\": \"}\\\"\"}], \"z\": null}"}},
    {TOOLS_LLAMA3, "{\"a\": 1}", "{\"a\": 1}", {0}},
    {TOOLS_LLAMA3, "Hello {x}", "Hello {x}", {0}},
    {TOOLS_MISTRAL,
     "[TOOL_CALLS] [" F ", " G "]",
     "",
     {"f", "{\"x\": [1, {\"y\": \"}\\\"\"}], \"z\": null}", "g", "{}"}},
    {TOOLS_MISTRAL, "[" G "]", "", {"g", "{}"}},
    {TOOLS_MISTRAL, "[1] said", "[1] said", {0}},
    {TOOLS_MISTRAL, "Hello", "Hello", {0}},
    {TOOLS_ARRAY, "[ " G ", " G "]", "", {"g", "{}", "g", "{}"}},
    {TOOLS_ARGUMENTS, "{\"q\": \"\xc3\xa9\"}", "", {"forced", "{\"q\": \"\xc3\xa9\"}"}},
    {TOOLS_NONE, "<tool_call>", "<tool_call>", {0}},
};

static void check(const struct tool_calls *t, const struct strbuf *content, int i)
{
    int n = 0;

    while (n < 2 && cases[i].calls[2 * n])
        n++;
    ck_assert_str_eq(content->buf, cases[i].content);
    ck_assert_int_eq(tool_calls_count(t), n);
    for (int k = 0; k < n; k++) {
        ck_assert_str_eq(t->calls[k].name.buf, cases[i].calls[2 * k]);
        ck_assert_str_eq(t->calls[k].arguments.buf, cases[i].calls[2 * k + 1]);
    }
}

/* One piece or many: content, names and arguments are the same. */
START_TEST(tool_calls__finds_calls_however_text_is_cut)
{
    size_t len = strlen(cases[_i].text);

    for (size_t cut = 1; cut <= len; cut++) {
        struct strbuf content = STRBUF_INIT;
        struct tool_calls t;

        tool_calls_init(&t, cases[_i].format, "forced");
        for (size_t at = 0; at < len; at += cut)
            ck_assert(tool_calls_feed(&t, cases[_i].text + at, len - at < cut ? len - at : cut,
                                      &content));
        ck_assert(tool_calls_finish(&t, &content));
        check(&t, &content, _i);
        strbuf_release(&content);
        tool_calls_release(&t);
    }
}
END_TEST

/* Deltas joined by index are the whole calls; id and name come once, first. */
START_TEST(tool_calls__deltas_add_up)
{
    size_t len = strlen(cases[_i].text);
    struct strbuf content = STRBUF_INIT;
    struct strbuf arguments[2] = {STRBUF_INIT, STRBUF_INIT};
    bool named[2] = {false, false};
    struct tool_calls t;

    tool_calls_init(&t, cases[_i].format, "forced");
    for (size_t at = 0; at <= len; at++) {
        struct strbuf out = STRBUF_INIT;
        json_t *list, *entry;
        size_t k;

        if (at < len)
            tool_calls_feed(&t, cases[_i].text + at, 1, &content);
        else
            tool_calls_finish(&t, &content);
        strbuf_addch(&out, '[');
        tool_calls_write_delta(&t, &out);
        strbuf_addch(&out, ']');
        list = json_loadb(out.buf, out.len, 0, NULL);
        ck_assert_ptr_nonnull(list);
        json_array_foreach(list, k, entry)
        {
            json_int_t index = json_integer_value(json_object_get(entry, "index"));
            json_t *f = json_object_get(entry, "function");

            ck_assert_int_lt(index, 2);
            ck_assert_int_eq(json_object_get(entry, "id") != NULL, !named[index]);
            ck_assert_int_eq(json_object_get(f, "name") != NULL, !named[index]);
            named[index] = true;
            strbuf_addstr(&arguments[index], json_string_value(json_object_get(f, "arguments")));
        }
        json_decref(list);
        strbuf_release(&out);
    }
    for (int k = 0; k < 2; k++) {
        if (cases[_i].calls[2 * k])
            ck_assert_str_eq(arguments[k].buf, cases[_i].calls[2 * k + 1]);
        strbuf_release(&arguments[k]);
    }
    strbuf_release(&content);
    tool_calls_release(&t);
}
END_TEST

/* The families' own templates give their formats. */
START_TEST(tool_calls__knows_formats_by_templates)
{
    ck_assert_int_eq(tool_format_of_template(NULL), TOOLS_NONE);
    ck_assert_int_eq(tool_format_of_template("{{ messages }}"), TOOLS_NONE);
    ck_assert_int_eq(tool_format_of_template("tools <tool_call>"), TOOLS_HERMES);
    ck_assert_int_eq(tool_format_of_template("tools [TOOL_CALLS]"), TOOLS_MISTRAL);
    ck_assert_int_eq(tool_format_of_template("tools <|python_tag|>"), TOOLS_LLAMA3);
}
END_TEST

TEST_SUITE(tool_calls)
{
    TCase *tc = test_case(suite, "core");
    int n = (int)(sizeof(cases) / sizeof(cases[0]));

    tcase_add_loop_test(tc, tool_calls__finds_calls_however_text_is_cut, 0, n);
    tcase_add_loop_test(tc, tool_calls__deltas_add_up, 0, n);
    tcase_add_test(tc, tool_calls__knows_formats_by_templates);
}
