/*
 * stop_match - finds stop strings in text that arrives in pieces.
 *
 * One Knuth-Morris-Pratt automaton a string, so a byte costs a constant and a match may lie across
 * any number of pieces. Text that may be the beginning of a stop string is known at any time: it
 * must be held back. Everything lives in the arena given at init; one engine request owns it.
 */
#ifndef STOP_MATCH_H
#define STOP_MATCH_H

#include <stdbool.h>
#include <stddef.h>

struct arena;
struct err;
struct stop_pattern;

struct stop_match { /* fields are private */
    struct stop_pattern *patterns;
    int n_patterns;
};

struct stop_hit {
    int which;  /* index of the string */
    size_t end; /* bytes of the piece up to and with the match's last */
    size_t len; /* of the string: the match may begin before the piece */
};

/* Copies the strings, none of them empty. ERR_NO_ROOM when the arena is full. */
int stop_match_init(struct stop_match *m, struct arena *arena, const char *const *strings,
                    int n_strings, struct err *err);

/*
 * Reads a piece up to the first match that ends in it; of two that end together the longer wins.
 * With honour false matches are passed over. True when *hit is set.
 */
bool stop_match_feed(struct stop_match *m, const char *text, size_t len, bool honour,
                     struct stop_hit *hit);

/* Bytes at the end of all that was fed that some stop string begins with. */
size_t stop_match_held(const struct stop_match *m);

const char *stop_match_string(const struct stop_match *m, int which);

#endif
