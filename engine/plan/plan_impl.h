/*
 * plan_impl - what the readers of plan.c's specs share. For engine/plan alone.
 */
#ifndef PLAN_IMPL_H
#define PLAN_IMPL_H

#include "engine/plan/plan.h"

#define PLAN_MAX_TOKENS     (1 << 28)   /* bound of alpha, SINK, RECENT: far above any context */
#define PLAN_MAX_FILE_BYTES (16u << 20) /* 80 layers of 64 heads take 180 KB at most */

/* Both fill the rules of a plan whose shape and name are set. */
int plan_read_file(struct plan *p, const char *path, enum plan_convention convention,
                   struct err *err);
int plan_read_duo(struct plan *p, const char *args, struct err *err);

/* "a" to a whole number in lo..hi that ends at *end; false when it is none. */
bool plan_parse_long(const char *text, const char **end, long lo, long hi, long *out);

#endif
