/*
 * calibration - the sequences that a search measures on. See calibration.h.
 */
#include "engine/plan/search/calibration.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/file_map.h"
#include "base/file_write.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine.h"
#include "engine/plan/search/calibration_input.h"
#include "engine/plan/search/calibration_prompt.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FILE_BYTES ((size_t)4 << 30)
#define WAIT_NS        INT64_C(200000000)
#define MAX_FLIGHT     16 /* answers at a time */

/* ---- files ---- */

static void add_ids(struct strbuf *out, const int32_t *ids, int n)
{
    strbuf_addch(out, '[');
    for (int i = 0; i < n; i++)
        strbuf_addf(out, i ? ",%d" : "%d", ids[i]);
    strbuf_addch(out, ']');
}

static int save(const struct calibration *c, const char *path, const char *key, struct err *err)
{
    struct strbuf out = STRBUF_INIT;
    int rc;

    strbuf_addf(&out, "{\"key\":");
    strbuf_add_json(&out, key, strlen(key));
    strbuf_addf(&out, ",\"items\":%d}\n", c->n_items);
    for (int i = 0; i < c->n_items; i++) {
        const struct calibration_item *item = &c->items[i];

        strbuf_addf(&out, "{\"length\":%d,\"source\":\"%s\",\"prompt\":", item->length,
                    item->source);
        add_ids(&out, item->ids, item->n_prompt);
        strbuf_addstr(&out, ",\"answer\":");
        add_ids(&out, item->ids + item->n_prompt, item->n_answer);
        strbuf_addstr(&out, "}\n");
    }
    rc = out.failed ? err_set(err, ERR_NO_ROOM, "%s: out of memory", path)
                    : file_write_whole(path, out.buf, out.len, err);
    strbuf_release(&out);
    return rc;
}

static bool read_ids(const json_t *list, int32_t *out, int n)
{
    for (int i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);

        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return false;
        out[i] = (int32_t)json_integer_value(v);
    }
    return true;
}

static bool read_item(struct calibration_item *item, const json_t *root)
{
    const json_t *prompt = json_object_get(root, "prompt"), *answer;

    answer = json_object_get(root, "answer");
    item->length = (int)json_integer_value(json_object_get(root, "length"));
    item->n_prompt = (int)json_array_size(prompt);
    item->n_answer = (int)json_array_size(answer);
    snprintf(item->source, sizeof(item->source), "%s",
             json_string_value(json_object_get(root, "source"))
                 ? json_string_value(json_object_get(root, "source"))
                 : "");
    item->ids = calloc((size_t)(item->n_prompt + item->n_answer) + 1, sizeof(*item->ids));
    return item->ids && item->n_prompt > 0 && read_ids(prompt, item->ids, item->n_prompt) &&
           read_ids(answer, item->ids + item->n_prompt, item->n_answer);
}

/* Lines of a file whose first one has the key; fn gets the others and may end it with false. */
static bool each_line(const char *path, const char *key, bool (*fn)(void *arg, const json_t *line),
                      void *arg)
{
    struct err ignored = {0};
    char *data = NULL, *at;
    size_t len;
    bool ok = false;

    if (file_read_text(&data, &len, path, MAX_FILE_BYTES, &ignored) < 0)
        return false;
    at = data;
    for (int i = 0; *at; i++) {
        char *nl = strchr(at, '\n');
        json_t *root = nl ? json_loadb(at, (size_t)(nl - at), 0, NULL) : NULL;
        const char *found = json_string_value(json_object_get(root, "key"));

        ok = root && (i == 0 ? found && !strcmp(found, key) : fn(arg, root));
        json_decref(root);
        if (!ok)
            break;
        at = nl + 1;
    }
    free(data);
    return ok;
}

static bool load_line(void *arg, const json_t *line)
{
    struct calibration *c = arg;
    struct calibration_item *grown =
        realloc(c->items, sizeof(*c->items) * (size_t)(c->n_items + 1));

    if (!grown)
        return false;
    c->items = grown;
    memset(&c->items[c->n_items], 0, sizeof(*c->items));
    return read_item(&c->items[c->n_items++], line);
}

/* ---- prompts ---- */

struct making {
    const struct search_options *o;
    struct engine *e;
    struct calibration *c;
    struct strbuf *given; /* [n_items] known answers */
    char part[4200];
    FILE *part_file;
    int n_done, next, n_flight;
    int64_t t0;
    struct err *err;
    int rc;
};

static int count_items(const struct search_options *o)
{
    return o->n_lengths * o->items + (o->validate_best > 0 ? o->validate_items : 0);
}

/* Items of one length; a user's file may have fewer. */
static int add_length(struct making *m, const struct calibration_input *in, int length, int n,
                      int first_text)
{
    int next_text = first_text, n_made = 0;

    while (n_made < n && !search_is_stopped()) {
        struct calibration_item *item = &m->c->items[m->c->n_items];

        if (!calibration_prompt_make(item, &m->given[m->c->n_items], m->e, m->o, in, &next_text,
                                     length, n_made, m->err))
            break;
        m->c->n_items++;
        n_made++;
    }
    if (m->err->code < 0)
        return m->err->code;
    if (search_is_stopped())
        return err_set(m->err, ERR_CLOSED, "interrupted");
    if (n_made == 0)
        return err_set(m->err, ERR_INVALID,
                       "%s: no text fills %d tokens: want more or longer texts, or shorter lengths",
                       m->o->input, length);
    if (n_made < n)
        fprintf(stderr, "calibrate: %s fills %d tokens %d times of the %d asked for\n", m->o->input,
                length, n_made, n);
    return 0;
}

static int make_prompts(struct making *m)
{
    const struct search_options *o = m->o;
    struct calibration_input in = {0};
    int rc = 0;

    if (o->source == SOURCE_FILE)
        rc = calibration_input_load(&in, o->input, m->err);
    for (int i = 0; i < o->n_lengths && rc == 0; i++)
        rc = add_length(m, o->source == SOURCE_FILE ? &in : NULL, o->length[i], o->items, 0);
    if (rc == 0 && o->validate_best > 0)
        rc = add_length(m, o->source == SOURCE_FILE ? &in : NULL, o->validate_length,
                        o->validate_items, 0);
    calibration_input_release(&in);
    return rc;
}

/* ---- answers ---- */

static int set_answer(struct calibration_item *item, const int32_t *ids, int n, struct err *err)
{
    int32_t *grown = realloc(item->ids, sizeof(*grown) * (size_t)(item->n_prompt + n + 1));

    if (!grown)
        return err_set(err, ERR_NO_ROOM, "calibrate: out of memory");
    item->ids = grown;
    memcpy(item->ids + item->n_prompt, ids, sizeof(*ids) * (size_t)n);
    item->n_answer = n;
    return 0;
}

static bool load_part(void *arg, const json_t *line)
{
    struct making *m = arg;
    int i = (int)json_integer_value(json_object_get(line, "i"));
    const json_t *answer = json_object_get(line, "answer");
    int n = (int)json_array_size(answer);
    int32_t *ids = calloc((size_t)n + 1, sizeof(*ids));
    bool ok = ids && i >= 0 && i < m->c->n_items && read_ids(answer, ids, n);

    if (ok && m->c->items[i].n_answer == 0) {
        ok = set_answer(&m->c->items[i], ids, n, m->err) == 0;
        m->n_done += n > 0;
    }
    free(ids);
    return ok;
}

static void keep_part(struct making *m, int i)
{
    const struct calibration_item *item = &m->c->items[i];
    struct strbuf line = STRBUF_INIT;

    strbuf_addf(&line, "{\"i\":%d,\"answer\":", i);
    add_ids(&line, item->ids + item->n_prompt, item->n_answer);
    strbuf_addstr(&line, "}\n");
    if (fwrite(line.buf, 1, line.len, m->part_file) != line.len || fflush(m->part_file) != 0)
        m->rc = err_set_errno(m->err, ERR_IO, errno, "%s: cannot write", m->part);
    strbuf_release(&line);
}

struct flight {
    int item, n_ids;
    int32_t *ids; /* [answer_tokens + 1] */
};

static void on_event(void *arg, const struct engine_event *ev)
{
    struct flight *f = ev->user;
    struct making *m = arg;

    for (int i = 0; i < ev->n_tokens && f->n_ids < m->o->answer_tokens; i++)
        f->ids[f->n_ids++] = ev->tokens[i].id;
    if (ev->finish == FINISH_NONE)
        return;
    m->n_flight--;
    if (ev->finish == FINISH_STOP && ev->stop_token >= 0 &&
        (f->n_ids == 0 || f->ids[f->n_ids - 1] != ev->stop_token))
        f->ids[f->n_ids++] = ev->stop_token;
    if (ev->finish == FINISH_ERROR)
        m->rc = err_set(m->err, ERR_DEVICE, "calibrate: %s", ev->error ? ev->error : "failed");
    if (ev->finish == FINISH_STOP || ev->finish == FINISH_LENGTH) {
        if (m->rc == 0)
            m->rc = set_answer(&m->c->items[f->item], f->ids, f->n_ids, m->err);
        if (m->rc == 0)
            keep_part(m, f->item);
        m->n_done++;
        search_progress("calibrate", m->n_done, m->c->n_items, (double)(clock_ns() - m->t0) * 1e-9,
                        "answers");
    }
    free(f->ids);
    free(f);
}

static int submit(struct making *m, int i)
{
    const struct calibration_item *item = &m->c->items[i];
    struct flight *f = calloc(1, sizeof(*f));
    struct engine_request req = {.prompt = item->ids, .n_prompt = item->n_prompt, .user = f};
    uint64_t id;
    int rc;

    if (f)
        f->ids = calloc((size_t)m->o->answer_tokens + 1, sizeof(*f->ids));
    if (!f || !f->ids) {
        free(f);
        return err_set(m->err, ERR_NO_ROOM, "calibrate: out of memory");
    }
    f->item = i;
    sampling_params_init(&req.sampling);
    req.sampling.temperature = 0;
    req.sampling.max_tokens = m->o->answer_tokens;
    req.sampling.n_logprobs = req.sampling.n_prompt_logprobs = -1;
    rc = engine_submit(m->e, &req, &id, m->err);
    if (rc < 0) {
        free(f->ids);
        free(f);
        err_prefix(m->err, "calibrate, an item of %d tokens", item->length);
        return rc;
    }
    m->n_flight++;
    return 0;
}

/* The dense model answers every prompt that has no answer yet. */
static int answer_all(struct making *m)
{
    int most = m->o->config->max_batch < MAX_FLIGHT ? m->o->config->max_batch : MAX_FLIGHT;

    while (m->rc == 0 && (m->next < m->c->n_items || m->n_flight > 0) && !search_is_stopped()) {
        while (m->next < m->c->n_items && m->n_flight < most && m->rc == 0) {
            if (m->c->items[m->next].n_answer == 0)
                m->rc = submit(m, m->next);
            m->next++;
        }
        if (m->n_flight > 0) {
            engine_wait(m->e, WAIT_NS);
            engine_poll(m->e, on_event, m);
        }
    }
    search_progress_end();
    if (m->rc == 0 && search_is_stopped())
        m->rc = err_set(m->err, ERR_CLOSED, "interrupted; %d answers of %d are kept", m->n_done,
                        m->c->n_items);
    return m->rc;
}

static int take_given(struct making *m)
{
    for (int i = 0; i < m->c->n_items && m->rc == 0; i++) {
        int32_t *ids = NULL;
        int n = 0;

        if (m->given[i].len == 0)
            return err_set(m->err, ERR_INVALID,
                           "%s: no answer is given, and the model was told not to write it",
                           m->c->items[i].source);
        m->rc =
            engine_tokenize(m->e, m->given[i].buf, m->given[i].len, false, false, &ids, &n, m->err);
        n = n < m->o->answer_tokens ? n : m->o->answer_tokens;
        if (m->rc == 0)
            m->rc = set_answer(&m->c->items[i], ids, n, m->err);
        free(ids);
    }
    return m->rc;
}

static void drop_empty(struct calibration *c)
{
    int n = 0;

    for (int i = 0; i < c->n_items; i++) {
        if (c->items[i].n_answer > 0) {
            c->items[n++] = c->items[i];
        } else {
            free(c->items[i].ids);
            c->n_short++;
        }
    }
    c->n_items = n;
}

static int open_part(struct making *m, const char *key)
{
    struct strbuf head = STRBUF_INIT;
    bool had = each_line(m->part, key, load_part, m);

    if (!had) { /* no such file, another key, or a line that broke off */
        for (int i = 0; i < m->c->n_items; i++)
            m->c->items[i].n_answer = 0;
        m->n_done = 0;
    }
    m->part_file = fopen(m->part, had ? "a" : "w");
    if (!m->part_file)
        return err_set_errno(m->err, ERR_IO, errno, "%s: cannot create", m->part);
    strbuf_addstr(&head, "{\"key\":");
    strbuf_add_json(&head, key, strlen(key));
    strbuf_addstr(&head, "}\n");
    if (!had && (fwrite(head.buf, 1, head.len, m->part_file) != head.len || fflush(m->part_file)))
        m->rc = err_set_errno(m->err, ERR_IO, errno, "%s: cannot write", m->part);
    strbuf_release(&head);
    return m->rc;
}

static int make(struct making *m, const char *key)
{
    struct config config = *m->o->config;
    int n = count_items(m->o);
    int rc;

    config.plan = (char *)(uintptr_t) "dense"; /* borrowed; engine_open() keeps nothing of it */
    m->t0 = clock_ns();
    m->c->items = calloc((size_t)n, sizeof(*m->c->items));
    m->given = calloc((size_t)n, sizeof(*m->given));
    if (!m->c->items || !m->given)
        return err_set(m->err, ERR_NO_ROOM, "calibrate: out of memory");
    for (int i = 0; i < n; i++)
        strbuf_init(&m->given[i]);
    rc = engine_open(&m->e, &config, NULL, m->err);
    if (rc == 0)
        rc = make_prompts(m);
    if (rc == 0 && m->o->answers == ANSWERS_GIVEN)
        return take_given(m);
    if (rc == 0)
        rc = open_part(m, key);
    return rc == 0 ? answer_all(m) : rc;
}

int calibration_get(struct calibration *out, const struct search_options *o, struct err *err)
{
    struct making m = {.o = o, .c = out, .err = err};
    struct strbuf key = STRBUF_INIT;
    char path[4200];
    int rc = 0;

    memset(out, 0, sizeof(*out));
    search_key_items(&key, o);
    search_path(path, sizeof(path), o, "calibration.jsonl");
    search_path(m.part, sizeof(m.part), o, "calibration.part");
    if (each_line(path, key.buf, load_line, out) && out->n_items > 0) {
        out->was_kept = true;
        goto out;
    }
    calibration_release(out);
    rc = make(&m, key.buf);
    if (m.e) {
        engine_close(m.e);
        m.e = NULL;
    }
    if (m.part_file && fclose(m.part_file) != 0 && rc == 0)
        rc = err_set_errno(err, ERR_IO, errno, "%s: cannot write", m.part);
    if (rc == 0)
        drop_empty(out);
    if (rc == 0)
        rc = save(out, path, key.buf, err);
    if (rc == 0)
        unlink(m.part);
    for (int i = 0; m.given && i < count_items(o); i++)
        strbuf_release(&m.given[i]);
    free(m.given);
out:
    strbuf_release(&key);
    if (rc < 0)
        calibration_release(out);
    return rc;
}

void calibration_release(struct calibration *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_items; i++) {
        free(c->items[i].ids);
        free(c->items[i].bears);
    }
    free(c->items);
    memset(c, 0, sizeof(*c));
}
