/*
 * jinja_method - the methods of strings, dictionaries and lists that templates call.
 *
 * The sandbox is immutable, so nothing that changes its object is here.
 */
#include "base/err.h"
#include "engine/tokenizer/jinja.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <string.h>

static const char *const string_methods[] = {
    "strip",        "lstrip",       "rstrip",  "upper",      "lower",   "title",
    "capitalize",   "split",        "rsplit",  "splitlines", "replace", "join",
    "startswith",   "endswith",     "find",    "rfind",      "index",   "count",
    "isdigit",      "isalpha",      "isalnum", "isspace",    "isupper", "islower",
    "removeprefix", "removesuffix", "format",  "zfill",      NULL};
static const char *const dict_methods[] = {"items", "keys", "values", "get", "copy", NULL};
static const char *const list_methods[] = {"index", "count", "copy", NULL};

bool jinja_has_method(struct jinja_value self, const char *name)
{
    const char *const *m = self.kind == JINJA_STRING                             ? string_methods
                           : self.kind == JINJA_DICT                             ? dict_methods
                           : self.kind == JINJA_LIST || self.kind == JINJA_TUPLE ? list_methods
                                                                                 : NULL;

    for (; m && *m; m++)
        if (strcmp(*m, name) == 0)
            return true;
    return false;
}

static bool in_set(const struct jinja_string *chars, const char *c, size_t len)
{
    int n_bytes;

    if (!chars)
        return unicode_is_space(utf8_get(c, &n_bytes)) || (*c >= 0x1c && *c <= 0x1f);
    return memmem(chars->text, chars->len, c, len) != NULL;
}

struct jinja_value jinja_trim(struct jinja_run *run, const struct jinja_string *s,
                              const struct jinja_string *chars, bool left, bool right)
{
    size_t start = 0, end = s->len;

    while (left && start < end) {
        size_t n = (size_t)utf8_len((unsigned char)s->text[start]);

        if (!in_set(chars, s->text + start, n))
            break;
        start += n;
    }
    while (right && end > start) {
        size_t at = end - 1;

        while (at > start && ((unsigned char)s->text[at] & 0xc0) == 0x80)
            at--;
        if (!in_set(chars, s->text + at, end - at))
            break;
        end = at;
    }
    return jinja_substring(run, s, start, end - start);
}

struct jinja_value jinja_replace(struct jinja_run *run, const struct jinja_string *s,
                                 const struct jinja_string *from, const struct jinja_string *to,
                                 int64_t max)
{
    struct jinja_builder b;
    size_t at = 0;

    jinja_build_init(&b, run);
    while (at <= s->len && max != 0 && run->rc == 0) {
        const char *hit =
            from->len ? memmem(s->text + at, s->len - at, from->text, from->len) : s->text + at;
        size_t n = hit ? (size_t)(hit - s->text) - at : 0;

        if (!hit)
            break;
        jinja_build_add(&b, s->text + at, n, s->client ? s->client + at : NULL);
        jinja_build_string(&b, to);
        at += n + from->len;
        max--;
        if (!from->len) { /* between all characters */
            n = at < s->len ? (size_t)utf8_len((unsigned char)s->text[at]) : 0;
            jinja_build_add(&b, s->text + at, n, s->client ? s->client + at : NULL);
            at += n ? n : 1;
        }
    }
    if (at < s->len)
        jinja_build_add(&b, s->text + at, s->len - at, s->client ? s->client + at : NULL);
    return jinja_build_done(&b);
}

static struct jinja_value wrong(struct jinja_run *run, const char *name)
{
    return jinja_fail(run, ERR_INVALID, "chat template: %s() with arguments of this kind", name);
}

/* s.split() at white space. */
static struct jinja_value split_space(struct jinja_run *run, const struct jinja_string *s,
                                      int64_t max)
{
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    size_t at = 0;

    while (run->rc == 0) {
        size_t start;

        while (at < s->len && in_set(NULL, s->text + at, 1))
            at += (size_t)utf8_len((unsigned char)s->text[at]);
        if (at >= s->len)
            break;
        start = at;
        if (max == 0) {
            struct jinja_value rest = jinja_substring(run, s, at, s->len - at);

            jinja_list_add(run, out.list,
                           run->rc ? rest : jinja_trim(run, rest.string, NULL, false, true));
            break;
        }
        while (at < s->len && !in_set(NULL, s->text + at, 1))
            at += (size_t)utf8_len((unsigned char)s->text[at]);
        jinja_list_add(run, out.list, jinja_substring(run, s, start, at - start));
        max--;
    }
    return out;
}

static struct jinja_value split_at(struct jinja_run *run, const struct jinja_string *s,
                                   const struct jinja_string *by, int64_t max)
{
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    size_t at = 0;
    const char *hit;

    while (run->rc == 0 && max != 0 &&
           (hit = memmem(s->text + at, s->len - at, by->text, by->len)) != NULL) {
        size_t n = (size_t)(hit - s->text) - at;

        jinja_list_add(run, out.list, jinja_substring(run, s, at, n));
        at += n + by->len;
        max--;
    }
    jinja_list_add(run, out.list, jinja_substring(run, s, at, s->len - at));
    return out;
}

/* s.rsplit(by, max): from the right, max pieces at most; reversed at the end. */
static struct jinja_value rsplit_at(struct jinja_run *run, const struct jinja_string *s,
                                    const struct jinja_string *by, int64_t max)
{
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    size_t end = s->len, at = s->len;

    while (run->rc == 0 && max != 0 && at >= by->len) {
        at -= by->len;
        if (memcmp(s->text + at, by->text, by->len) == 0) {
            jinja_list_add(run, out.list,
                           jinja_substring(run, s, at + by->len, end - at - by->len));
            end = at;
            max--;
        } else {
            at += by->len - 1;
        }
    }
    jinja_list_add(run, out.list, jinja_substring(run, s, 0, end));
    for (size_t i = 0; run->rc == 0 && i < out.list->n / 2; i++) {
        struct jinja_value swap = out.list->items[i];

        out.list->items[i] = out.list->items[out.list->n - 1 - i];
        out.list->items[out.list->n - 1 - i] = swap;
    }
    return out;
}

static struct jinja_value split(struct jinja_run *run, const struct jinja_string *s,
                                const char *name, const struct jinja_call_args *args)
{
    struct jinja_value by = jinja_arg(args, 0, "sep"), max = jinja_arg(args, 1, "maxsplit");
    int64_t n = max.kind == JINJA_INT ? max.number : -1;

    if (by.kind == JINJA_STRING && by.string->len)
        return name[0] == 'r' ? rsplit_at(run, s, by.string, n) : split_at(run, s, by.string, n);
    if (by.kind == JINJA_STRING || (name[0] == 'r' && n >= 0))
        return wrong(run, name);
    return split_space(run, s, n);
}

static struct jinja_value splitlines(struct jinja_run *run, const struct jinja_string *s,
                                     bool keep_ends)
{
    struct jinja_value out = jinja_list_new(run, JINJA_LIST);
    size_t start = 0;

    for (size_t i = 0; i < s->len && run->rc == 0; i++) {
        size_t n = 1;

        if (s->text[i] != '\n' && s->text[i] != '\r')
            continue;
        if (s->text[i] == '\r' && i + 1 < s->len && s->text[i + 1] == '\n')
            n = 2;
        jinja_list_add(run, out.list,
                       jinja_substring(run, s, start, i - start + (keep_ends ? n : 0)));
        i += n - 1;
        start = i + 1;
    }
    if (start < s->len)
        jinja_list_add(run, out.list, jinja_substring(run, s, start, s->len - start));
    return out;
}

/* upper, lower, title, capitalize: marks follow their characters. */
static struct jinja_value recase(struct jinja_run *run, const struct jinja_string *s, char how)
{
    struct jinja_builder b;
    bool in_word = false;
    int n_bytes;

    jinja_build_init(&b, run);
    for (size_t at = 0; at < s->len && run->rc == 0; at += (size_t)n_bytes) {
        uint32_t cp = utf8_get(s->text + at, &n_bytes), cps[3];
        bool up = how == 'u' || (how == 't' && !in_word) || (how == 'c' && at == 0);
        int n = up ? unicode_upper(cp, cps) : unicode_lower(cp, cps);
        int cat = unicode_category(cp);

        in_word = cat >= 1 && cat <= 5;
        for (int i = 0; i < n; i++) {
            char c[4];
            unsigned char client[4] = {1, 1, 1, 1};

            jinja_build_add(&b, c, (size_t)utf8_put(c, cps[i]),
                            s->client && s->client[at] ? client : NULL);
        }
    }
    return jinja_build_done(&b);
}

static bool has_affix(const struct jinja_string *s, struct jinja_value affix, bool at_end)
{
    if (affix.kind == JINJA_TUPLE) {
        for (size_t i = 0; i < affix.list->n; i++)
            if (affix.list->items[i].kind == JINJA_STRING &&
                has_affix(s, affix.list->items[i], at_end))
                return true;
        return false;
    }
    if (affix.kind != JINJA_STRING || affix.string->len > s->len)
        return false;
    return memcmp(s->text + (at_end ? s->len - affix.string->len : 0), affix.string->text,
                  affix.string->len) == 0;
}

static struct jinja_value find(struct jinja_run *run, const struct jinja_string *s,
                               const struct jinja_string *what, const char *name)
{
    const char *hit = NULL;
    int64_t count = 0;

    if (!strcmp(name, "count")) {
        if (!what->len)
            return jinja_int((int64_t)utf8_count(s->text, s->len) + 1);
        for (hit = s->text;
             (hit = memmem(hit, s->len - (size_t)(hit - s->text), what->text, what->len)) != NULL;
             hit += what->len)
            count++;
        return jinja_int(count);
    }
    if (!strcmp(name, "rfind")) {
        for (size_t at = s->len + 1; at-- > 0 && !hit;)
            if (at + what->len <= s->len && memcmp(s->text + at, what->text, what->len) == 0)
                hit = s->text + at;
    } else {
        hit = memmem(s->text, s->len, what->text, what->len);
    }
    if (!hit && !strcmp(name, "index"))
        return jinja_fail(run, ERR_INVALID, "chat template: index() finds nothing");
    return jinja_int(hit ? (int64_t)utf8_count(s->text, (size_t)(hit - s->text)) : -1);
}

static bool all_are(const struct jinja_string *s, const char *what)
{
    bool any_cased = false;
    int n_bytes;

    for (size_t at = 0; at < s->len; at += (size_t)n_bytes) {
        uint32_t cp = utf8_get(s->text + at, &n_bytes), other[3];
        int cat = unicode_category(cp);
        bool letter = cat >= 1 && cat <= 5;
        bool upper = unicode_lower(cp, other) != 1 || other[0] != cp;
        bool lower = unicode_upper(cp, other) != 1 || other[0] != cp;

        if (!strcmp(what, "isdigit") && !unicode_is_numeric(cp))
            return false;
        if (!strcmp(what, "isalpha") && !letter)
            return false;
        if (!strcmp(what, "isalnum") && !letter && !unicode_is_numeric(cp))
            return false;
        if (!strcmp(what, "isspace") && !unicode_is_space(cp))
            return false;
        if ((!strcmp(what, "isupper") && lower) || (!strcmp(what, "islower") && upper))
            return false;
        any_cased = any_cased || lower || upper;
    }
    return s->len > 0 &&
           (strcmp(what, "isupper") == 0 || strcmp(what, "islower") == 0 ? any_cased : true);
}

static struct jinja_value join(struct jinja_run *run, const struct jinja_string *s,
                               struct jinja_value items)
{
    const struct jinja_list *list = jinja_iterate(run, items);
    struct jinja_builder b;

    jinja_build_init(&b, run);
    for (size_t i = 0; i < list->n && run->rc == 0; i++) {
        if (i)
            jinja_build_string(&b, s);
        if (list->items[i].kind != JINJA_STRING)
            return wrong(run, "join");
        jinja_build_string(&b, list->items[i].string);
    }
    return jinja_build_done(&b);
}

/* "{} {0} {name}" with plain fields only. */
static struct jinja_value format(struct jinja_run *run, const struct jinja_string *s,
                                 const struct jinja_call_args *args)
{
    struct jinja_builder b;
    size_t next = 0;

    jinja_build_init(&b, run);
    for (size_t i = 0; i < s->len && run->rc == 0; i++) {
        const char *close;
        char name[64];
        size_t n;
        struct jinja_value v;

        if ((s->text[i] != '{' && s->text[i] != '}') ||
            (i + 1 < s->len && s->text[i + 1] == s->text[i])) {
            jinja_build_add(&b, s->text + i, 1, s->client ? s->client + i : NULL);
            i += s->text[i] == '{' || s->text[i] == '}';
            continue;
        }
        close = memchr(s->text + i, '}', s->len - i);
        n = close ? (size_t)(close - s->text) - i - 1 : sizeof(name);
        if (n >= sizeof(name) || s->text[i] == '}')
            return wrong(run, "format");
        memcpy(name, s->text + i + 1, n);
        name[n] = '\0';
        if (n == 0)
            v = jinja_arg(args, next++, "");
        else if (strspn(name, "0123456789") == n && n < 4)
            v = jinja_arg(args, n == 1 ? (size_t)(name[0] - '0') : args->n_pos, "");
        else
            v = jinja_arg(args, args->n_pos, name);
        if (v.kind == JINJA_UNDEFINED)
            return wrong(run, "format");
        jinja_build_value(&b, v);
        i += n + 1;
    }
    return jinja_build_done(&b);
}

static struct jinja_value zfill(struct jinja_run *run, const struct jinja_string *s, int64_t width)
{
    struct jinja_builder b;
    size_t sign = s->len && (s->text[0] == '-' || s->text[0] == '+');

    jinja_build_init(&b, run);
    jinja_build_add(&b, s->text, sign, NULL);
    for (int64_t n = (int64_t)utf8_count(s->text, s->len); n < width && run->rc == 0; n++)
        jinja_build_str(&b, "0");
    jinja_build_add(&b, s->text + sign, s->len - sign, s->client ? s->client + sign : NULL);
    return jinja_build_done(&b);
}

static struct jinja_value string_method(struct jinja_run *run, const struct jinja_string *s,
                                        const char *name, const struct jinja_call_args *args)
{
    struct jinja_value a = jinja_arg(args, 0, "chars"), b = jinja_arg(args, 1, "new");
    bool text = a.kind == JINJA_STRING;

    if (!strcmp(name, "strip") || !strcmp(name, "lstrip") || !strcmp(name, "rstrip"))
        return jinja_trim(run, s, text ? a.string : NULL, name[0] != 'r', name[0] != 'l');
    if (!strcmp(name, "upper") || !strcmp(name, "lower") || !strcmp(name, "title") ||
        !strcmp(name, "capitalize"))
        return recase(run, s, name[0]);
    if (!strcmp(name, "split") || !strcmp(name, "rsplit"))
        return split(run, s, name, args);
    if (!strcmp(name, "splitlines"))
        return splitlines(run, s, jinja_is_true(jinja_arg(args, 0, "keepends")));
    if (name[0] == 'i' && name[1] == 's')
        return jinja_bool(all_are(s, name));
    if (!strcmp(name, "join"))
        return join(run, s, a);
    if (!strcmp(name, "format"))
        return format(run, s, args);
    if (!strcmp(name, "startswith") || !strcmp(name, "endswith")) {
        if (!text && a.kind != JINJA_TUPLE)
            return wrong(run, name);
        return jinja_bool(has_affix(s, a, name[0] == 'e'));
    }
    if (!strcmp(name, "zfill"))
        return a.kind == JINJA_INT ? zfill(run, s, a.number) : wrong(run, name);
    if (!text)
        return wrong(run, name);
    if (!strcmp(name, "removeprefix") || !strcmp(name, "removesuffix")) {
        bool at_end = name[6] == 's';
        size_t n = has_affix(s, a, at_end) ? a.string->len : 0;

        return jinja_substring(run, s, at_end ? 0 : n, s->len - n);
    }
    if (!strcmp(name, "replace")) {
        struct jinja_value max = jinja_arg(args, 2, "count");

        if (b.kind != JINJA_STRING)
            return wrong(run, name);
        return jinja_replace(run, s, a.string, b.string, max.kind == JINJA_INT ? max.number : -1);
    }
    return find(run, s, a.string, name);
}

static struct jinja_value dict_method(struct jinja_run *run, struct jinja_value self,
                                      const char *name, const struct jinja_call_args *args)
{
    const struct jinja_dict *d = self.dict;
    struct jinja_value out, key = jinja_arg(args, 0, "key"), other = jinja_arg(args, 1, "default");
    const struct jinja_value *v;

    if (!strcmp(name, "get")) {
        v = jinja_dict_get(run, d, key);
        return v ? *v : args->n_pos > 1 || other.kind != JINJA_UNDEFINED ? other : jinja_none();
    }
    if (!strcmp(name, "copy")) {
        out = jinja_dict_new(run);
        for (size_t i = 0; i < d->n; i++)
            jinja_dict_put(run, out.dict, d->pairs[i].key, d->pairs[i].value);
        return out;
    }
    out = jinja_list_new(run, JINJA_LIST);
    for (size_t i = 0; i < d->n && run->rc == 0; i++) {
        struct jinja_value pair;

        if (name[0] == 'k' || name[0] == 'v') {
            jinja_list_add(run, out.list, name[0] == 'k' ? d->pairs[i].key : d->pairs[i].value);
            continue;
        }
        pair = jinja_list_new(run, JINJA_TUPLE);
        jinja_list_add(run, pair.list, d->pairs[i].key);
        jinja_list_add(run, pair.list, d->pairs[i].value);
        jinja_list_add(run, out.list, pair);
    }
    return out;
}

static struct jinja_value list_method(struct jinja_run *run, struct jinja_value self,
                                      const char *name, const struct jinja_call_args *args)
{
    struct jinja_value what = jinja_arg(args, 0, "value"), out;
    int64_t count = 0;

    if (!strcmp(name, "copy")) {
        out = jinja_list_new(run, self.kind);
        for (size_t i = 0; i < self.list->n; i++)
            jinja_list_add(run, out.list, self.list->items[i]);
        return out;
    }
    for (size_t i = 0; i < self.list->n; i++) {
        if (!jinja_equal(run, self.list->items[i], what))
            continue;
        if (!strcmp(name, "index"))
            return jinja_int((int64_t)i);
        count++;
    }
    if (!strcmp(name, "index"))
        return jinja_fail(run, ERR_INVALID, "chat template: index() finds nothing");
    return jinja_int(count);
}

struct jinja_value jinja_method_call(struct jinja_run *run, struct jinja_value self,
                                     const char *name, const struct jinja_call_args *args)
{
    if (self.kind == JINJA_STRING)
        return string_method(run, self.string, name, args);
    if (self.kind == JINJA_DICT)
        return dict_method(run, self, name, args);
    return list_method(run, self, name, args);
}
