/*
 * report - what a search found. See report.h.
 */
#include "engine/plan/search/report.h"

#include "base/build_info.h"
#include "base/err.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/plan/plan.h"
#include "engine/plan/plan_draw.h"
#include "engine/plan/search/plan_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int put(const struct report *r, const char *name, struct strbuf *text, struct err *err)
{
    char path[4200];
    int rc;

    search_path(path, sizeof(path), r->o, name);
    rc = text->failed ? err_set(err, ERR_NO_ROOM, "%s: out of memory", path)
                      : file_write_whole(path, text->buf, text->len, err);
    strbuf_release(text);
    return rc;
}

static void add_pareto_csv(struct strbuf *out, const struct report *r)
{
    const struct search_input *in = &r->program->in;

    strbuf_addstr(out, "plan,chosen,score");
    for (int i = 0; i < in->n_lengths; i++)
        strbuf_addf(out, ",influence_%d", in->length[i]);
    for (int c = 0; c < in->caps.n; c++)
        strbuf_addf(out, ",density_%d", in->caps.length[c]);
    strbuf_addstr(out, ",validation_loss\n");
    for (int p = 0; p < r->pareto->n_plans; p++) {
        const struct pareto_plan *plan = &r->pareto->plans[p];

        strbuf_addf(out, "%d,%d,%.9g", p, p == r->chosen, plan->score);
        for (int i = 0; i < in->n_lengths; i++)
            strbuf_addf(out, ",%.9g", plan->loss[i]);
        for (int c = 0; c < in->caps.n; c++)
            strbuf_addf(out, ",%.6f", plan->density[c]);
        if (isnan(r->validation[p]))
            strbuf_addstr(out, ",\n");
        else
            strbuf_addf(out, ",%.9g\n", r->validation[p]);
    }
}

static void add_plans_csv(struct strbuf *out, const struct report *r)
{
    const struct search_input *in = &r->program->in;

    strbuf_addstr(out, "plan,layer,unit,alpha,beta\n");
    for (int p = 0; p < r->pareto->n_plans; p++)
        for (int u = 0; u < r->program->n_units; u++) {
            const struct kv_rule *rule = &in->rules[r->pareto->plans[p].rule[u]];

            strbuf_addf(out, "%d,%d,%d,%.9g,%.9g\n", p, u / in->units_per_layer,
                        u % in->units_per_layer, rule->alpha, rule->beta);
        }
}

struct axis {
    double least, most;
};

static struct axis axis_of(const struct report *r, int length_idx)
{
    struct axis a = {INFINITY, -INFINITY};
    double pad;

    for (int p = 0; p < r->pareto->n_plans; p++) {
        a.least = fmin(a.least, r->pareto->plans[p].loss[length_idx]);
        a.most = fmax(a.most, r->pareto->plans[p].loss[length_idx]);
    }
    pad = a.most > a.least ? 0.08 * (a.most - a.least) : 0.5 * fabs(a.most) + 1e-9;
    a.least -= pad;
    a.most += pad;
    return a;
}

#define FRONT_W 640
#define FRONT_H 420
#define LEFT    80
#define BOTTOM  60
#define TOP     30
#define RIGHT   20

static double at_x(struct axis a, double v)
{
    return LEFT + (v - a.least) / (a.most - a.least) * (FRONT_W - LEFT - RIGHT);
}

static double at_y(struct axis a, double v)
{
    return FRONT_H - BOTTOM - (v - a.least) / (a.most - a.least) * (FRONT_H - BOTTOM - TOP);
}

static void add_ticks(struct strbuf *out, struct axis x, struct axis y)
{
    for (int i = 0; i <= 4; i++) {
        double vx = x.least + (x.most - x.least) * i / 4, vy = y.least + (y.most - y.least) * i / 4;

        strbuf_addf(out,
                    "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"#6b7785\">%.3g</text>"
                    "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" fill=\"#6b7785\">%.3g</text>\n",
                    at_x(x, vx), FRONT_H - BOTTOM + 18, vx, LEFT - 8, at_y(y, vy) + 4, vy);
        strbuf_addf(out, "<path d=\"M%.1f %dV%dM%d %.1fH%d\" stroke=\"#e3e7eb\" fill=\"none\"/>\n",
                    at_x(x, vx), TOP, FRONT_H - BOTTOM, LEFT, at_y(y, vy), FRONT_W - RIGHT);
    }
}

/* Influence lost at the shortest length across, at the longest up; the chosen plan stands out. */
static void add_front(struct strbuf *out, const struct report *r)
{
    const struct search_input *in = &r->program->in;
    int last = in->n_lengths - 1;
    struct axis x = axis_of(r, 0), y = axis_of(r, last);

    strbuf_addf(out,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
                "height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n"
                "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
                FRONT_W, FRONT_H, FRONT_W, FRONT_H);
    add_ticks(out, x, y);
    for (int p = 0; p < r->pareto->n_plans; p++) {
        const struct pareto_plan *plan = &r->pareto->plans[p];
        bool validated = !isnan(r->validation[p]);
        double px = at_x(x, plan->loss[0]), py = at_y(y, plan->loss[last]);

        strbuf_addf(out,
                    "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\" stroke=\"#1f2933\">"
                    "<title>plan %d: %.6g at %d tokens, %.6g at %d</title></circle>\n",
                    px, py, p == r->chosen ? 8 : 5,
                    p == r->chosen ? "#d9480f"
                    : validated    ? "#2f8d9a"
                                   : "#ffffff",
                    p, plan->loss[0], in->length[0], plan->loss[last], in->length[last]);
        strbuf_addf(out,
                    "<text x=\"%.1f\" y=\"%.1f\" font-size=\"10\" fill=\"#1f2933\">%d</text>\n",
                    px + 9, py - 5, p);
    }
    strbuf_addf(
        out,
        "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">influence hidden at %d tokens</text>"
        "<text transform=\"translate(16 %d) rotate(-90)\" text-anchor=\"middle\">influence "
        "hidden at %d tokens</text>\n"
        "<text x=\"%d\" y=\"18\" fill=\"#6b7785\">filled: validated; large: chosen</text>"
        "</svg>\n",
        (LEFT + FRONT_W) / 2, FRONT_H - 14, in->length[0], FRONT_H / 2, in->length[last], LEFT);
}

static int add_spans(struct strbuf *out, const struct report *r, struct err *err)
{
    const struct model_config *m = r->o->model;
    struct kv_shape shape = search_shape(r->o);
    int n = r->o->validate_length;
    struct plan *plan = NULL;
    char title[128];
    int rc = plan_open(&plan, r->o->output, &shape, PLAN_SPAN_AUTO, err);

    if (rc < 0)
        return rc;
    for (int layer = 0; layer < m->stack.n_layers; layer++)
        if (m->window[layer] < KV_WINDOW_ALL)
            plan_set_window(plan, layer, m->window[layer]);
    snprintf(title, sizeof(title), "plan %d", r->chosen);
    plan_draw_svg(plan, title, n, out);
    plan_free(plan);
    return 0;
}

static void add_escaped(struct strbuf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '<')
            strbuf_addstr(out, "&lt;");
        else if (*s == '>')
            strbuf_addstr(out, "&gt;");
        else if (*s == '&')
            strbuf_addstr(out, "&amp;");
        else
            strbuf_addch(out, *s);
    }
}

static void add_tables(struct strbuf *out, const struct report *r)
{
    const struct search_input *in = &r->program->in;

    strbuf_addf(out, "<h2>Validation at %d tokens</h2>\n", r->o->validate_length);
    if (r->n_rows == 0)
        strbuf_addstr(out, "<p>Left out: the plan of the least predicted loss was taken.</p>\n");
    else
        strbuf_addstr(out, "<table><tr><th>plan<th>mean loss of the answers<th>density of the "
                           "key-value heads</tr>\n");
    for (int i = 0; i < r->n_rows; i++)
        strbuf_addf(out, "<tr><td>%s<td>%.5f<td>%.4f</tr>\n", r->rows[i].label, r->rows[i].loss,
                    r->rows[i].density);
    strbuf_addstr(out, r->n_rows ? "</table>\n" : "");
    strbuf_addstr(out, "<h2>All plans</h2>\n<table><tr><th>plan<th>score");
    for (int i = 0; i < in->n_lengths; i++)
        strbuf_addf(out, "<th>influence hidden at %d", in->length[i]);
    for (int c = 0; c < in->caps.n; c++)
        strbuf_addf(out, "<th>density at %d", in->caps.length[c]);
    strbuf_addstr(out, "</tr>\n");
    for (int p = 0; p < r->pareto->n_plans; p++) {
        const struct pareto_plan *plan = &r->pareto->plans[p];

        strbuf_addf(out, "<tr%s><td>%d<td>%.5f", p == r->chosen ? " class=\"chosen\"" : "", p,
                    plan->score);
        for (int i = 0; i < in->n_lengths; i++)
            strbuf_addf(out, "<td>%.5g", plan->loss[i]);
        for (int c = 0; c < in->caps.n; c++)
            strbuf_addf(out, "<td>%.4f", plan->density[c]);
        strbuf_addstr(out, "</tr>\n");
    }
    strbuf_addstr(out, "</table>\n");
}

static void add_page(struct strbuf *out, const struct report *r, const char *front,
                     const char *spans)
{
    strbuf_addstr(
        out,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>spand-plan</title>"
        "<style>body{font:15px/1.5 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;"
        "color:#1f2933}table{border-collapse:collapse;font-size:13px}td,th{border:1px solid "
        "#d5dbe1;padding:3px 9px;text-align:right}pre{background:#f2f4f6;padding:1em;white-space:"
        "pre-wrap}.chosen{background:#ffe8dc}svg{max-width:100%;height:auto}</style>\n<h1>");
    add_escaped(out, r->o->config->model);
    strbuf_addf(out, ", density %.4g</h1>\n<p>spand %s (%s). Plan %d was written to <code>",
                r->o->density, build_version(), build_commit(), r->chosen);
    add_escaped(out, r->o->output);
    strbuf_addstr(out, "</code>.</p>\n<pre>");
    add_escaped(out, r->command);
    strbuf_addstr(out, "\n\n");
    add_escaped(out, r->stages);
    strbuf_addstr(out, "</pre>\n<h2>Spans</h2>\n");
    strbuf_addstr(out, spans);
    strbuf_addstr(out, "<h2>Pareto front</h2>\n");
    strbuf_addstr(out, front);
    add_tables(out, r);
    strbuf_addstr(out, "</html>\n");
}

/* An SVG file inside of a page has no XML declaration. */
static const char *skip_declaration(const char *svg)
{
    const char *at = strstr(svg, "<svg");

    return at ? at : svg;
}

int report_write(const struct report *r, struct err *err)
{
    struct strbuf text = STRBUF_INIT, front = STRBUF_INIT, spans = STRBUF_INIT;
    int rc;

    add_pareto_csv(&text, r);
    rc = put(r, "pareto.csv", &text, err);
    if (rc == 0) {
        strbuf_init(&text);
        add_plans_csv(&text, r);
        rc = put(r, "plans.csv", &text, err);
    }
    if (rc == 0) {
        strbuf_init(&text);
        add_front(&front, r);
        rc = add_spans(&spans, r, err);
    }
    if (rc == 0) {
        add_page(&text, r, front.buf, skip_declaration(spans.buf));
        rc = put(r, "index.html", &text, err);
    }
    if (rc == 0)
        rc = put(r, "front.svg", &front, err);
    if (rc == 0)
        rc = put(r, "spans.svg", &spans, err);
    strbuf_release(&text);
    strbuf_release(&front);
    strbuf_release(&spans);
    return rc;
}
