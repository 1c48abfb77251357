/*
 * api_error - the error object of the API. The `type` follows from the status, as SDKs decide by
 * the status alone and people read the message.
 */
#include "server/api_error.h"

#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define RETRY_FULL_S    1 /* a full queue moves within a step or two */
#define RETRY_CLOSING_S 5 /* a replica that drains: let the client find another one */

int api_error_set(struct api_error *e, int status, const char *param, const char *code,
                  const char *fmt, ...)
{
    va_list ap;

    if (e->status)
        return ERR_INVALID;
    e->status = status;
    e->code = code;
    e->retry_after_s = status == 429 ? RETRY_FULL_S : status == 503 ? RETRY_CLOSING_S : 0;
    snprintf(e->param, sizeof(e->param), "%s", param ? param : "");
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, ap);
    va_end(ap);
    return ERR_INVALID;
}

int api_error_from_err(struct api_error *e, const struct err *err, const char *param)
{
    switch (err->code) {
    case ERR_CONTEXT:
        return api_error_set(e, 400, param, "context_length_exceeded", "%s", err->msg);
    case ERR_INVALID:
    case ERR_PARSE:
    case ERR_UNSUPPORTED:
        return api_error_set(e, 400, param, NULL, "%s", err->msg);
    case ERR_LIMIT:
        return api_error_set(e, 429, NULL, "server_is_overloaded", "%s", err->msg);
    case ERR_CLOSED:
        return api_error_set(e, 503, NULL, "shutting_down", "The server is shutting down.");
    default:
        return api_error_set(e, 500, NULL, NULL, "%s",
                             err->msg[0] ? err->msg : "The request failed inside the server.");
    }
}

const char *api_error_type(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 408:
        return "timeout_error";
    case 429:
        return "rate_limit_error";
    case 503:
        return "service_unavailable_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void api_error_write(const struct api_error *e, struct strbuf *out)
{
    const char *type = api_error_type(e->status);

    strbuf_addstr(out, "{\"error\":{\"message\":");
    strbuf_add_json(out, e->message, strlen(e->message));
    strbuf_addf(out, ",\"type\":\"%s\",\"param\":", type);
    if (e->param[0])
        strbuf_add_json(out, e->param, strlen(e->param));
    else
        strbuf_addstr(out, "null");
    strbuf_addstr(out, ",\"code\":");
    if (e->code)
        strbuf_add_json(out, e->code, strlen(e->code));
    else
        strbuf_addstr(out, "null");
    strbuf_addstr(out, "}}");
}
