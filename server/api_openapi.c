/*
 * api_openapi - the description of what is served, a part of the program that
 * tools/openapi.py makes.
 */
#include "server/api.h"

#include "engine/engine.h"
#include "server/exchange.h"
#include "server/http_server.h"

#include <jansson.h>
#include <stdlib.h>

__asm__(".section .rodata\n"
        ".global spand_openapi, spand_openapi_end\n"
        "spand_openapi:\n"
        ".incbin \"server/openapi.json\"\n"
        "spand_openapi_end:\n"
        ".byte 0\n"
        ".previous\n");

extern const char spand_openapi[], spand_openapi_end[];

/* The description with what only the model knows: where token ids end. */
void api_openapi(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    size_t len = (size_t)(spand_openapi_end - spand_openapi);
    json_t *root = json_loadb(spand_openapi, len, 0, NULL);
    json_t *schemas = json_object_get(json_object_get(root, "components"), "schemas");
    char *text;

    json_object_set_new(json_object_get(schemas, "TokenId"), "maximum",
                        json_integer(ex->server->info->vocab_size - 1));
    text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    if (text)
        strbuf_addstr(&body, text);
    body.failed |= !text;
    free(text);
    json_decref(root);
    exchange_reply_json(ex, 200, &body);
}
