/*
 * token_filter - which tokens a request may draw next. See token_filter.h.
 */
#include "engine/token_filter.h"

#include "base/arena.h"
#include "base/clock.h"
#include "engine/backend.h"
#include "engine/grammar/grammar.h"

#include <string.h>

static int no_room(struct err *err)
{
    return err_set(err, ERR_NO_ROOM, "no memory for the tokens that a request may draw");
}

static int copy_allowed(struct token_filter *f, struct arena *arena,
                        const struct sampling_params *p, struct err *err)
{
    uint32_t *mask;

    if (p->n_allowed == 0)
        return 0;
    mask = arena_array(arena, (size_t)SAMPLE_MASK_WORDS(f->vocab_size), sizeof(*mask));
    if (!mask)
        return no_room(err);
    memset(mask, 0, (size_t)SAMPLE_MASK_WORDS(f->vocab_size) * sizeof(*mask));
    for (int i = 0; i < p->n_allowed; i++) {
        int32_t id = p->allowed[i];

        if (id < 0 || id >= f->vocab_size)
            return err_set(err, ERR_INVALID, "allowed_token_ids[%d] is %d, must be in 0..%d", i,
                           (int)id, f->vocab_size - 1);
        mask[id / 32] |= UINT32_C(1) << (id % 32);
    }
    f->allowed = mask;
    return 0;
}

static int copy_words(struct token_filter *f, struct arena *arena, const struct sampling_params *p,
                      struct err *err)
{
    struct engine_word *words = arena_array(arena, (size_t)p->n_bad_words, sizeof(*words));

    if (!words)
        return no_room(err);
    for (int i = 0; i < p->n_bad_words; i++) {
        const struct engine_word *from = &p->bad_words[i];
        int32_t *ids = arena_array(arena, (size_t)from->n_ids, sizeof(*ids));

        if (!ids)
            return no_room(err);
        if (from->n_ids < 1)
            return err_set(err, ERR_INVALID, "bad_words[%d] has no tokens", i);
        for (int k = 0; k < from->n_ids; k++) {
            if (from->ids[k] < 0 || from->ids[k] >= f->vocab_size)
                return err_set(err, ERR_INVALID, "bad_words[%d] has token %d, must be in 0..%d", i,
                               (int)from->ids[k], f->vocab_size - 1);
            ids[k] = from->ids[k];
        }
        words[i] = (struct engine_word){.ids = ids, .n_ids = from->n_ids};
    }
    f->words = words;
    f->n_words = p->n_bad_words;
    return 0;
}

int token_filter_init(struct token_filter *f, struct arena *arena, const struct sampling_params *p,
                      int vocab_size, struct err *err)
{
    int rc;

    *f = (struct token_filter){.vocab_size = vocab_size};
    rc = copy_allowed(f, arena, p, err);
    if (rc == 0)
        rc = copy_words(f, arena, p, err);
    if (rc < 0 || !p->grammar)
        return rc;
    f->grammar = grammar_ref(p->grammar);
    return grammar_run_init(&f->run, &f->grammar->masks, err);
}

void token_filter_release(struct token_filter *f)
{
    if (f->grammar)
        grammar_run_release(&f->run);
    grammar_unref(f->grammar);
    *f = (struct token_filter){0};
}

/* Would one more token complete the word? */
static bool is_begun(const struct engine_word *w, const int32_t *generated, int n)
{
    int n_before = w->n_ids - 1;

    if (n_before == 0) /* generated may be NULL */
        return true;
    return n_before <= n &&
           !memcmp(generated + n - n_before, w->ids, (size_t)n_before * sizeof(*generated));
}

bool token_filter_fill(struct token_filter *f, const int32_t *generated, int n, uint32_t *mask)
{
    int n_words = SAMPLE_MASK_WORDS(f->vocab_size);
    uint32_t any = 0;

    if (f->allowed) {
        memcpy(mask, f->allowed, (size_t)n_words * sizeof(*mask));
    } else {
        memset(mask, 0xff, (size_t)n_words * sizeof(*mask));
        if (f->vocab_size % 32)
            mask[n_words - 1] = (UINT32_C(1) << (f->vocab_size % 32)) - 1;
    }
    for (int i = 0; i < f->n_words; i++) {
        int32_t last = f->words[i].ids[f->words[i].n_ids - 1];

        if (is_begun(&f->words[i], generated, n))
            mask[last / 32] &= ~(UINT32_C(1) << (last % 32));
    }
    if (f->grammar)
        grammar_run_mask(&f->run, f->grammar->scratch, mask);
    for (int i = 0; i < n_words; i++)
        any |= mask[i];
    return any != 0;
}

bool token_filter_take(struct token_filter *f, int32_t token)
{
    int64_t t0;

    if (!f->grammar)
        return false;
    t0 = clock_ns();
    grammar_run_take(&f->run, f->grammar->scratch, token);
    f->take_ns += clock_ns() - t0;
    return grammar_run_must_end(&f->run);
}
