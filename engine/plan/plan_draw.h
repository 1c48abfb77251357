/*
 * plan_draw - the map of a plan's spans: layers down, heads across, colour for what is kept.
 */
#ifndef PLAN_DRAW_H
#define PLAN_DRAW_H

#include "engine/plan/plan.h"

enum plan_colours { PLAN_COLOURS_NONE = 0, PLAN_COLOURS_256, PLAN_COLOURS_RGB };

/*
 * For terminals: a cell a query head, in tenths of n (`#` for all of it) and, where there are
 * colours, on the map's colour; the heads of a KV head stand together.
 */
void plan_draw_text(const struct plan *p, int n, enum plan_colours colours, struct strbuf *out);

/* A whole SVG file: the query heads, for GQA the KV heads' memory beside them, each layer's mean.
 */
void plan_draw_svg(const struct plan *p, const char *title, int n, struct strbuf *out);

#endif
