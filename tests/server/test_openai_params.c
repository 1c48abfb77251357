/*
 * Tests of server/openai_params.c, openai_prompt.c and json_in.c: a table of bodies with the answer
 * each must get, and what the accepted ones come to.
 */
#include "tests/lib/test.h"

#include "base/arena.h"
#include "base/strbuf.h"
#include "server/api_error.h"
#include "server/json_in.h"
#include "server/openai_params.h"

#include <stdio.h>
#include <string.h>

#define ARENA_BYTES (1 << 20)

static const struct openai_limits limits = {
    .model_id = "m",
    .vocab_size = 100,
    .max_seq_len = 64,
    .max_prompts = 4,
    .max_choices = 8,
    .max_logprobs = 10,
    .json_depth = 8,
    .temperature = 1,
    .top_p = 1,
    .repetition_penalty = 1,
};

static struct arena arena;
static json_t *root;
static struct api_error error;
static struct openai_params params;

static void setup(void)
{
    arena_init(&arena, ARENA_BYTES, 0);
    root = NULL;
    error = (struct api_error){0};
}

static void teardown(void)
{
    json_decref(root);
    arena_release(&arena);
}

static int read_bytes(enum openai_api api, const char *body, size_t len)
{
    teardown();
    setup();
    if (json_in_parse(&root, body, len, limits.json_depth, &error) < 0)
        return ERR_INVALID;
    return openai_params_read(&params, api, root, &limits, &arena, &error);
}

static int read_body(enum openai_api api, const char *body)
{
    return read_bytes(api, body, strlen(body));
}

struct bad {
    const char *body;
    int status;
    const char *param, *code; /* code NULL: null */
};

#define P "{\"model\":\"m\",\"prompt\":\"x\","
#define C "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"

static void refuse_all(enum openai_api api, const struct bad *bad, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct strbuf out = STRBUF_INIT;
        int rc = read_body(api, bad[i].body);

        ck_assert_msg(rc < 0, "accepted: %s", bad[i].body);
        ck_assert_msg(error.status == bad[i].status, "%s: status %d", bad[i].body, error.status);
        ck_assert_msg(!strcmp(error.param, bad[i].param), "%s: param '%s'", bad[i].body,
                      error.param);
        ck_assert_msg(!error.code == !bad[i].code &&
                          (!error.code || !strcmp(error.code, bad[i].code)),
                      "%s: code %s", bad[i].body, error.code ? error.code : "null");
        ck_assert_msg(error.message[0] != '\0', "%s: no message", bad[i].body);
        api_error_write(&error, &out);
        ck_assert_msg(strstr(out.buf, "\"param\":") != NULL, "%s", out.buf);
        strbuf_release(&out);
    }
}

static void accept_all(enum openai_api api, const char *const *bodies, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int rc = read_body(api, bodies[i]);

        ck_assert_msg(rc == 0, "%s: %s", bodies[i], error.message);
    }
}

#define N(a) (sizeof(a) / sizeof((a)[0]))

/* What is not a JSON object of bounded depth is refused, whatever it is. */
START_TEST(openai_params__refuses_what_is_no_object)
{
    static const struct bad bad[] = {
        {"", 400, "", NULL},
        {"null", 400, "", NULL},
        {"[]", 400, "", NULL},
        {"\"x\"", 400, "", NULL},
        {"1", 400, "", NULL},
        {"{", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\"", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\"} x", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\"}{}", 400, "", NULL},
        {"\xef\xbb\xbf{\"model\":\"m\",\"prompt\":\"x\"}", 400, "", NULL},
        {"{\"model\":\"m\",\"model\":\"m\",\"prompt\":\"x\"}", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":1e400}", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"\\ud800\"}", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"\xff\"}", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\",\"a\\u0000b\":1}", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\",\"temperature\":1e400}", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\",\"seed\":9223372036854775808}", 400, "seed", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\",\"temperature\":NaN}", 400, "", NULL},
        {"{'model':'m'}", 400, "", NULL},
        {"[[[[[[[[[[[[]]]]]]]]]]]]", 400, "", NULL},
        {"{\"model\":\"m\",\"prompt\":\"x\",\"a\":[[[[[[[[1]]]]]]]]}", 400, "", NULL},
    };

    refuse_all(API_COMPLETIONS, bad, N(bad));
}
END_TEST

/* A NUL byte and every truncation of a good body are refused. */
START_TEST(openai_params__refuses_every_truncation)
{
    static const char good[] = P "\"max_tokens\":3,\"stop\":[\"a\"],\"logit_bias\":{\"5\":-1.5}}";

    ck_assert_int_eq(read_body(API_COMPLETIONS, good), 0);
    for (size_t len = 0; len < sizeof(good) - 1; len++) {
        ck_assert_msg(read_bytes(API_COMPLETIONS, good, len) < 0, "accepted %zu bytes", len);
        ck_assert_int_eq(error.status, 400);
    }
    ck_assert_int_lt(read_bytes(API_COMPLETIONS, good, sizeof(good)), 0);
}
END_TEST

/* The depth limit counts brackets outside strings only. */
START_TEST(openai_params__limits_depth_outside_strings)
{
    ck_assert_int_eq(
        read_body(API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":\"[[[[[[[[[[[[\\\"[[[[[[\"}"), 0);
    ck_assert_int_eq(read_body(API_COMPLETIONS, P "\"a\":[[[[[[[1]]]]]]]}"), 0);
    ck_assert_int_lt(read_body(API_COMPLETIONS, P "\"a\":[[[[[[[[1]]]]]]]]}"), 0);
}
END_TEST

START_TEST(openai_params__refuses_bad_models)
{
    static const struct bad bad[] = {
        {"{\"prompt\":\"x\"}", 400, "model", NULL},
        {"{\"model\":null,\"prompt\":\"x\"}", 400, "model", NULL},
        {"{\"model\":1,\"prompt\":\"x\"}", 400, "model", NULL},
        {"{\"model\":\"\",\"prompt\":\"x\"}", 404, "model", "model_not_found"},
        {"{\"model\":\"../..\",\"prompt\":\"x\"}", 404, "model", "model_not_found"},
        {"{\"model\":\"m\\r\\nx\",\"prompt\":\"x\"}", 404, "model", "model_not_found"},
        {"{\"model\":\"other\",\"prompt\":1}", 404, "model", "model_not_found"},
    };

    refuse_all(API_COMPLETIONS, bad, N(bad));
}
END_TEST

START_TEST(openai_params__refuses_bad_prompts)
{
    static const struct bad bad[] = {
        {"{\"model\":\"m\"}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":1}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":true}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":{}}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[[]]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[[1],[]]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[1,\"a\"]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[\"a\",1]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[[1],\"a\"]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[\"a\",[1]]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[null]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[[[1]]]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[-1]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[100]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[4294967296]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[1.5]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", 400, "prompt", NULL},
        {"{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\"],\"n\":3}", 400, "n", NULL},
    };

    refuse_all(API_COMPLETIONS, bad, N(bad));
}
END_TEST

START_TEST(openai_params__refuses_values_out_of_range)
{
    static const struct bad bad[] = {
        {P "\"max_tokens\":-1}", 400, "max_tokens", NULL},
        {P "\"max_tokens\":2147483648}", 400, "max_tokens", NULL},
        {P "\"max_tokens\":1.5}", 400, "max_tokens", NULL},
        {P "\"max_tokens\":\"1\"}", 400, "max_tokens", NULL},
        {P "\"max_tokens\":true}", 400, "max_tokens", NULL},
        {P "\"max_tokens\":[1]}", 400, "max_tokens", NULL},
        {P "\"max_tokens\":1e300}", 400, "max_tokens", NULL},
        {P "\"min_tokens\":-1}", 400, "min_tokens", NULL},
        {P "\"min_tokens\":5,\"max_tokens\":4}", 400, "min_tokens", NULL},
        {P "\"temperature\":-0.1}", 400, "temperature", NULL},
        {P "\"temperature\":2.0001}", 400, "temperature", NULL},
        {P "\"temperature\":\"NaN\"}", 400, "temperature", NULL},
        {P "\"temperature\":true}", 400, "temperature", NULL},
        {P "\"top_p\":-0.01}", 400, "top_p", NULL},
        {P "\"top_p\":0}", 400, "top_p", NULL},
        {P "\"top_p\":1.01}", 400, "top_p", NULL},
        {P "\"min_p\":1.1}", 400, "min_p", NULL},
        {P "\"min_p\":-0.1}", 400, "min_p", NULL},
        {P "\"top_k\":-2}", 400, "top_k", NULL},
        {P "\"repetition_penalty\":0}", 400, "repetition_penalty", NULL},
        {P "\"repetition_penalty\":-1}", 400, "repetition_penalty", NULL},
        {P "\"repetition_penalty\":1e-6}", 400, "repetition_penalty", NULL},
        {P "\"presence_penalty\":2.1}", 400, "presence_penalty", NULL},
        {P "\"frequency_penalty\":-2.1}", 400, "frequency_penalty", NULL},
        {P "\"n\":0}", 400, "n", NULL},
        {P "\"n\":129}", 400, "n", NULL},
        {P "\"n\":9}", 400, "n", NULL},
        {P "\"n\":-1}", 400, "n", NULL},
        {P "\"n\":2,\"best_of\":3,\"stream\":true}", 400, "best_of", NULL},
        {P "\"best_of\":9}", 400, "n", NULL},
        {P "\"truncate_prompt_tokens\":-2}", 400, "truncate_prompt_tokens", NULL},
        {P "\"allowed_token_ids\":[]}", 400, "allowed_token_ids", NULL},
        {P "\"allowed_token_ids\":[100]}", 400, "allowed_token_ids", NULL},
        {P "\"bad_words\":[\"\"]}", 400, "bad_words", NULL},
        {P "\"bad_words\":\"x\"}", 400, "bad_words", NULL},
        {P "\"priority\":1}", 400, "priority", NULL},
        {P "\"n\":3,\"best_of\":2}", 400, "best_of", NULL},
        {P "\"best_of\":21}", 400, "best_of", NULL},
        {P "\"logprobs\":6}", 400, "logprobs", NULL},
        {P "\"logprobs\":-1}", 400, "logprobs", NULL},
        {P "\"logprobs\":true}", 400, "logprobs", NULL},
        {P "\"prompt_logprobs\":11}", 400, "prompt_logprobs", NULL},
        {P "\"prompt_logprobs\":1,\"stream\":true}", 400, "prompt_logprobs", NULL},
        {P "\"echo\":1}", 400, "echo", NULL},
        {P "\"stream\":\"yes\"}", 400, "stream", NULL},
        {P "\"stream_options\":{}}", 400, "stream_options", NULL},
        {P "\"stream\":true,\"stream_options\":[]}", 400, "stream_options", NULL},
        {P "\"stream\":true,\"stream_options\":{\"include_usage\":1}}", 400,
         "stream_options.include_usage", NULL},
        {P "\"seed\":1.5}", 400, "seed", NULL},
        {P "\"seed\":\"1\"}", 400, "seed", NULL},
        {P "\"user\":1}", 400, "user", NULL},
        {P "\"return_token_ids\":1}", 400, "return_token_ids", NULL},
        {P "\"ignore_eos\":0}", 400, "ignore_eos", NULL},
    };

    refuse_all(API_COMPLETIONS, bad, N(bad));
}
END_TEST

START_TEST(openai_params__refuses_bad_stops_and_biases)
{
    static const struct bad bad[] = {
        {P "\"stop\":\"\"}", 400, "stop", NULL},
        {P "\"stop\":[\"\"]}", 400, "stop", NULL},
        {P "\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", 400, "stop", NULL},
        {P "\"stop\":[1]}", 400, "stop", NULL},
        {P "\"stop\":[null]}", 400, "stop", NULL},
        {P "\"stop\":1}", 400, "stop", NULL},
        {P "\"stop\":{}}", 400, "stop", NULL},
        {P "\"stop_token_ids\":[100]}", 400, "stop_token_ids", NULL},
        {P "\"stop_token_ids\":[\"1\"]}", 400, "stop_token_ids", NULL},
        {P "\"stop_token_ids\":1}", 400, "stop_token_ids", NULL},
        {P "\"logit_bias\":[]}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"abc\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"-1\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"1e1\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"01\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\" 1\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"100\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"99999999999999999999999\":1}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"1\":101}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"1\":-100.5}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"1\":null}}", 400, "logit_bias", NULL},
        {P "\"logit_bias\":{\"1\":\"1\"}}", 400, "logit_bias", NULL},
    };

    refuse_all(API_COMPLETIONS, bad, N(bad));
}
END_TEST

/* What would change the answer and is not built is refused by name. */
START_TEST(openai_params__refuses_what_it_cannot_honour)
{
    static const struct bad completions[] = {
        {P "\"suffix\":\"x\"}", 400, "suffix", "unsupported_parameter"},
        {P "\"use_beam_search\":true}", 400, "use_beam_search", "unsupported_parameter"},
    };
    static const struct bad chat[] = {
        {C "\"tools\":[{}]}", 400, "tools", NULL},
        {C "\"tools\":[{}],\"tool_choice\":\"auto\"}", 400, "tools", NULL},
        {C "\"tool_choice\":\"required\"}", 400, "tool_choice", NULL},
        {C "\"tool_choice\":{\"type\":\"function\"}}", 400, "tool_choice", NULL},
        {C "\"functions\":[{}]}", 400, "functions", "unsupported_parameter"},
        {C "\"modalities\":[\"audio\"]}", 400, "modalities", "unsupported_parameter"},
        {C "\"modalities\":[\"text\",\"audio\"]}", 400, "modalities", "unsupported_parameter"},
        {C "\"chat_template\":\"x\"}", 400, "chat_template", "unsupported_parameter"},
        {C "\"chat_template_kwargs\":{\"a\":1}}", 400, "chat_template_kwargs",
         "unsupported_parameter"},
    };

    refuse_all(API_COMPLETIONS, completions, N(completions));
    refuse_all(API_CHAT, chat, N(chat));
}
END_TEST

START_TEST(openai_params__refuses_bad_chats)
{
    static const struct bad bad[] = {
        {"{\"model\":\"m\"}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":null}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[]}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":\"x\"}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[1]}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[{}]}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", 400, "messages",
         NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":1,\"content\":\"x\"}]}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":1}]}", 400, "messages",
         NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\"}]}", 400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":null}]}", 400, "messages",
         NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}"
         "]"
         "}",
         400, "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}", 400,
         "messages", NULL},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]}", 400,
         "messages", NULL},
        {C "\"max_tokens\":0}", 400, "max_tokens", NULL},
        {C "\"max_completion_tokens\":0}", 400, "max_completion_tokens", NULL},
        {C "\"logprobs\":1}", 400, "logprobs", NULL},
        {C "\"top_logprobs\":1}", 400, "top_logprobs", NULL},
        {C "\"logprobs\":false,\"top_logprobs\":1}", 400, "top_logprobs", NULL},
        {C "\"logprobs\":true,\"top_logprobs\":21}", 400, "top_logprobs", NULL},
        {C "\"logprobs\":true,\"top_logprobs\":11}", 400, "top_logprobs", NULL},
        {C "\"logprobs\":true,\"top_logprobs\":-1}", 400, "top_logprobs", NULL},
    };

    refuse_all(API_CHAT, bad, N(bad));
}
END_TEST

/* Nulls, unknown fields, integral reals and harmless extras are taken. */
START_TEST(openai_params__accepts_what_clients_send)
{
    static const char *const completions[] = {
        "{\"model\":\"m\",\"prompt\":\"\"}",
        "{\"model\":\"m\",\"prompt\":[\"\"]}",
        "{\"model\":\"m\",\"prompt\":null}",
        "{\"model\":\"m\",\"prompt\":[1,2.0,99]}",
        "{\"model\":\"m\",\"prompt\":[[1],[2,3]]}",
        "{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\",\"d\"],\"n\":2}",
        P "\"suffix\":null,\"max_tokens\":null,\"temperature\":null,\"top_p\":null,\"n\":null,"
          "\"best_of\":null,\"stream\":null,\"stream_options\":null,\"logprobs\":null,"
          "\"echo\":null,\"stop\":null,\"presence_penalty\":null,\"frequency_penalty\":null,"
          "\"logit_bias\":null,\"seed\":null,\"user\":null,\"response_format\":null}",
        P "\"unknown\":{\"a\":[1,2]},\"x\":null}",
        P "\"max_tokens\":1.0,\"n\":1e0,\"seed\":-0.0}",
        P "\"max_tokens\":0,\"echo\":true,\"logprobs\":5}",
        P "\"max_tokens\":0}",
        P "\"n\":2,\"best_of\":3}",
        P "\"truncate_prompt_tokens\":-1,\"priority\":0}",
        P "\"allowed_token_ids\":[1,99],\"bad_words\":[\"a\",\"b c\"]}",
        P "\"stop\":[]}",
        P "\"stop\":[\"a\",\"b\",\"c\",\"d\"]}",
        P "\"suffix\":\"\"}",
        P "\"best_of\":1}",
        P "\"best_of\":0}",
        P "\"n\":2,\"best_of\":2}",
        P "\"response_format\":{\"type\":\"text\"}}",
        P "\"seed\":-9223372036854775808}",
        P "\"seed\":9223372036854775807}",
        P "\"temperature\":1e-10}",
        P "\"temperature\":0}",
        P "\"temperature\":2}",
        P "\"top_k\":-1}",
        P "\"top_k\":2147483647}",
        P "\"logit_bias\":{}}",
        P "\"logit_bias\":{\"0\":-100,\"99\":100}}",
        P "\"top_p\":1e-30}",
        P "\"repetition_penalty\":1e-5}",
        P "\"repetition_penalty\":1,\"length_penalty\":1,\"priority\":0}",
        P "\"stream\":true,\"stream_options\":{\"include_usage\":null,\"x\":1}}",
    };
    static const char *const chat[] = {
        C "\"tools\":[],\"tool_choice\":\"auto\"}",
        C "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"tool_choice\":"
          "\"none\"}",
        C "\"logprobs\":true,\"top_logprobs\":10}",
        C "\"logprobs\":true}",
        C "\"max_completion_tokens\":5,\"max_tokens\":7}",
        C "\"reasoning_effort\":\"low\",\"verbosity\":\"low\",\"store\":true,\"metadata\":{}}",
        C "\"modalities\":[\"text\"]}",
        "{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"x\"},"
        "{\"role\":\"assistant\",\"content\":null},{\"role\":\"tool\",\"content\":\"\"}]}",
    };

    accept_all(API_COMPLETIONS, completions, N(completions));
    accept_all(API_CHAT, chat, N(chat));
}
END_TEST

/* A null prompt is an empty one. */
START_TEST(openai_params__takes_a_null_prompt)
{
    ck_assert_int_eq(read_body(API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":null}"), 0);
    ck_assert_int_eq(params.n_prompts, 1);
    ck_assert_str_eq(params.prompts[0].text, "");
    ck_assert_uint_eq(params.prompts[0].text_len, 0);
}
END_TEST

/* Out of range at the upper end must not be told as "at least". */
START_TEST(openai_params__names_both_ends_of_a_range)
{
    ck_assert_int_lt(read_body(API_COMPLETIONS, P "\"max_tokens\":2147483648}"), 0);
    ck_assert_str_eq(error.message, "'max_tokens' must be an integer from 0 to 2147483647.");
}
END_TEST

/* Without any field but the required ones the request has OpenAI's defaults. */
START_TEST(openai_params__fills_in_the_defaults)
{
    ck_assert_int_eq(read_body(API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":\"x\"}"), 0);
    ck_assert_int_eq(params.max_tokens, -1);
    ck_assert_int_eq(params.n, 1);
    ck_assert_float_eq(params.sampling.temperature, 1);
    ck_assert_float_eq(params.sampling.top_p, 1);
    ck_assert_int_eq(params.sampling.top_k, 0);
    ck_assert_int_eq(params.sampling.n_logprobs, -1);
    ck_assert_int_eq(params.sampling.n_prompt_logprobs, -1);
    ck_assert(params.sampling.skip_special);
    ck_assert(!params.has_seed);
    ck_assert(!params.stream);
}
END_TEST

/* Zero logprobs is not the same as none; with echo the prompt's are asked for too. */
START_TEST(openai_params__tells_no_logprobs_from_zero)
{
    ck_assert_int_eq(read_body(API_COMPLETIONS, P "\"logprobs\":0}"), 0);
    ck_assert_int_eq(params.sampling.n_logprobs, 0);
    ck_assert_int_eq(params.sampling.n_prompt_logprobs, -1);
    ck_assert_int_eq(read_body(API_COMPLETIONS, P "\"logprobs\":2,\"echo\":true}"), 0);
    ck_assert_int_eq(params.sampling.n_prompt_logprobs, 2);
    ck_assert_int_eq(read_body(API_CHAT, C "\"logprobs\":true,\"top_logprobs\":3}"), 0);
    ck_assert_int_eq(params.sampling.n_logprobs, 3);
}
END_TEST

/* The four forms of a prompt, and one string as one prompt. */
START_TEST(openai_params__reads_the_four_prompt_forms)
{
    ck_assert_int_eq(read_body(API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":\"ab\"}"), 0);
    ck_assert_int_eq(params.n_prompts, 1);
    ck_assert_uint_eq(params.prompts[0].text_len, 2);
    ck_assert_int_eq(read_body(API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":[\"a\",\"b\"]}"), 0);
    ck_assert_int_eq(params.n_prompts, 2);
    ck_assert_str_eq(params.prompts[1].text, "b");
    ck_assert_int_eq(read_body(API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":[7,8]}"), 0);
    ck_assert_int_eq(params.n_prompts, 1);
    ck_assert_ptr_null(params.prompts[0].text);
    ck_assert_int_eq(params.prompts[0].ids[1], 8);
    ck_assert_int_eq(read_body(API_COMPLETIONS, "{\"model\":\"m\",\"prompt\":[[7],[8,9]]}"), 0);
    ck_assert_int_eq(params.n_prompts, 2);
    ck_assert_int_eq(params.prompts[1].n_ids, 2);
}
END_TEST

/* Text parts are joined by newlines, and developers speak as system. */
START_TEST(openai_params__joins_text_parts)
{
    ck_assert_int_eq(
        read_body(API_CHAT,
                  "{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":"
                  "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]"
                  "}"),
        0);
    ck_assert_str_eq(params.messages[0].role, "system");
    ck_assert_str_eq(params.messages[0].content, "a\nb");
    ck_assert_uint_eq(params.messages[0].content_len, 3);
}
END_TEST

/* /tokenize and /detokenize need no model, but a wrong one is still wrong. */
START_TEST(openai_params__reads_tokenize_bodies)
{
    static const struct bad bad[] = {
        {"{}", 400, "prompt", NULL},
        {"{\"prompt\":[\"a\"]}", 400, "prompt", NULL},
        {"{\"prompt\":[1,2]}", 400, "prompt", NULL},
        {"{\"prompt\":null}", 400, "prompt", NULL},
        {"{\"prompt\":\"a\",\"model\":\"x\"}", 404, "model", "model_not_found"},
    };
    static const struct bad detokenize[] = {
        {"{}", 400, "tokens", NULL},
        {"{\"tokens\":\"x\"}", 400, "tokens", NULL},
        {"{\"tokens\":[100]}", 400, "tokens", NULL},
    };

    refuse_all(API_TOKENIZE, bad, N(bad));
    refuse_all(API_DETOKENIZE, detokenize, N(detokenize));
    ck_assert_int_eq(read_body(API_TOKENIZE, "{\"prompt\":\"a\"}"), 0);
    ck_assert_int_eq(read_body(API_DETOKENIZE, "{\"tokens\":[]}"), 0);
    ck_assert_int_eq(params.n_tokens, 0);
}
END_TEST

/* A request that needs more memory than its arena has is refused. */
START_TEST(openai_params__refuses_what_the_arena_cannot_hold)
{
    struct strbuf body = STRBUF_INIT;

    strbuf_addstr(&body, "{\"model\":\"m\",\"prompt\":[1");
    for (int i = 0; i < ARENA_BYTES / 4; i++)
        strbuf_addstr(&body, ",1");
    strbuf_addstr(&body, "]}");
    ck_assert_int_lt(read_bytes(API_COMPLETIONS, body.buf, body.len), 0);
    ck_assert_int_eq(error.status, 400);
    strbuf_release(&body);
}
END_TEST

TEST_SUITE(openai_params)
{
    TCase *tc = test_case(suite, "bodies");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, openai_params__refuses_what_is_no_object);
    tcase_add_test(tc, openai_params__refuses_every_truncation);
    tcase_add_test(tc, openai_params__limits_depth_outside_strings);
    tcase_add_test(tc, openai_params__refuses_bad_models);
    tcase_add_test(tc, openai_params__refuses_bad_prompts);
    tcase_add_test(tc, openai_params__refuses_values_out_of_range);
    tcase_add_test(tc, openai_params__refuses_bad_stops_and_biases);
    tcase_add_test(tc, openai_params__refuses_what_it_cannot_honour);
    tcase_add_test(tc, openai_params__refuses_bad_chats);
    tcase_add_test(tc, openai_params__accepts_what_clients_send);
    tcase_add_test(tc, openai_params__takes_a_null_prompt);
    tcase_add_test(tc, openai_params__names_both_ends_of_a_range);
    tcase_add_test(tc, openai_params__fills_in_the_defaults);
    tcase_add_test(tc, openai_params__tells_no_logprobs_from_zero);
    tcase_add_test(tc, openai_params__reads_the_four_prompt_forms);
    tcase_add_test(tc, openai_params__joins_text_parts);
    tcase_add_test(tc, openai_params__reads_tokenize_bodies);
    tcase_add_test(tc, openai_params__refuses_what_the_arena_cannot_hold);
}
