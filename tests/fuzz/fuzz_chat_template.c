/*
 * fuzz_chat_template - any bytes as a model's chat template: refused with a message, or it renders,
 * in bounded time and memory, to text whose segments cover it from end to end.
 */
#include "base/check.h"
#include "base/err.h"
#include "engine/tokenizer/chat_template.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char messages_text[] =
    "[{\"role\":\"system\",\"content\":\"s {{ 1 }}\"},{\"role\":\"user\",\"content\":\"u "
    "<|end|>\"},"
    "{\"role\":\"assistant\",\"content\":\"\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
    "\"text\":\"x\"}]}]";
static const char tokens_text[] = "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static json_t *messages, *tokens;
    struct chat_template *ct = NULL;
    struct chat_prompt prompt = {0};
    struct err err = {0};
    size_t at = 0;

    if (!messages) {
        messages = json_loads(messages_text, 0, NULL);
        tokens = json_loads(tokens_text, 0, NULL);
    }
    if (chat_template_new(&ct, (const char *)data, size, tokens, &err) < 0) {
        CHECK(ct == NULL);
        CHECK(err.msg[0] != '\0');
        return 0;
    }
    if (chat_template_render(ct, &(struct chat_args){.messages = messages}, &prompt, &err) == 0) {
        for (int i = 0; i < (int)prompt.n_segments; i++) {
            CHECK(prompt.segments[i].at == at);
            at += prompt.segments[i].len;
        }
        CHECK(at == prompt.len);
        CHECK(prompt.text[prompt.len] == '\0');
    } else {
        CHECK(err.msg[0] != '\0');
    }
    chat_prompt_release(&prompt);
    chat_template_free(ct);
    return 0;
}
