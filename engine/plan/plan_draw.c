/*
 * plan_draw - the map of a plan's spans. See plan_draw.h.
 *
 * The colours run from dark blue for little to pale yellow for all, in about equal steps of
 * lightness, so that they survive grey printing and most kinds of colour blindness.
 */
#include "engine/plan/plan_draw.h"

#include "base/strbuf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct rgb {
    int r, g, b;
};

static struct rgb colour_of(double share)
{
    static const struct rgb stops[] = {
        {23, 28, 66}, {44, 79, 134}, {47, 141, 154}, {116, 196, 142}, {242, 239, 169}};
    const int n = sizeof(stops) / sizeof(stops[0]) - 1;
    double at = fmin(fmax(share, 0), 1) * n;
    int i = at < n ? (int)at : n - 1;
    double f = at - i;

    return (struct rgb){(int)lround(stops[i].r + f * (stops[i + 1].r - stops[i].r)),
                        (int)lround(stops[i].g + f * (stops[i + 1].g - stops[i].g)),
                        (int)lround(stops[i].b + f * (stops[i + 1].b - stops[i].b))};
}

/* What is kept of n, at most all of it: totals count whole tiles. */
static double share_of(int64_t tokens, int n)
{
    return tokens < n ? (double)tokens / n : 1.0;
}

/* For terminals */

/* The nearest of a terminal's six levels of a colour: 0, 95, 135, ... 255. */
static int cube_level(int v)
{
    return v < 48 ? 0 : v < 115 ? 1 : (v - 35) / 40;
}

static void add_cell(double share, enum plan_colours colours, struct strbuf *out)
{
    char digit = share >= 1 ? '#' : (char)('0' + (int)(share * 10));
    struct rgb c = colour_of(share);
    const char *ink = share < 0.62 ? "97" : "30";

    if (colours == PLAN_COLOURS_RGB)
        strbuf_addf(out, "\033[%s;48;2;%d;%d;%dm%c", ink, c.r, c.g, c.b, digit);
    else if (colours == PLAN_COLOURS_256)
        strbuf_addf(out, "\033[%s;48;5;%dm%c", ink,
                    16 + 36 * cube_level(c.r) + 6 * cube_level(c.g) + cube_level(c.b), digit);
    else
        strbuf_addch(out, digit);
}

void plan_draw_text(const struct plan *p, int n, enum plan_colours colours, struct strbuf *out)
{
    const char *off = colours ? "\033[0m" : "";
    int n_group = p->shape.n_heads / p->shape.n_kv_heads;

    strbuf_addf(out, "  layer  %d query heads, tenths of %d tokens kept", p->shape.n_heads, n);
    strbuf_addf(out, n_group > 1 ? ", %d to a key-value head\n" : "\n", n_group);
    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        int64_t total = 0;

        strbuf_addf(out, "  %5d  ", layer);
        for (int head = 0; head < p->shape.n_heads; head++) {
            int64_t tokens = plan_head_tokens(p, layer, head, n);

            if (n_group > 1 && head && head % n_group == 0)
                strbuf_addf(out, "%s ", off);
            add_cell(share_of(tokens, n), colours, out);
        }
        for (int kv_head = 0; kv_head < p->shape.n_kv_heads; kv_head++)
            total += plan_kv_head_tokens(p, layer, kv_head, n);
        strbuf_addf(out, "%s %5.1f %%\n", off, 100.0 * total / n / p->shape.n_kv_heads);
    }
    strbuf_addf(out,
                "  At the right: what the layer takes of a dense cache. 0 is below a tenth, # is "
                "all.\n");
}

/* SVG */

#define CELL      14
#define TOP       96
#define LEFT      58
#define PANEL_GAP 44
#define BAR_W     110
#define INK       "#1f2933"
#define FAINT     "#6b7785"

static void add_escaped(struct strbuf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '<')
            strbuf_addstr(out, "&lt;");
        else if (*s == '&')
            strbuf_addstr(out, "&amp;");
        else
            strbuf_addch(out, *s);
    }
}

static void add_text(struct strbuf *out, double x, double y, int size, const char *fill,
                     const char *anchor, const char *text)
{
    strbuf_addf(out, "<text x=\"%g\" y=\"%g\" font-size=\"%d\" fill=\"%s\" text-anchor=\"%s\"%s>",
                x, y, size, fill, anchor, size > 14 ? " font-weight=\"bold\"" : "");
    add_escaped(out, text);
    strbuf_addstr(out, "</text>\n");
}

static void add_rect(struct strbuf *out, double x, double y, double w, double h, double share)
{
    struct rgb c = colour_of(share);

    strbuf_addf(out, "<rect x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" fill=\"#%02x%02x%02x\"", x,
                y, w, h, c.r, c.g, c.b);
}

/* At least as wide as its caption. */
static int panel_width(int n_cells)
{
    return n_cells * CELL > 108 ? n_cells * CELL : 108;
}

/* The last two parts of a path: plans lie in folders named after models. */
static const char *path_end(const char *path)
{
    const char *end = path + strlen(path);
    int n_slashes = 0;

    while (end > path && (end[-1] != '/' || ++n_slashes < 2))
        end--;
    return end;
}

/* One cell a head; of_kv: the KV heads, by the memory of its group. Returns the right edge. */
static int draw_panel(const struct plan *p, int x0, int n, bool of_kv, struct strbuf *out)
{
    int n_cells = of_kv ? p->shape.n_kv_heads : p->shape.n_heads;
    int n_group = p->shape.n_heads / p->shape.n_kv_heads;
    int every = n_cells <= 16 ? 4 : 8;
    char label[128];

    for (int i = 0; i < n_cells; i++) {
        snprintf(label, sizeof(label), "%d", i);
        if (i % every == 0)
            add_text(out, x0 + (i + .5) * CELL, TOP - 6, 10, FAINT, "middle", label);
    }
    snprintf(label, sizeof(label), of_kv ? "%d key-value heads" : "%d query heads", n_cells);
    add_text(out, x0, TOP - 22, 12, INK, "start", label);
    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        for (int i = 0; i < n_cells; i++) {
            int64_t tokens =
                of_kv ? plan_kv_head_tokens(p, layer, i, n) : plan_head_tokens(p, layer, i, n);
            /* A hair wider at a group's end: heads that share memory stand together. */
            bool ends_group = !of_kv && n_group > 1 && i % n_group == n_group - 1;

            add_rect(out, x0 + i * CELL, TOP + layer * CELL, CELL - (ends_group ? 2.5 : 0.75),
                     CELL - 0.75, share_of(tokens, n));
            strbuf_addf(out, "><title>layer %d, head %d: %lld tokens</title></rect>\n", layer, i,
                        (long long)tokens);
        }
    }
    return x0 + panel_width(n_cells);
}

/* Each layer's share of a dense cache, as bars. */
static void draw_bars(const struct plan *p, int x0, int n, struct strbuf *out)
{
    char label[64];

    add_text(out, x0, TOP - 22, 12, INK, "start", "share of a dense cache");
    for (int i = 0; i <= 2; i++) {
        snprintf(label, sizeof(label), "%d %%", 50 * i);
        add_text(out, x0 + i * BAR_W / 2.0, TOP - 6, 10, FAINT, "middle", label);
        strbuf_addf(out, "<path d=\"M%g %dV%d\" stroke=\"#cbd2d9\"/>\n", x0 + i * BAR_W / 2.0,
                    TOP - 2, TOP + p->shape.n_layers * CELL);
    }
    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        int64_t total = 0;
        double share;

        for (int kv_head = 0; kv_head < p->shape.n_kv_heads; kv_head++)
            total += plan_kv_head_tokens(p, layer, kv_head, n);
        share = (double)total / n / p->shape.n_kv_heads;
        strbuf_addf(out,
                    "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"#52606d\"><title>"
                    "layer %d: %.1f %%</title></rect>\n",
                    x0, TOP + layer * CELL + 2, BAR_W * fmin(share, 1.1), CELL - 5, layer,
                    100 * share);
    }
}

static void draw_legend(int x, int y, int n, struct strbuf *out)
{
    char label[64];

    for (int i = 0; i <= 100; i++) {
        add_rect(out, x + 2 * i, y, 2.3, 10, i / 100.0);
        strbuf_addstr(out, "/>\n");
    }
    for (int i = 0; i <= 4; i++) {
        snprintf(label, sizeof(label), "%d", (int)((int64_t)n * i / 4));
        add_text(out, x + 50.5 * i, y + 23, 10, FAINT, i == 0 ? "start" : "middle", label);
    }
    add_text(out, x + 224, y + 9, 11, FAINT, "start", "tokens kept");
}

void plan_draw_svg(const struct plan *p, const char *title, int n, struct strbuf *out)
{
    bool has_groups = p->shape.n_heads > p->shape.n_kv_heads;
    int height = TOP + p->shape.n_layers * CELL + 62;
    int width = LEFT + panel_width(p->shape.n_heads) + PANEL_GAP + BAR_W + 40 +
                (has_groups ? panel_width(p->shape.n_kv_heads) + PANEL_GAP : 0);
    char line[256];
    int x;

    width = width > 560 ? width : 560;
    strbuf_addf(out,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
                "height=\"%d\" font-family=\"Helvetica, Arial, sans-serif\">\n"
                "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
                width, height, width, height, width, height);
    snprintf(line, sizeof(line), "%.160s: what each head keeps of %d tokens", title, n);
    add_text(out, 14, 27, 16, INK, "start", line);
    snprintf(line, sizeof(line), "Plan %s. The key-value heads take %.1f %% of a dense cache.",
             path_end(p->name), 100 * plan_kv_density(p, n));
    add_text(out, 14, 46, 12, FAINT, "start", line);
    for (int layer = 0; layer < p->shape.n_layers; layer++) {
        snprintf(line, sizeof(line), layer ? "%d" : "layer %d", layer);
        if (layer % 4 == 0 || layer == p->shape.n_layers - 1)
            add_text(out, LEFT - 8, TOP + (layer + .5) * CELL + 3.5, 10, FAINT, "end", line);
    }
    x = draw_panel(p, LEFT, n, false, out) + PANEL_GAP;
    if (has_groups)
        x = draw_panel(p, x, n, true, out) + PANEL_GAP;
    draw_bars(p, x, n, out);
    draw_legend(LEFT, height - 42, n, out);
    strbuf_addstr(out, "</svg>\n");
}
