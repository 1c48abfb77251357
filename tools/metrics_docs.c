/*
 * metrics_docs - writes server/METRICS.md to stdout; `make docs` runs it.
 */
#include "base/strbuf.h"
#include "server/metrics.h"

#include <stdio.h>

int main(void)
{
    struct strbuf out = STRBUF_INIT;
    int rc = 0;

    metrics_print_markdown(&out);
    if (out.failed || fwrite(out.buf, 1, out.len, stdout) != out.len || fflush(stdout) != 0) {
        fprintf(stderr, "metrics-docs: cannot write\n");
        rc = 1;
    }
    strbuf_release(&out);
    return rc;
}
