/*
 * Tests of server/openai_json.c, sse.c and api_error.c: the bytes that go out.
 */
#include "tests/lib/test.h"

#include "base/strbuf.h"
#include "engine/engine.h"
#include "server/api_error.h"
#include "server/openai_json.h"
#include "server/sse.h"

#include <math.h>
#include <string.h>

static struct strbuf out;

static void setup(void)
{
    strbuf_init(&out);
}

static void teardown(void)
{
    strbuf_release(&out);
}

/* A vocabulary of text, half a character, two tokens of one text, a quote, and BOS. */
static int toy_bytes(void *arg, int32_t id, struct strbuf *to)
{
    static const char *const tokens[] = {"a", "\xc3", "\xa9", "a", "\"", "<s>", "\xe2\x82\xac"};

    (void)arg;
    strbuf_addstr(to, tokens[id]);
    return 0;
}

static const struct token_speller toy = {.bytes = toy_bytes};

static struct engine_token token(int32_t id, float logprob)
{
    return (struct engine_token){.id = id, .logprob = logprob};
}

static void expect(const char *want)
{
    ck_assert(!out.failed);
    ck_assert_str_eq(out.buf, want);
}

START_TEST(openai_json__writes_a_text_choice)
{
    struct openai_piece p = {.index = 3, .text = "a\"\n", .text_len = 3, .stop_token = -1};

    openai_write_text_choice(&out, &p);
    expect("{\"index\":3,\"text\":\"a\\\"\\n\",\"logprobs\":null,\"finish_reason\":null}");
}
END_TEST

/* The reason for stopping: a string, a token, or null, and only with a finish reason. */
START_TEST(openai_json__says_what_stopped)
{
    struct openai_piece p = {
        .text = "", .finish_reason = "stop", .stop_string = "END", .stop_token = 7};

    openai_write_text_choice(&out, &p);
    strbuf_addch(&out, '\n');
    p.stop_string = NULL;
    openai_write_text_choice(&out, &p);
    strbuf_addch(&out, '\n');
    p.stop_token = -1;
    openai_write_text_choice(&out, &p);
    expect("{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"stop\","
           "\"stop_reason\":\"END\"}\n"
           "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"stop\","
           "\"stop_reason\":7}\n"
           "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"stop\","
           "\"stop_reason\":null}");
}
END_TEST

START_TEST(openai_json__writes_token_ids)
{
    struct strbuf prompt = STRBUF_INIT;
    struct strbuf ids = STRBUF_INIT;
    struct openai_piece p = {
        .text = "x", .text_len = 1, .stop_token = -1, .prompt_ids = &prompt, .token_ids = &ids};

    openai_add_id(&prompt, 1);
    openai_add_id(&prompt, 20);
    openai_write_text_choice(&out, &p);
    expect("{\"index\":0,\"text\":\"x\",\"logprobs\":null,\"finish_reason\":null,"
           "\"token_ids\":[],\"prompt_token_ids\":[1,20]}");
    strbuf_release(&prompt);
    strbuf_release(&ids);
}
END_TEST

/* The first delta has the role, the last one nothing but the finish reason. */
START_TEST(openai_json__writes_deltas)
{
    struct openai_piece first = {.text = "", .with_role = true, .stop_token = -1};
    struct openai_piece last = {.finish_reason = "length", .stop_token = -1};

    openai_write_delta_choice(&out, &first);
    strbuf_addch(&out, '\n');
    openai_write_delta_choice(&out, &last);
    expect("{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
           "\"finish_reason\":null}\n"
           "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\","
           "\"stop_reason\":null}");
}
END_TEST

START_TEST(openai_json__writes_a_message)
{
    struct openai_piece p = {
        .text = "hi", .text_len = 2, .finish_reason = "stop", .stop_token = -1};

    openai_write_message_choice(&out, &p);
    expect("{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hi\",\"refusal\":null},"
           "\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}");
}
END_TEST

START_TEST(openai_json__writes_head_and_usage)
{
    struct openai_head h = {
        .id = "cmpl-1", .object = "text_completion", .model = "m\"", .created = 5};
    struct openai_usage u = {.prompt_tokens = 3, .completion_tokens = 4, .cached_tokens = 2};

    openai_write_head(&out, &h);
    openai_write_usage(&out, &u);
    expect("{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":5,\"model\":\"m\\\"\","
           "\"system_fingerprint\":null,\"choices\":["
           "{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7,"
           "\"prompt_tokens_details\":{\"cached_tokens\":2}}");
}
END_TEST

/* The first prompt token has null, minus infinity is -9999, the sampled token is in the map. */
START_TEST(openai_json__writes_completions_logprobs)
{
    struct logprob_list l;
    struct engine_token first = token(5, NAN), second = token(0, -INFINITY);

    second.n_top = 1;
    second.top_id[0] = 4;
    second.top_logprob[0] = -0.5f;
    logprob_list_init(&l, LOGPROBS_COMPLETIONS);
    logprob_list_add(&l, &first, 1, true, &toy);
    logprob_list_add(&l, &second, 1, false, &toy);
    logprob_list_write(&l, &out);
    expect("{\"tokens\":[\"<s>\",\"a\"],\"token_logprobs\":[null,-9999.0],"
           "\"top_logprobs\":[null,{\"\\\"\":-0.5,\"a\":-9999.0}],\"text_offset\":[0,0]}");
    ck_assert_int_eq(l.n, 0);
    logprob_list_release(&l);
}
END_TEST

/* Offsets count code points, go on over writes, and a split character counts once. */
START_TEST(openai_json__counts_offsets_in_code_points)
{
    static const int32_t ids[] = {6, 1, 2, 0};
    struct logprob_list l;

    logprob_list_init(&l, LOGPROBS_COMPLETIONS);
    for (int i = 0; i < 4; i++) {
        struct engine_token t = token(ids[i], -1);

        logprob_list_add(&l, &t, 0, false, &toy);
        if (i == 1) {
            logprob_list_write(&l, &out);
            strbuf_reset(&out);
        }
    }
    logprob_list_write(&l, &out);
    expect("{\"tokens\":[\"bytes:\\\\xa9\",\"a\"],\"token_logprobs\":[-1,-1],"
           "\"top_logprobs\":[{\"bytes:\\\\xa9\":-1},{\"a\":-1}],\"text_offset\":[2,2]}");
    logprob_list_release(&l);
}
END_TEST

/* Two ids with one text give one key: the more likely one's. */
START_TEST(openai_json__keeps_map_keys_unique)
{
    struct logprob_list l;
    struct engine_token t = token(3, -2);

    t.n_top = 2;
    t.top_id[0] = 0;
    t.top_logprob[0] = -1;
    t.top_id[1] = 3;
    t.top_logprob[1] = -2;
    logprob_list_init(&l, LOGPROBS_COMPLETIONS);
    logprob_list_add(&l, &t, 2, false, &toy);
    logprob_list_write(&l, &out);
    expect("{\"tokens\":[\"a\"],\"token_logprobs\":[-2],\"top_logprobs\":[{\"a\":-1}],"
           "\"text_offset\":[0]}");
    logprob_list_release(&l);
}
END_TEST

START_TEST(openai_json__spells_tokens_as_ids)
{
    struct token_speller by_id = toy;
    struct logprob_list l;
    struct engine_token t = token(1, -1);

    by_id.as_ids = true;
    logprob_list_init(&l, LOGPROBS_COMPLETIONS);
    logprob_list_add(&l, &t, 0, false, &by_id);
    logprob_list_write(&l, &out);
    ck_assert_ptr_nonnull(strstr(out.buf, "\"tokens\":[\"token_id:1\"]"));
    logprob_list_release(&l);
}
END_TEST

/* The bytes of a half character are there, and top_logprobs is a list even when empty. */
START_TEST(openai_json__writes_chat_logprobs)
{
    struct logprob_list l;
    struct engine_token t = token(1, -0.25f);

    t.n_top = 1;
    t.top_id[0] = 0;
    t.top_logprob[0] = -0.125f;
    logprob_list_init(&l, LOGPROBS_CHAT);
    logprob_list_add(&l, &t, 0, false, &toy);
    logprob_list_add(&l, &t, 1, false, &toy);
    logprob_list_write(&l, &out);
    expect("{\"content\":[{\"token\":\"bytes:\\\\xc3\",\"logprob\":-0.25,\"bytes\":[195],"
           "\"top_logprobs\":[]},{\"token\":\"bytes:\\\\xc3\",\"logprob\":-0.25,\"bytes\":[195],"
           "\"top_logprobs\":[{\"token\":\"a\",\"logprob\":-0.125,\"bytes\":[97]}]}],"
           "\"refusal\":null}");
    logprob_list_release(&l);
}
END_TEST

/* A token that the text leaves out moves no offset, and gives the text no bytes. */
START_TEST(openai_json__leaves_silent_tokens_out_of_the_text)
{
    struct logprob_list l, chat;
    struct engine_token silent = token(5, -1), next = token(0, -1);

    logprob_list_init(&l, LOGPROBS_COMPLETIONS);
    logprob_list_init(&chat, LOGPROBS_CHAT);
    logprob_list_add(&l, &silent, 0, true, &toy);
    logprob_list_add(&l, &silent, 0, false, &toy);
    logprob_list_add(&l, &next, 0, false, &toy);
    logprob_list_write(&l, &out);
    ck_assert_ptr_nonnull(strstr(out.buf, "\"text_offset\":[0,0,3]"));
    strbuf_reset(&out);
    logprob_list_add(&chat, &silent, 0, true, &toy);
    logprob_list_write(&chat, &out);
    expect("{\"content\":[{\"token\":\"<s>\",\"logprob\":-1,\"bytes\":[],"
           "\"top_logprobs\":[]}],\"refusal\":null}");
    logprob_list_release(&l);
    logprob_list_release(&chat);
}
END_TEST

/* Where the text lacks the first tokens' spaces, offsets begin at 0 and are short by as many. */
START_TEST(openai_json__counts_offsets_from_a_stripped_beginning)
{
    struct logprob_list l;
    struct engine_token t = token(0, -1);

    logprob_list_init(&l, LOGPROBS_COMPLETIONS);
    l.text_at = -1;
    for (int i = 0; i < 3; i++)
        logprob_list_add(&l, &t, 0, false, &toy);
    logprob_list_write(&l, &out);
    ck_assert_ptr_nonnull(strstr(out.buf, "\"text_offset\":[0,0,1]"));
    logprob_list_release(&l);
}
END_TEST

/* More alternatives than prompt_logprobs asks for may be there, for the sake of echo. */
START_TEST(openai_json__cuts_prompt_logprobs_to_what_was_asked)
{
    struct engine_token t = token(4, -3);

    t.n_top = 2;
    t.top_id[0] = 0;
    t.top_logprob[0] = -1;
    t.top_id[1] = 6;
    t.top_logprob[1] = -2;
    openai_add_prompt_logprob(&out, &t, 0, &toy);
    openai_add_prompt_logprob(&out, &t, 1, &toy);
    expect("{\"4\":{\"logprob\":-3,\"rank\":null,\"decoded_token\":\"\\\"\"}},"
           "{\"0\":{\"logprob\":-1,\"rank\":1,\"decoded_token\":\"a\"},"
           "\"4\":{\"logprob\":-3,\"rank\":null,\"decoded_token\":\"\\\"\"}}");
}
END_TEST

/* vLLM has the prompt's ids in a choice of completions, but beside the choices of a chat. */
START_TEST(openai_json__keeps_prompt_ids_out_of_chat_choices)
{
    struct strbuf prompt = STRBUF_INIT;
    struct openai_piece p = {.text = "x", .text_len = 1, .stop_token = -1, .prompt_ids = &prompt};

    openai_add_id(&prompt, 1);
    openai_write_message_choice(&out, &p);
    openai_write_delta_choice(&out, &p);
    ck_assert_ptr_null(strstr(out.buf, "prompt_token_ids"));
    strbuf_reset(&out);
    openai_write_list(&out, "prompt_token_ids", &prompt);
    openai_write_list(&out, "absent", NULL);
    expect(",\"prompt_token_ids\":[1]");
    strbuf_release(&prompt);
}
END_TEST

START_TEST(openai_json__writes_prompt_logprobs)
{
    struct engine_token first = token(0, NAN), second = token(4, -3);

    second.n_top = 1;
    second.top_id[0] = 0;
    second.top_logprob[0] = -1;
    openai_add_prompt_logprob(&out, &first, 1, &toy);
    openai_add_prompt_logprob(&out, &second, 1, &toy);
    expect("null,{\"0\":{\"logprob\":-1,\"rank\":1,\"decoded_token\":\"a\"},"
           "\"4\":{\"logprob\":-3,\"rank\":null,\"decoded_token\":\"\\\"\"}}");
}
END_TEST

/* One data line an event, and the end marker that the Node SDK compares for equality. */
START_TEST(sse__frames_events)
{
    sse_begin(&out);
    strbuf_addstr(&out, "{}");
    sse_end(&out);
    sse_ping(&out);
    sse_done(&out);
    expect("data: {}\n\n: ping\n\ndata: [DONE]\n\n");
}
END_TEST

/* All four keys, always; what clients sent cannot break the JSON. */
START_TEST(api_error__writes_four_keys)
{
    struct api_error e = {0};

    api_error_set(&e, 404, "model", "model_not_found", "no \"%s\"", "x\n\xff");
    api_error_write(&e, &out);
    expect("{\"error\":{\"message\":\"no \\\"x\\n\xef\xbf\xbd\\\"\",\"type\":"
           "\"invalid_request_error\",\"param\":\"model\",\"code\":\"model_not_found\"}}");
}
END_TEST

START_TEST(api_error__keeps_the_first_error)
{
    struct api_error e = {0};

    api_error_set(&e, 400, NULL, NULL, "first");
    api_error_set(&e, 500, "x", "y", "second");
    api_error_write(&e, &out);
    expect("{\"error\":{\"message\":\"first\",\"type\":\"invalid_request_error\",\"param\":null,"
           "\"code\":null}}");
}
END_TEST

/* Engine errors become the statuses that SDKs retry, or do not. */
START_TEST(api_error__translates_engine_errors)
{
    static const struct {
        int code, status;
        const char *name;
    } cases[] = {{ERR_INVALID, 400, NULL},
                 {ERR_CONTEXT, 400, "context_length_exceeded"},
                 {ERR_LIMIT, 429, "server_is_overloaded"},
                 {ERR_CLOSED, 503, "shutting_down"},
                 {ERR_DEVICE, 500, NULL},
                 {ERR_NO_ROOM, 500, NULL}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct api_error e = {0};
        struct err err = {.code = cases[i].code, .msg = "why"};

        api_error_from_err(&e, &err, "prompt");
        ck_assert_int_eq(e.status, cases[i].status);
        ck_assert_pstr_eq(e.code, cases[i].name);
        ck_assert_int_eq(e.retry_after_s > 0, e.status == 429 || e.status == 503);
        ck_assert_int_le(e.retry_after_s, 60);
    }
}
END_TEST

TEST_SUITE(openai_json)
{
    TCase *tc = test_case(suite, "bytes");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, openai_json__writes_a_text_choice);
    tcase_add_test(tc, openai_json__says_what_stopped);
    tcase_add_test(tc, openai_json__writes_token_ids);
    tcase_add_test(tc, openai_json__writes_deltas);
    tcase_add_test(tc, openai_json__writes_a_message);
    tcase_add_test(tc, openai_json__writes_head_and_usage);
    tcase_add_test(tc, openai_json__writes_completions_logprobs);
    tcase_add_test(tc, openai_json__counts_offsets_in_code_points);
    tcase_add_test(tc, openai_json__keeps_map_keys_unique);
    tcase_add_test(tc, openai_json__spells_tokens_as_ids);
    tcase_add_test(tc, openai_json__writes_chat_logprobs);
    tcase_add_test(tc, openai_json__leaves_silent_tokens_out_of_the_text);
    tcase_add_test(tc, openai_json__counts_offsets_from_a_stripped_beginning);
    tcase_add_test(tc, openai_json__cuts_prompt_logprobs_to_what_was_asked);
    tcase_add_test(tc, openai_json__keeps_prompt_ids_out_of_chat_choices);
    tcase_add_test(tc, openai_json__writes_prompt_logprobs);
    tcase_add_test(tc, sse__frames_events);
    tcase_add_test(tc, api_error__writes_four_keys);
    tcase_add_test(tc, api_error__keeps_the_first_error);
    tcase_add_test(tc, api_error__translates_engine_errors);
}
