/*
 * search_run - the stages of a search in their order. See search_run.h.
 */
#include "engine/plan/search/search_run.h"

#include "base/build_info.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/plan/plan.h"
#include "engine/plan/search/focus.h"
#include "engine/plan/search/layer_scale.h"
#include "engine/plan/search/pareto.h"
#include "engine/plan/search/plan_write.h"
#include "engine/plan/search/profile.h"
#include "engine/plan/search/report.h"
#include "engine/plan/search/validation.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_ROWS 64 /* validated plans and baselines */

struct search {
    const struct search_options *o;
    struct calibration items;
    struct profile profile;
    struct kv_rule *rules;
    int n_rules;
    struct search_program program;
    struct pareto pareto;
    double *validation; /* [n_plans] */
    struct report_row rows[MAX_ROWS];
    char labels[MAX_ROWS][64];
    int n_rows, chosen;
    struct strbuf stages;
    int64_t t0;
};

/* One line about a stage, to stdout and into the report. */
static void tell(struct search *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void tell(struct search *s, const char *fmt, ...)
{
    size_t from = s->stages.len;
    va_list ap;

    va_start(ap, fmt);
    strbuf_vaddf(&s->stages, fmt, ap);
    va_end(ap);
    strbuf_addch(&s->stages, '\n');
    fputs(s->stages.buf + from, stdout);
    fflush(stdout);
}

static double seconds_since(int64_t t0)
{
    return (double)(clock_ns() - t0) * 1e-9;
}

static int calibrate(struct search *s, struct err *err)
{
    int64_t t0 = clock_ns();
    int rc = calibration_get(&s->items, s->o, err);
    int64_t n_answer = 0, n_prompt = 0;

    if (rc < 0)
        return rc;
    for (int i = 0; i < s->items.n_items; i++) {
        n_answer += s->items.items[i].n_answer;
        n_prompt += s->items.items[i].n_prompt;
    }
    tell(s, "calibrate  %d items, %lld prompt and %lld answer tokens, %.1f s%s", s->items.n_items,
         (long long)n_prompt, (long long)n_answer, seconds_since(t0),
         s->items.was_kept ? " (kept)" : "");
    if (s->items.n_short)
        tell(s, "           %d items were left out: the model answered nothing", s->items.n_short);
    return 0;
}

static int focus(struct search *s, struct err *err)
{
    struct focus f;
    int rc = s->o->focus ? focus_apply(&f, &s->items, s->o, err) : 0;

    if (rc < 0 || !s->o->focus)
        return rc;
    tell(s, "focus      %d of %d answer tokens, %d of %d items lose none, %.1f s%s", f.n_kept,
         f.n_tokens, f.n_dropped, f.n_items, f.seconds, f.was_kept ? " (kept)" : "");
    return 0;
}

/* How fast the profile of a length ran, of what was run now. */
static void tell_speed(struct search *s, const struct profile_length *at)
{
    double limit = s->o->limit_tflops > 0 ? s->o->limit_tflops * 1e12 : s->profile.product_rate;

    tell(s,
         "                  %lld tokens, %.0f tokens/s, %.4g PFLOP needed and %.4g done: %.4g and "
         "%.4g TFLOP/s",
         (long long)at->n_tokens, (double)at->n_tokens / at->seconds, at->flops_needed * 1e-15,
         at->flops_done * 1e-15, at->flops_needed / at->seconds * 1e-12,
         at->flops_done / at->seconds * 1e-12);
    if (limit > 0)
        tell(s, "                  that is %.1f %% and %.1f %% of %.4g TFLOP/s (%s)",
             100.0 * at->flops_needed / at->seconds / limit,
             100.0 * at->flops_done / at->seconds / limit, limit * 1e-12,
             s->o->limit_tflops > 0 ? "as given" : "the model's largest product alone");
}

static int profile(struct search *s, struct err *err)
{
    int64_t t0 = clock_ns();
    int rc = profile_get(&s->profile, s->o, &s->items, err);

    if (rc < 0)
        return rc;
    tell(s, "profile    %d lengths, %.1f s, %.1f s of it until the weights were there",
         s->profile.n_lengths, seconds_since(t0), s->profile.open_seconds);
    for (int i = 0; i < s->profile.n_lengths; i++) {
        const struct profile_length *at = &s->profile.at[i];

        tell(s, "           %6d tokens: %d items (%d kept), loss %.4f, %.1f s", at->length,
             at->n_items, at->n_items - at->n_ran, at->loss, at->seconds);
        if (at->n_ran > 0)
            tell_speed(s, at);
    }
    return 0;
}

static int scale_layers(struct search *s, struct err *err)
{
    struct layer_scale l;
    int rc, last = s->profile.n_lengths - 1;
    double least = INFINITY, most = 0;

    if (!s->o->scale_layers)
        return 0;
    rc = layer_scale_apply(&l, &s->profile, s->o, &s->items, err);
    for (int u = 0; rc == 0 && u < s->profile.n_layers * s->profile.units_per_layer; u++) {
        least = fmin(least, l.factor[last][u]);
        most = fmax(most, l.factor[last][u]);
    }
    if (rc == 0)
        tell(s, "scale      influence by %.3g to %.3g at %d tokens, %.1f s%s", least, most,
             s->profile.at[last].length, l.seconds, l.was_kept ? " (kept)" : "");
    layer_scale_release(&l);
    return rc;
}

static bool on_solve(void *arg, int done, int total)
{
    struct search *s = arg;

    if (done % 8 == 0)
        search_progress("optimise", done, total, seconds_since(s->t0), "programs");
    return !search_is_stopped();
}

/* Average influence an item, so that lengths with fewer items count alike. */
static void scale_profile(struct profile *p)
{
    for (int i = 0; i < p->n_lengths; i++) {
        struct profile_length *at = &p->at[i];
        size_t n = (size_t)p->n_layers * (size_t)p->units_per_layer * (size_t)at->n_blocks;

        for (size_t k = 0; k < n && at->n_items > 0; k++) {
            at->band[k] /= at->n_items;
            at->sink[k] /= at->n_items;
        }
    }
}

static int optimise(struct search *s, struct err *err)
{
    const struct search_options *o = s->o;
    struct search_input in = {.n_layers = o->model->stack.n_layers,
                              .units_per_layer = s->profile.units_per_layer,
                              .n_lengths = o->n_lengths,
                              .caps = o->caps,
                              .convention = o->config->span_convention == PLAN_SPAN_EXCLUDES_SINK
                                                ? KV_SPAN_EXCLUDES_SINK
                                                : KV_SPAN_INCLUDES_SINK,
                              .window = o->model->window};
    struct pareto_params params = {.n_intervals = o->n_intervals,
                                   .gap = o->gap,
                                   .max_nodes = o->max_nodes,
                                   .max_rules_per_layer = o->max_rules_per_layer,
                                   .use_cbc = o->use_cbc,
                                   .cbc_seconds = 60,
                                   .progress = on_solve,
                                   .progress_arg = s};
    int64_t t0 = clock_ns();
    int rc = rule_grid_make(&s->rules, &s->n_rules, &o->grid, err);

    if (rc < 0)
        return rc;
    scale_profile(&s->profile);
    in.rules = s->rules;
    in.n_rules = s->n_rules;
    for (int i = 0; i < o->n_lengths; i++) {
        in.length[i] = o->length[i];
        in.band[i] = s->profile.at[i].band;
        in.sink[i] = s->profile.at[i].sink;
    }
    rc = search_program_init(&s->program, &in, err);
    s->t0 = t0;
    if (rc == 0)
        rc = pareto_find(&s->pareto, &s->program, &params, err);
    search_progress_end();
    if (rc < 0)
        return rc;
    tell(s,
         "optimise   %d heads x %d rules: %d plans from %d programs, worst gap to the bound %.1e, "
         "%d not closed, %.1f s",
         s->program.n_units, s->n_rules, s->pareto.n_plans, s->pareto.n_solves, s->pareto.worst_gap,
         s->pareto.n_open, seconds_since(t0));
    return 0;
}

/* A plan's file in the report's directory. */
static int write_plan(struct search *s, int plan, const char *path, double loss, struct err *err)
{
    const struct search_options *o = s->o;
    struct strbuf out = STRBUF_INIT, about = STRBUF_INIT;
    int rc;

    strbuf_addstr(&about, "{\"made_by\": \"spand-plan ");
    strbuf_addf(&about, "%s (%s)\", \"model\": ", build_version(), build_commit());
    strbuf_add_json(&about, o->config->model, strlen(o->config->model));
    strbuf_addf(&about, ", \"asked_density\": %.6g, \"pareto_plan\": %d, \"items\": %d", o->density,
                plan, s->items.n_items);
    strbuf_addstr(&about, ", \"hidden_influence\": {");
    for (int i = 0; i < o->n_lengths; i++)
        strbuf_addf(&about, "%s\"%d\": %.6g", i ? ", " : "", o->length[i],
                    s->pareto.plans[plan].loss[i]);
    strbuf_addch(&about, '}');
    if (!isnan(loss))
        strbuf_addf(&about, ", \"validation_length\": %d, \"validation_loss\": %.6g",
                    o->validate_length, loss);
    strbuf_addch(&about, '}');
    plan_write(&out, o, &s->program.in, s->pareto.plans[plan].rule, about.buf);
    rc = out.failed || about.failed ? err_set(err, ERR_NO_ROOM, "%s: out of memory", path)
                                    : file_write_whole(path, out.buf, out.len, err);
    strbuf_release(&out);
    strbuf_release(&about);
    return rc;
}

static int write_plans(struct search *s, struct err *err)
{
    char path[4200], name[64];
    int rc = 0;

    for (int p = 0; p < s->pareto.n_plans && rc == 0; p++) {
        snprintf(name, sizeof(name), "plan_%d.json", p);
        search_path(path, sizeof(path), s->o, name);
        rc = write_plan(s, p, path, NAN, err);
    }
    return rc;
}

/* The density that a spec keeps at the validation length. */
static int density_of(const struct search_options *o, const char *spec, double *out,
                      struct err *err)
{
    const struct model_config *m = o->model;
    struct kv_shape shape = search_shape(o);
    struct plan *plan;
    int rc = plan_open(&plan, spec, &shape, (enum plan_convention)o->config->span_convention, err);

    if (rc < 0)
        return rc;
    for (int layer = 0; layer < m->stack.n_layers; layer++)
        if (m->window[layer] < KV_WINDOW_ALL)
            plan_set_window(plan, layer, m->window[layer]);
    *out = plan_kv_density(plan, o->validate_length);
    plan_free(plan);
    return 0;
}

/* Tokens that a plan was measured on. */
static int64_t validation_tokens(const struct search *s)
{
    int64_t n = 0;

    for (int i = 0; i < s->items.n_items; i++)
        if (s->items.items[i].length == s->o->validate_length)
            n += s->items.items[i].n_prompt + s->items.items[i].n_answer;
    return n;
}

static int validate_one(struct search *s, const char *spec, const char *label, double *loss,
                        struct err *err)
{
    struct report_row *row = &s->rows[s->n_rows];
    struct validation v;
    int rc = validation_get(&v, s->o, &s->items, spec, label, err);

    if (rc < 0)
        return rc;
    *loss = v.loss;
    if (s->n_rows == MAX_ROWS)
        return 0;
    snprintf(s->labels[s->n_rows], sizeof(s->labels[0]), "%s", label);
    row->label = s->labels[s->n_rows++];
    row->loss = v.loss;
    rc = density_of(s->o, spec, &row->density, err);
    tell(s, "           %-14s loss %.5f at density %.4f, %d items of %lld tokens, %.1f s%s", label,
         v.loss, row->density, v.n_items, (long long)validation_tokens(s), v.seconds,
         v.was_kept ? " (kept)" : "");
    return rc;
}

static int validate_baselines(struct search *s, struct err *err)
{
    const struct search_options *o = s->o;
    char spec[64];
    double unused;
    int rc = validate_one(s, "dense", "dense", &unused, err);

    snprintf(spec, sizeof(spec), "uniform:%.6g", o->density);
    if (rc == 0)
        rc = validate_one(s, spec, "uniform", &unused, err);
    snprintf(spec, sizeof(spec), "streaming:64,%d", (int)(o->density * o->validate_length) - 64);
    if (rc == 0 && (int)(o->density * o->validate_length) > 64)
        rc = validate_one(s, spec, "streaming", &unused, err);
    return rc;
}

/* The best by predicted loss are measured, and the best of those is chosen. */
static int validate(struct search *s, struct err *err)
{
    const struct search_options *o = s->o;
    int n = o->validate_best < s->pareto.n_plans ? o->validate_best : s->pareto.n_plans, rc = 0;
    int64_t t0 = clock_ns();

    s->validation = calloc((size_t)s->pareto.n_plans, sizeof(*s->validation));
    if (!s->validation)
        return err_set(err, ERR_NO_ROOM, "validate: out of memory");
    for (int p = 0; p < s->pareto.n_plans; p++)
        s->validation[p] = (double)NAN;
    s->chosen = 0;
    if (n > 0 && o->baselines)
        rc = validate_baselines(s, err);
    for (int p = 0; p < n && rc == 0; p++) {
        char path[4200], name[64];

        snprintf(name, sizeof(name), "plan_%d.json", p);
        search_path(path, sizeof(path), o, name);
        snprintf(name, sizeof(name), "plan_%d", p);
        rc = validate_one(s, path, name, &s->validation[p], err);
        if (rc == 0 && s->validation[p] < s->validation[s->chosen])
            s->chosen = p;
    }
    if (rc == 0)
        tell(s, "validate   %d plans at %d tokens, plan %d chosen, %.1f s", n, o->validate_length,
             s->chosen, seconds_since(t0));
    return rc;
}

static int finish(struct search *s, const char *command, struct err *err)
{
    struct report report = {.o = s->o,
                            .program = &s->program,
                            .pareto = &s->pareto,
                            .rows = s->rows,
                            .n_rows = s->n_rows,
                            .validation = s->validation,
                            .chosen = s->chosen,
                            .command = command,
                            .stages = s->stages.buf};
    int rc = write_plan(s, s->chosen, s->o->output, s->validation[s->chosen], err);

    return rc == 0 ? report_write(&report, err) : rc;
}

/* Whether the plan can be written is asked before the work, not after. */
static int check_output(const char *path, struct err *err)
{
    const char *slash = strrchr(path, '/');
    char dir[4096];

    snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    if (access(*dir ? dir : "/", W_OK) < 0)
        return err_set_errno(err, ERR_IO, errno, "%s: cannot write there", path);
    return 0;
}

static int make_dir(const char *dir, struct err *err)
{
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return err_set_errno(err, ERR_IO, errno, "%s: cannot create the report's directory", dir);
    return 0;
}

int search_run(const struct search_options *o, enum search_stage until, const char *command,
               struct err *err)
{
    struct search *s = calloc(1, sizeof(*s));
    int64_t t0 = clock_ns();
    int rc;

    if (!s)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    s->o = o;
    strbuf_init(&s->stages);
    rc = check_output(o->output, err);
    if (rc == 0)
        rc = make_dir(o->dir, err);
    if (rc == 0)
        rc = calibrate(s, err);
    if (rc == 0 && until >= STAGE_PROFILE)
        rc = focus(s, err);
    if (rc == 0 && until >= STAGE_PROFILE)
        rc = profile(s, err);
    if (rc == 0 && until >= STAGE_OPTIMISE)
        rc = scale_layers(s, err);
    if (rc == 0 && until >= STAGE_OPTIMISE)
        rc = optimise(s, err);
    if (rc == 0 && until >= STAGE_OPTIMISE)
        rc = write_plans(s, err);
    if (rc == 0 && until >= STAGE_ALL)
        rc = validate(s, err);
    if (rc == 0)
        tell(s, "in all     %.1f s", seconds_since(t0));
    if (rc == 0 && until >= STAGE_ALL)
        rc = finish(s, command, err);
    free(s->validation);
    pareto_release(&s->pareto);
    search_program_release(&s->program);
    free(s->rules);
    profile_release(&s->profile);
    calibration_release(&s->items);
    strbuf_release(&s->stages);
    free(s);
    return rc;
}
