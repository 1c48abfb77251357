/*
 * search_options - paths, keys, progress and signals of a search. See search_options.h.
 */
#include "engine/plan/search/search_options.h"

#include "base/strbuf.h"
#include "config/config.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct kv_shape search_shape(const struct search_options *o)
{
    const struct model_config *m = o->model;

    return (struct kv_shape){.n_layers = m->stack.n_layers,
                             .n_heads = m->stack.n_heads,
                             .n_kv_heads = m->stack.n_kv_heads,
                             .head_dim = m->stack.head_dim,
                             .page_entries = KV_TILE,
                             .dtype = m->dtype};
}

static volatile sig_atomic_t stopped;
static bool line_open;

static void on_signal(int signum)
{
    (void)signum;
    stopped = 1;
}

/* A second one ends the program at once: whole files are all that is ever in place. */
void search_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a file too large is an error to report, like a full disk */
}

bool search_is_stopped(void)
{
    return stopped != 0;
}

void search_path(char *path, size_t size, const struct search_options *o, const char *name)
{
    snprintf(path, size, "%s/%s", o->dir, name);
}

static void add_time(char *out, size_t size, double s)
{
    if (s >= 3600)
        snprintf(out, size, "%d h %02d min", (int)(s / 3600), (int)(s / 60) % 60);
    else if (s >= 100)
        snprintf(out, size, "%d min", (int)(s / 60 + 0.5));
    else
        snprintf(out, size, "%.0f s", s);
}

void search_progress(const char *stage, int done, int total, double seconds, const char *detail)
{
    bool terminal = isatty(STDERR_FILENO);
    char left[32] = "";

    if (done > 0 && done < total) {
        char text[24];

        add_time(text, sizeof(text), seconds / done * (total - done));
        snprintf(left, sizeof(left), ", %s left", text);
    }
    fprintf(stderr, "%s%s: %d of %d%s%s%s%s", terminal ? "\r\033[K" : "", stage, done, total,
            detail && *detail ? ", " : "", detail ? detail : "", left, terminal ? "" : "\n");
    fflush(stderr);
    line_open = terminal;
}

void search_progress_end(void)
{
    if (line_open)
        fputc('\n', stderr);
    line_open = false;
}

/* Size and time of a file stand for its contents. */
static void add_file(struct strbuf *out, const char *path)
{
    struct stat st;

    if (stat(path, &st) == 0)
        strbuf_addf(out, "%s:%lld:%lld", path, (long long)st.st_size, (long long)st.st_mtime);
    else
        strbuf_addstr(out, path);
}

void search_key_items(struct strbuf *out, const struct search_options *o)
{
    char path[4200];

    snprintf(path, sizeof(path), "%s/config.json", o->config->model);
    strbuf_addstr(out, "model=");
    add_file(out, path);
    strbuf_addf(out, " weights=%d dtype=%d source=%d answers=%d raw=%d seed=%lld answer_tokens=%d",
                o->config->weights, o->config->dtype, (int)o->source, (int)o->answers,
                o->raw_prompts, (long long)o->seed, o->answer_tokens);
    if (o->input) {
        strbuf_addstr(out, " input=");
        add_file(out, o->input);
    }
    if (o->template_text)
        strbuf_addf(out, " template=%s", o->template_text);
    strbuf_addf(out, " items=%d lengths=", o->items);
    for (int i = 0; i < o->n_lengths; i++)
        strbuf_addf(out, "%d,", o->length[i]);
    if (o->validate_best > 0)
        strbuf_addf(out, " validate=%dx%d", o->validate_items, o->validate_length);
}

void search_key_profile(struct strbuf *out, const struct search_options *o)
{
    search_key_items(out, o);
    strbuf_addf(out, " whole=%d odds=%d sums=%d", o->whole_context_loss, o->log_odds, o->sums);
    if (o->focus)
        strbuf_addf(out, " focus=%.6g", o->density);
}
