/*
 * stop_match - finds stop strings in text that arrives in pieces. See stop_match.h.
 */
#include "engine/stop_match.h"

#include "base/arena.h"
#include "base/check.h"
#include "base/err.h"

#include <string.h>

struct stop_pattern {
    const char *text;
    size_t len, state; /* state: bytes matched so far, less than len */
    size_t *border;    /* [len + 1] longest proper border of each prefix */
};

int stop_match_init(struct stop_match *m, struct arena *arena, const char *const *strings,
                    int n_strings, struct err *err)
{
    *m = (struct stop_match){.n_patterns = n_strings};
    m->patterns = arena_array(arena, (size_t)n_strings, sizeof(*m->patterns));
    if (!m->patterns)
        return err_set(err, ERR_NO_ROOM, "stop strings: the request's memory is full");
    for (int i = 0; i < n_strings; i++) {
        struct stop_pattern *p = &m->patterns[i];
        size_t k = 0;

        p->len = strlen(strings[i]);
        CHECK(p->len > 0);
        p->text = arena_strndup(arena, strings[i], p->len);
        p->border = arena_array(arena, p->len + 1, sizeof(*p->border));
        if (!p->text || !p->border)
            return err_set(err, ERR_NO_ROOM, "stop strings: the request's memory is full");
        for (size_t at = 1; at < p->len; at++) {
            while (k && p->text[at] != p->text[k])
                k = p->border[k];
            k += p->text[at] == p->text[k];
            p->border[at + 1] = k;
        }
    }
    return 0;
}

bool stop_match_feed(struct stop_match *m, const char *text, size_t len, bool honour,
                     struct stop_hit *hit)
{
    for (size_t at = 0; at < len; at++) {
        int found = -1;

        for (int i = 0; i < m->n_patterns; i++) {
            struct stop_pattern *p = &m->patterns[i];

            while (p->state && p->text[p->state] != text[at])
                p->state = p->border[p->state];
            p->state += p->text[p->state] == text[at];
            if (p->state < p->len)
                continue;
            p->state = p->border[p->len];
            if (found < 0 || p->len > m->patterns[found].len)
                found = i;
        }
        if (found >= 0 && honour) {
            *hit = (struct stop_hit){.which = found, .end = at + 1, .len = m->patterns[found].len};
            return true;
        }
    }
    return false;
}

size_t stop_match_held(const struct stop_match *m)
{
    size_t held = 0;

    for (int i = 0; i < m->n_patterns; i++)
        held = m->patterns[i].state > held ? m->patterns[i].state : held;
    return held;
}

const char *stop_match_string(const struct stop_match *m, int which)
{
    CHECK(which >= 0 && which < m->n_patterns);
    return m->patterns[which].text;
}
