/*
 * api_openapi - the description of what is served, a part of the program: tools/openapi.py makes
 * it.
 */
#include "server/api.h"

#include "server/exchange.h"

__asm__(".section .rodata\n"
        ".global spand_openapi, spand_openapi_end\n"
        "spand_openapi:\n"
        ".incbin \"server/openapi.json\"\n"
        "spand_openapi_end:\n"
        ".byte 0\n"
        ".previous\n");

extern const char spand_openapi[], spand_openapi_end[];

void api_openapi(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;

    strbuf_add(&body, spand_openapi, (size_t)(spand_openapi_end - spand_openapi));
    exchange_reply_json(ex, 200, &body);
}
