/*
 * step_trace - the scheduler's decisions as JSON lines. See step_trace.h.
 */
#include "engine/step_trace.h"

#include "base/clock.h"
#include "base/err.h"
#include "engine/request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct step_trace {
    FILE *file;
    int64_t n_steps, start_ns;
};

int step_trace_open(struct step_trace **out, const char *path, struct err *err)
{
    struct step_trace *t;

    *out = NULL;
    if (!path || !*path)
        return 0;
    t = calloc(1, sizeof(*t));
    if (!t)
        return err_set(err, ERR_NO_ROOM, "trace %s: out of memory", path);
    t->file = fopen(path, "w");
    if (!t->file) {
        free(t);
        return err_set_errno(err, ERR_IO, errno, "trace %s", path);
    }
    t->start_ns = clock_ns();
    *out = t;
    return 0;
}

void step_trace_close(struct step_trace *t)
{
    if (!t)
        return;
    fclose(t->file);
    free(t);
}

static unsigned long long id_of(const struct sched_seq *seq)
{
    return ((const struct request *)seq->owner)->id;
}

static void write_ids(FILE *f, const char *key, struct sched_seq *const *seqs, int n)
{
    fprintf(f, ",\"%s\":[", key);
    for (int i = 0; i < n; i++)
        fprintf(f, "%s%llu", i ? "," : "", id_of(seqs[i]));
    fputc(']', f);
}

void step_trace_write(struct step_trace *t, const struct scheduler *s)
{
    const struct sched_step *step = &s->step;

    if (!t)
        return;
    fprintf(t->file, "{\"step\":%lld,\"us\":%lld,\"rows\":%d,\"decode\":[", (long long)t->n_steps++,
            (long long)(clock_ns() - t->start_ns) / 1000, step->n_rows);
    for (int i = 0; i < step->n_decode; i++)
        fprintf(t->file, "%s%llu", i ? "," : "", id_of(step->items[i].seq));
    fputs("],\"prefill\":[", t->file);
    for (int i = step->n_decode; i < step->n_items; i++)
        fprintf(t->file, "%s[%llu,%d,%d]", i > step->n_decode ? "," : "", id_of(step->items[i].seq),
                (int)step->items[i].pos0, (int)step->items[i].n_rows);
    fputc(']', t->file);
    write_ids(t->file, "admit", step->admitted, step->n_admitted);
    write_ids(t->file, "preempt", step->preempted, step->n_preempted);
    fprintf(t->file, ",\"stalled\":%d,\"waiting\":%d,\"free_pages\":%d}\n", step->n_stalled,
            s->waiting.n, (int)s->kv->pool.n_free);
}

void step_trace_flush(struct step_trace *t)
{
    if (t)
        fflush(t->file);
}
