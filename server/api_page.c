/*
 * api_page - the page at /, which is part of the program: no file to install, nothing from outside.
 *
 * It draws what /metrics, /v1/models and /ui/plan say. Where API keys are set a browser is asked
 * for one by the 401's Basic challenge (any name, the key as the password).
 */
#include "server/api.h"

#include "engine/engine.h"
#include "server/api_error.h"
#include "server/exchange.h"
#include "server/http_server.h"

__asm__(".section .rodata\n"
        ".global spand_page, spand_page_end\n"
        "spand_page:\n"
        ".incbin \"server/page.html\"\n"
        "spand_page_end:\n"
        ".byte 0\n"
        ".previous\n");

extern const char spand_page[], spand_page_end[];

void api_page(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;

    strbuf_add(&body, spand_page, (size_t)(spand_page_end - spand_page));
    exchange_reply(ex, 200, "text/html; charset=utf-8", &body);
}

/* The plan's spans at the context's length: a property of the server, not of anybody's request. */
void api_page_plan(struct exchange *ex)
{
    struct strbuf body = STRBUF_INIT;
    struct api_error e = {0};
    struct err err = {0};

    if (engine_dump_plan(ex->server->engine, 0, &body, &err) < 0) {
        strbuf_release(&body);
        api_error_from_err(&e, &err, NULL);
        exchange_reply_error(ex, &e);
        return;
    }
    exchange_reply_json(ex, 200, &body);
}
