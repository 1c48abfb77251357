/*
 * grammar - compiled constraints and their cache. See grammar.h.
 */
#include "engine/grammar/grammar.h"

#include "base/clock.h"
#include "engine/grammar/grammar_ebnf.h"
#include "engine/grammar/grammar_json.h"
#include "engine/grammar/grammar_regex.h"
#include "engine/grammar/grammar_schema.h"

#include <stdlib.h>
#include <string.h>

#define MASK_BYTES     (16u << 20) /* of one grammar: masks beyond it are found again */
#define MAX_TEXT_BYTES (1u << 20)

struct cache_entry {
    struct grammar *grammar; /* NULL: free */
    enum engine_grammar_kind kind;
    char *text;
    size_t len;
    uint64_t last_use;
};

struct grammar_cache {
    struct grammar_cache_params params;
    pthread_mutex_t mu; /* guards what follows */
    struct grammar_vocab *vocab;
    struct grammar_scratch *scratch;
    struct cache_entry *entries; /* [params.n_max] */
    uint64_t n_uses;
};

int grammar_cache_new(struct grammar_cache **out, const struct grammar_cache_params *params,
                      struct err *err)
{
    struct grammar_cache *c = calloc(1, sizeof(*c));

    if (c)
        c->entries = calloc((size_t)params->n_max, sizeof(*c->entries));
    if (!c || !c->entries) {
        free(c);
        return err_set(err, ERR_NO_ROOM, "no memory for %d grammars", params->n_max);
    }
    c->params = *params;
    pthread_mutex_init(&c->mu, NULL);
    *out = c;
    return 0;
}

static void entry_release(struct cache_entry *e)
{
    grammar_unref(e->grammar);
    free(e->text);
    *e = (struct cache_entry){0};
}

void grammar_cache_free(struct grammar_cache *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->params.n_max; i++)
        entry_release(&c->entries[i]);
    free(c->entries);
    grammar_scratch_free(c->scratch);
    grammar_vocab_free(c->vocab);
    pthread_mutex_destroy(&c->mu);
    free(c);
}

struct grammar *grammar_ref(struct grammar *g)
{
    atomic_fetch_add(&g->n_refs, 1);
    return g;
}

void grammar_unref(struct grammar *g)
{
    if (!g || atomic_fetch_sub(&g->n_refs, 1) > 1)
        return;
    grammar_masks_release(&g->masks);
    grammar_dfa_release(&g->dfa);
    free(g);
}

/* ["yes","no"] */
static void read_choice(struct grammar_build *b, const json_t *list)
{
    const struct expr *e = expr_never(b);

    if (!json_is_array(list) || json_array_size(list) == 0)
        grammar_fail(b, ERR_INVALID, "choice must be an array of strings");
    for (size_t i = 0; i < json_array_size(list) && b->rc == 0; i++) {
        const json_t *s = json_array_get(list, i);

        if (!json_is_string(s) || json_string_length(s) == 0)
            grammar_fail(b, ERR_INVALID, "choice must hold strings that are not empty");
        else
            e = expr_alt(b, e, expr_text(b, json_string_value(s), json_string_length(s)));
    }
    b->root = grammar_rule_new(b, "choice", 6);
    grammar_rule_set(b, b->root, e);
}

static void read_regex(struct grammar_build *b, const char *text, size_t len)
{
    static const struct regex_options options = {.spell = expr_code_points};
    const struct expr *e = grammar_regex(b, text, len, &options);

    b->root = grammar_rule_new(b, "regex", 5);
    grammar_rule_set(b, b->root, e);
}

static void read_json(struct grammar_build *b, enum engine_grammar_kind kind, const json_t *json)
{
    struct grammar_json j;

    if (kind == ENGINE_GRAMMAR_CHOICE) {
        read_choice(b, json);
    } else if (kind == ENGINE_GRAMMAR_JSON_SCHEMA) {
        grammar_schema(b, json);
    } else {
        grammar_json_init(&j, b);
        b->root = grammar_rule_new(b, "json", 4);
        grammar_rule_set(b, b->root, grammar_json_object(&j));
    }
}

static int compile(struct grammar_cache *c, enum engine_grammar_kind kind, const char *text,
                   size_t len, struct grammar_dfa *dfa, struct err *err)
{
    struct grammar_budget budget = {.max_bytes = (size_t)c->params.max_bytes,
                                    .deadline_ns = clock_ns() + c->params.timeout_ns};
    bool is_text = kind == ENGINE_GRAMMAR_REGEX || kind == ENGINE_GRAMMAR_EBNF;
    json_error_t where;
    json_t *json = is_text || kind == ENGINE_GRAMMAR_JSON_OBJECT
                       ? NULL
                       : json_loadb(text, len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &where);
    struct grammar_build b;
    int rc;

    grammar_build_init(&b, &budget, err);
    if (len > MAX_TEXT_BYTES)
        grammar_fail(&b, ERR_LIMIT, "the grammar's text has %zu bytes; at most %u are taken", len,
                     MAX_TEXT_BYTES);
    else if (!is_text && !json && kind != ENGINE_GRAMMAR_JSON_OBJECT)
        grammar_fail(&b, ERR_INVALID, "not valid JSON: %s", where.text);
    else if (kind == ENGINE_GRAMMAR_REGEX)
        read_regex(&b, text, len);
    else if (kind == ENGINE_GRAMMAR_EBNF)
        grammar_ebnf(&b, text, len);
    else
        read_json(&b, kind, json);
    rc = grammar_dfa_init(dfa, &b);
    grammar_build_release(&b);
    json_decref(json);
    return rc;
}

/* The vocabulary's trie is made when the first grammar wants it. Called with the lock. */
static int want_vocab(struct grammar_cache *c, struct err *err)
{
    int rc = 0;

    if (!c->vocab)
        rc = grammar_vocab_new(&c->vocab, c->params.tokenizer, c->params.vocab_size,
                               c->params.eos_ids, c->params.n_eos, err);
    if (rc == 0 && !c->scratch)
        rc = grammar_scratch_new(&c->scratch, c->vocab, err);
    return rc;
}

static struct grammar *find(struct grammar_cache *c, enum engine_grammar_kind kind,
                            const char *text, size_t len)
{
    for (int i = 0; i < c->params.n_max; i++) {
        struct cache_entry *e = &c->entries[i];

        if (e->grammar && e->kind == kind && e->len == len && !memcmp(e->text, text, len)) {
            e->last_use = ++c->n_uses;
            return grammar_ref(e->grammar);
        }
    }
    return NULL;
}

/* Keeps g in the place that was not used for the longest time. */
static void keep(struct grammar_cache *c, struct grammar *g, enum engine_grammar_kind kind,
                 const char *text, size_t len)
{
    struct cache_entry *place = &c->entries[0];
    char *copy = malloc(len + 1);

    if (!copy)
        return; /* it is only not kept */
    for (int i = 1; i < c->params.n_max; i++) {
        if (c->entries[i].last_use < place->last_use)
            place = &c->entries[i];
    }
    entry_release(place);
    memcpy(copy, text, len);
    *place = (struct cache_entry){grammar_ref(g), kind, copy, len, ++c->n_uses};
}

int grammar_cache_get(struct grammar_cache *c, enum engine_grammar_kind kind, const char *text,
                      size_t len, struct grammar **out, struct err *err)
{
    struct grammar *g;
    int rc;

    pthread_mutex_lock(&c->mu);
    rc = want_vocab(c, err);
    g = rc == 0 ? find(c, kind, text, len) : NULL;
    pthread_mutex_unlock(&c->mu);
    if (rc < 0 || g) {
        *out = g;
        return rc;
    }
    g = calloc(1, sizeof(*g));
    if (!g)
        return err_set(err, ERR_NO_ROOM, "no memory for a grammar");
    atomic_init(&g->n_refs, 1);
    g->scratch = c->scratch;
    rc = compile(c, kind, text, len, &g->dfa, err);
    if (rc == 0)
        rc = grammar_masks_init(&g->masks, &g->dfa, c->vocab, MASK_BYTES, err);
    if (rc < 0) {
        grammar_unref(g);
        return rc;
    }
    pthread_mutex_lock(&c->mu);
    keep(c, g, kind, text, len);
    pthread_mutex_unlock(&c->mu);
    *out = g;
    return 0;
}
