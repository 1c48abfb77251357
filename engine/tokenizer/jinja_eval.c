/*
 * jinja_eval - runs a parsed template.
 *
 * Walks the tree; every node visited is a step, and steps, depth, memory and output are bounded,
 * so a template that loops for ever ends in an error. Names live in a chain of scopes: the
 * template's, a macro call's, one for each turn of a loop.
 */
#include "base/err.h"
#include "engine/tokenizer/jinja_node.h"
#include "engine/tokenizer/utf8.h"

#include <math.h>
#include <string.h>

struct jinja_scope {
    struct jinja_scope *outer;
    struct jinja_dict *names;
};

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static struct jinja_value eval(struct jinja_run *run, const struct jinja_node *n);
static enum flow run_body(struct jinja_run *run, const struct jinja_node *n);

static bool step(struct jinja_run *run, const struct jinja_node *n)
{
    if (run->rc < 0)
        return false;
    if (++run->n_steps > JINJA_MAX_STEPS)
        jinja_fail(run, ERR_LIMIT, "chat template, line %d: does not come to an end", n->line);
    else if (run->out->len > JINJA_MAX_OUTPUT)
        jinja_fail(run, ERR_LIMIT, "chat template: more than %u MB of text",
                   JINJA_MAX_OUTPUT >> 20);
    return run->rc == 0;
}

/*
 * Names.
 */

static void scope_open(struct jinja_run *run, struct jinja_scope *s)
{
    s->outer = run->scope;
    s->names = jinja_dict_new(run).dict;
    run->scope = s;
}

static void scope_close(struct jinja_run *run, struct jinja_scope *s)
{
    run->scope = s->outer;
}

static void bind(struct jinja_run *run, const char *name, struct jinja_value v)
{
    if (run->rc == 0)
        jinja_dict_put(run, run->scope->names, jinja_text(run, name, strlen(name)), v);
}

static struct jinja_value look_up(struct jinja_run *run, const char *name)
{
    for (const struct jinja_scope *s = run->scope; s; s = s->outer) {
        const struct jinja_value *v = s->names ? jinja_dict_find(s->names, name) : NULL;

        if (v)
            return *v;
    }
    if (jinja_is_function(name)) {
        struct jinja_method *m = jinja_alloc(run, 1, sizeof(*m));

        if (m)
            m->name = name;
        return (struct jinja_value){.kind = JINJA_FUNCTION, .method = m};
    }
    return jinja_undefined(name);
}

/* Gives target, a name, a tuple of targets or an attribute of a namespace, its value. */
static void assign(struct jinja_run *run, const struct jinja_node *target, struct jinja_value v)
{
    struct jinja_value object;
    const struct jinja_node *at;
    size_t i = 0;

    if (run->rc < 0)
        return;
    switch (target->kind) {
    case NODE_NAME:
        bind(run, target->text, v);
        break;
    case NODE_TUPLE:
        if (v.kind != JINJA_LIST && v.kind != JINJA_TUPLE) {
            jinja_fail(run, ERR_INVALID, "chat template, line %d: a %s is not several values",
                       target->line, jinja_kind_name(v));
            return;
        }
        for (at = target->list; at && i < v.list->n; at = at->next)
            assign(run, at->a, v.list->items[i++]);
        if (at || i < v.list->n)
            jinja_fail(run, ERR_INVALID, "chat template, line %d: %zu values for other targets",
                       target->line, v.list->n);
        break;
    case NODE_ATTR:
        object = eval(run, target->a);
        if (object.kind == JINJA_NAMESPACE)
            jinja_dict_put(run, object.dict, jinja_text(run, target->text, target->text_len), v);
        else
            jinja_fail(run, ERR_PARSE, "chat template, line %d: only a namespace can be changed",
                       target->line);
        break;
    default:
        jinja_fail(run, ERR_PARSE, "chat template, line %d: nothing to assign to", target->line);
        break;
    }
}

/*
 * Attributes and items.
 */

static struct jinja_value loop_attribute(struct jinja_run *run, struct jinja_loop *loop,
                                         const char *name)
{
    int64_t n = (int64_t)loop->items->n, at = (int64_t)loop->at;

    if (!strcmp(name, "index"))
        return jinja_int(at + 1);
    if (!strcmp(name, "index0"))
        return jinja_int(at);
    if (!strcmp(name, "revindex"))
        return jinja_int(n - at);
    if (!strcmp(name, "revindex0"))
        return jinja_int(n - at - 1);
    if (!strcmp(name, "first"))
        return jinja_bool(at == 0);
    if (!strcmp(name, "last"))
        return jinja_bool(at + 1 == n);
    if (!strcmp(name, "length"))
        return jinja_int(n);
    if (!strcmp(name, "depth"))
        return jinja_int(loop->depth);
    if (!strcmp(name, "depth0"))
        return jinja_int(loop->depth - 1);
    if (!strcmp(name, "previtem"))
        return at > 0 ? loop->items->items[at - 1] : jinja_undefined("loop.previtem");
    if (!strcmp(name, "nextitem"))
        return at + 1 < n ? loop->items->items[at + 1] : jinja_undefined("loop.nextitem");
    if (!strcmp(name, "cycle") || !strcmp(name, "changed")) {
        struct jinja_method *m = jinja_alloc(run, 1, sizeof(*m));

        if (m)
            *m = (struct jinja_method){{.kind = JINJA_LOOP, .loop = loop}, name};
        return (struct jinja_value){.kind = JINJA_METHOD, .method = m};
    }
    return jinja_undefined(name);
}

static struct jinja_value undefined_used(struct jinja_run *run, const struct jinja_node *n,
                                         struct jinja_value v)
{
    return jinja_fail(run, ERR_INVALID, "chat template, line %d: '%.64s' is undefined", n->line,
                      v.name ? v.name : "a value");
}

static struct jinja_value attribute(struct jinja_run *run, const struct jinja_node *n,
                                    struct jinja_value object)
{
    const struct jinja_value *v;

    if (object.kind == JINJA_UNDEFINED)
        return undefined_used(run, n, object);
    if (object.kind == JINJA_LOOP)
        return loop_attribute(run, object.loop, n->text);
    if (object.kind != JINJA_NAMESPACE && jinja_has_method(object, n->text)) {
        struct jinja_method *m = jinja_alloc(run, 1, sizeof(*m));

        if (m)
            *m = (struct jinja_method){object, n->text};
        return (struct jinja_value){.kind = JINJA_METHOD, .method = m};
    }
    if (object.kind == JINJA_DICT || object.kind == JINJA_NAMESPACE) {
        v = jinja_dict_find(object.dict, n->text);
        if (v)
            return *v;
    }
    return jinja_undefined(n->text);
}

/* Where character number at of a text begins; its length when it is behind the end. */
static size_t char_offset(const struct jinja_string *s, size_t at)
{
    size_t offset = 0;

    for (; at && offset < s->len; at--)
        offset += (size_t)utf8_len((unsigned char)s->text[offset]);
    return offset < s->len ? offset : s->len;
}

static struct jinja_value item(struct jinja_run *run, const struct jinja_node *n,
                               struct jinja_value object, struct jinja_value key)
{
    const struct jinja_value *v;
    int64_t at = key.kind == JINJA_INT ? key.number : key.kind == JINJA_BOOL ? key.truth : 0;
    int64_t len;

    if (object.kind == JINJA_UNDEFINED)
        return undefined_used(run, n, object);
    if (object.kind == JINJA_DICT) {
        v = jinja_dict_get(run, object.dict, key);
        return v ? *v : jinja_undefined(key.kind == JINJA_STRING ? key.string->text : NULL);
    }
    if ((object.kind != JINJA_STRING && object.kind != JINJA_LIST && object.kind != JINJA_TUPLE) ||
        (key.kind != JINJA_INT && key.kind != JINJA_BOOL))
        return jinja_undefined(NULL);
    len = (int64_t)jinja_length(run, object);
    at = at < 0 ? at + len : at;
    if (at < 0 || at >= len)
        return jinja_undefined(NULL);
    if (object.kind == JINJA_STRING) {
        size_t offset = char_offset(object.string, (size_t)at);

        return jinja_substring(run, object.string, offset,
                               (size_t)utf8_len((unsigned char)object.string->text[offset]));
    }
    return object.list->items[at];
}

/* A bound of a slice as Python clips it. */
static int64_t bound(struct jinja_run *run, const struct jinja_node *n, int64_t len,
                     int64_t step_by, bool is_start)
{
    struct jinja_value v = n ? eval(run, n) : jinja_none();
    int64_t low = step_by < 0 ? -1 : 0, high = step_by < 0 ? len - 1 : len;
    int64_t at;

    if (v.kind != JINJA_INT)
        return is_start == (step_by > 0) ? low : high;
    at = v.number < 0 ? v.number + len : v.number;
    return at < low ? low : at > high ? high : at;
}

static struct jinja_value slice(struct jinja_run *run, const struct jinja_node *n,
                                struct jinja_value object)
{
    struct jinja_value by = n->d ? eval(run, n->d) : jinja_none(), out;
    int64_t step_by = by.kind == JINJA_INT ? by.number : 1, len, from, to;
    struct jinja_list *items;

    if (run->rc < 0)
        return jinja_undefined(NULL);
    if (object.kind == JINJA_UNDEFINED)
        return undefined_used(run, n, object);
    if (step_by == 0 || object.kind == JINJA_DICT)
        return jinja_fail(run, ERR_INVALID, "chat template, line %d: a slice of this kind",
                          n->line);
    len = (int64_t)jinja_length(run, object);
    from = bound(run, n->b, len, step_by, true);
    to = bound(run, n->c, len, step_by, false);
    if (object.kind == JINJA_STRING && step_by == 1) {
        size_t start = char_offset(object.string, (size_t)from);
        size_t end = from < to ? char_offset(object.string, (size_t)to) : start;

        return jinja_substring(run, object.string, start, end - start);
    }
    items = jinja_iterate(run, object);
    out = jinja_list_new(run, object.kind == JINJA_TUPLE ? JINJA_TUPLE : JINJA_LIST);
    for (int64_t i = from; run->rc == 0 && (step_by > 0 ? i < to : i > to); i += step_by)
        jinja_list_add(run, out.list, items->items[i]);
    if (object.kind == JINJA_STRING && run->rc == 0) {
        struct jinja_builder b;

        jinja_build_init(&b, run);
        for (size_t i = 0; i < out.list->n; i++)
            jinja_build_string(&b, out.list->items[i].string);
        return jinja_build_done(&b);
    }
    return out;
}

/*
 * Calls.
 */

static struct jinja_call_args eval_args(struct jinja_run *run, const struct jinja_node *list)
{
    struct jinja_call_args args = {0};
    size_t n = 0;

    for (const struct jinja_node *at = list; at; at = at->next)
        n++;
    args.pos = jinja_alloc(run, n + 1, sizeof(*args.pos));
    for (const struct jinja_node *at = list; at && run->rc == 0; at = at->next) {
        struct jinja_value v = eval(run, at->a);

        if (at->kind != NODE_NAMED) {
            args.pos[args.n_pos++] = v;
            continue;
        }
        if (!args.named)
            args.named = jinja_dict_new(run).dict;
        jinja_dict_put(run, args.named, jinja_text(run, at->text, at->text_len), v);
    }
    return args;
}

static struct jinja_value call_macro(struct jinja_run *run, const struct jinja_node *macro,
                                     const struct jinja_call_args *args)
{
    struct jinja_builder out, *outer_out = run->out;
    struct jinja_scope scope, *outer = run->scope, *top = run->scope;
    const struct jinja_value *caller = args->named ? jinja_dict_find(args->named, "caller") : NULL;
    size_t i = 0;

    if (++run->depth > JINJA_MAX_DEPTH)
        return jinja_fail(run, ERR_LIMIT, "chat template, line %d: calls nested too deeply",
                          macro->line);
    while (top->outer)
        top = top->outer;
    run->scope = top; /* a macro sees the template's names, not its caller's */
    scope_open(run, &scope);
    if (caller)
        bind(run, "caller", *caller);
    for (const struct jinja_node *p = macro->list; p && run->rc == 0; p = p->next, i++) {
        struct jinja_value v = jinja_arg(args, i, p->text);

        if (v.kind == JINJA_UNDEFINED && !v.name && p->a)
            v = eval(run, p->a);
        else if (v.kind == JINJA_UNDEFINED && !v.name)
            v = jinja_undefined(p->text);
        bind(run, p->text, v);
    }
    jinja_build_init(&out, run);
    run->out = &out;
    run_body(run, macro->body);
    run->out = outer_out;
    run->scope = outer;
    run->depth--;
    return jinja_build_done(&out);
}

static struct jinja_value call_loop(struct jinja_run *run, struct jinja_method *m,
                                    const struct jinja_call_args *args)
{
    struct jinja_loop *loop = m->self.loop;
    struct jinja_value now;
    bool changed;

    if (!strcmp(m->name, "cycle"))
        return args->n_pos ? args->pos[loop->at % args->n_pos] : jinja_undefined("loop.cycle");
    now = jinja_list_new(run, JINJA_TUPLE);
    for (size_t i = 0; i < args->n_pos; i++)
        jinja_list_add(run, now.list, args->pos[i]);
    changed = !loop->has_changed || !jinja_equal(run, now, loop->last_changed);
    loop->last_changed = now;
    loop->has_changed = true;
    return jinja_bool(changed);
}

struct jinja_value jinja_call_value(struct jinja_run *run, struct jinja_value callee,
                                    const struct jinja_call_args *args)
{
    if (run->rc < 0)
        return jinja_undefined(NULL);
    switch (callee.kind) {
    case JINJA_MACRO:
        return call_macro(run, callee.macro, args);
    case JINJA_FUNCTION:
        return jinja_function(run, callee.method->name, args);
    case JINJA_METHOD:
        if (callee.method->self.kind == JINJA_LOOP)
            return call_loop(run, callee.method, args);
        return jinja_method_call(run, callee.method->self, callee.method->name, args);
    case JINJA_UNDEFINED:
        return jinja_fail(run, ERR_INVALID, "chat template: '%.64s' is undefined",
                          callee.name ? callee.name : "what is called");
    default:
        return jinja_fail(run, ERR_INVALID, "chat template: a %s cannot be called",
                          jinja_kind_name(callee));
    }
}

/*
 * Operators.
 */

static bool is_number(struct jinja_value v)
{
    return v.kind == JINJA_INT || v.kind == JINJA_FLOAT || v.kind == JINJA_BOOL;
}

static double real_of(struct jinja_value v)
{
    return v.kind == JINJA_FLOAT ? v.real : v.kind == JINJA_BOOL ? v.truth : (double)v.number;
}

static struct jinja_value float_arithmetic(struct jinja_run *run, enum jinja_op op, double a,
                                           double b)
{
    double m;

    switch (op) {
    case OP_ADD:
        return jinja_float(a + b);
    case OP_SUB:
        return jinja_float(a - b);
    case OP_MUL:
        return jinja_float(a * b);
    case OP_POW:
        return jinja_float(pow(a, b));
    default:
        break;
    }
    if (b == 0.0)
        return jinja_fail(run, ERR_INVALID, "chat template: division by zero");
    if (op == OP_DIV)
        return jinja_float(a / b);
    if (op == OP_FLOOR_DIV)
        return jinja_float(floor(a / b));
    m = fmod(a, b);
    return jinja_float(m != 0.0 && (m < 0.0) != (b < 0.0) ? m + b : m);
}

static struct jinja_value int_arithmetic(struct jinja_run *run, enum jinja_op op, int64_t a,
                                         int64_t b)
{
    int64_t out = 1;
    bool over = false;

    switch (op) {
    case OP_ADD:
        over = __builtin_add_overflow(a, b, &out);
        break;
    case OP_SUB:
        over = __builtin_sub_overflow(a, b, &out);
        break;
    case OP_MUL:
        over = __builtin_mul_overflow(a, b, &out);
        break;
    case OP_POW:
        if (b < 0)
            return jinja_float(pow((double)a, (double)b));
        for (; b > 0 && !over && out != 0 && !(a == 1); b--) {
            if (a == -1) {
                out = b % 2 ? -1 : 1;
                break;
            }
            over = __builtin_mul_overflow(out, a, &out);
        }
        break;
    case OP_DIV:
        return float_arithmetic(run, op, (double)a, (double)b);
    default:
        if (b == 0)
            return jinja_fail(run, ERR_INVALID, "chat template: division by zero");
        over = a == INT64_MIN && b == -1;
        if (over)
            break;
        out = op == OP_MOD ? a % b : a / b;
        if (op == OP_MOD && out != 0 && (out < 0) != (b < 0))
            out += b;
        if (op == OP_FLOOR_DIV && a % b != 0 && (a < 0) != (b < 0))
            out--;
        break;
    }
    return over ? jinja_fail(run, ERR_INVALID, "chat template: a number too large")
                : jinja_int(out);
}

/* "a" * 3 or [a] * 3. */
static struct jinja_value repeat(struct jinja_run *run, struct jinja_value v, int64_t n)
{
    struct jinja_builder b;
    struct jinja_value out;

    if (v.kind == JINJA_STRING) {
        jinja_build_init(&b, run);
        for (; n > 0 && v.string->len && run->rc == 0; n--)
            jinja_build_string(&b, v.string);
        return jinja_build_done(&b);
    }
    out = jinja_list_new(run, v.kind);
    for (; n > 0 && v.list->n && run->rc == 0; n--)
        for (size_t i = 0; i < v.list->n; i++)
            jinja_list_add(run, out.list, v.list->items[i]);
    return out;
}

static struct jinja_value concatenate(struct jinja_run *run, struct jinja_value a,
                                      struct jinja_value c)
{
    struct jinja_builder b;

    jinja_build_init(&b, run);
    jinja_build_value(&b, a);
    jinja_build_value(&b, c);
    return jinja_build_done(&b);
}

/* '%s ... %d' % values. */
static struct jinja_value percent(struct jinja_run *run, const struct jinja_string *f,
                                  struct jinja_value v)
{
    struct jinja_builder b;
    size_t next = 0;

    jinja_build_init(&b, run);
    for (size_t i = 0; i < f->len && run->rc == 0; i++) {
        struct jinja_value arg = v;

        if (f->text[i] != '%' || i + 1 == f->len) {
            jinja_build_add(&b, f->text + i, 1, f->client ? f->client + i : NULL);
            continue;
        }
        i++;
        if (f->text[i] == '%') {
            jinja_build_str(&b, "%");
            continue;
        }
        if (f->text[i] != 's' && f->text[i] != 'd')
            return jinja_fail(run, ERR_UNSUPPORTED, "chat template: %%%c in a format", f->text[i]);
        if (v.kind == JINJA_TUPLE) {
            if (next >= v.list->n)
                return jinja_fail(run, ERR_INVALID, "chat template: too few values for a format");
            arg = v.list->items[next++];
        }
        jinja_build_value(&b, arg);
    }
    return jinja_build_done(&b);
}

static struct jinja_value binary(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_value a = eval(run, n->a), b = eval(run, n->b);
    bool a_list = a.kind == JINJA_LIST || a.kind == JINJA_TUPLE;

    if (run->rc < 0)
        return jinja_undefined(NULL);
    if (n->op == OP_CONCAT)
        return concatenate(run, a, b);
    if (a.kind == JINJA_UNDEFINED || b.kind == JINJA_UNDEFINED)
        return undefined_used(run, n, a.kind == JINJA_UNDEFINED ? a : b);
    if (is_number(a) && is_number(b)) {
        if (a.kind == JINJA_FLOAT || b.kind == JINJA_FLOAT)
            return float_arithmetic(run, n->op, real_of(a), real_of(b));
        return int_arithmetic(run, n->op, a.kind == JINJA_BOOL ? a.truth : a.number,
                              b.kind == JINJA_BOOL ? b.truth : b.number);
    }
    if (n->op == OP_ADD && a.kind == JINJA_STRING && b.kind == JINJA_STRING)
        return concatenate(run, a, b);
    if (n->op == OP_ADD && a_list && b.kind == a.kind) {
        struct jinja_value out = jinja_list_new(run, a.kind);

        for (size_t i = 0; i < a.list->n; i++)
            jinja_list_add(run, out.list, a.list->items[i]);
        for (size_t i = 0; i < b.list->n; i++)
            jinja_list_add(run, out.list, b.list->items[i]);
        return out;
    }
    if (n->op == OP_MUL && (a.kind == JINJA_STRING || a_list) && b.kind == JINJA_INT)
        return repeat(run, a, b.number);
    if (n->op == OP_MUL && a.kind == JINJA_INT && (b.kind == JINJA_STRING || b.kind == JINJA_LIST))
        return repeat(run, b, a.number);
    if (n->op == OP_MOD && a.kind == JINJA_STRING)
        return percent(run, a.string, b);
    return jinja_fail(run, ERR_INVALID, "chat template, line %d: no such operation on %s and %s",
                      n->line, jinja_kind_name(a), jinja_kind_name(b));
}

static struct jinja_value compare(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_value a = eval(run, n->a);
    bool holds = true;

    for (const struct jinja_node *o = n->list; o && holds && run->rc == 0; o = o->next) {
        struct jinja_value b = eval(run, o->a);

        if (run->rc < 0)
            break;
        switch (o->op) {
        case OP_EQ:
        case OP_NE:
            holds = jinja_equal(run, a, b) == (o->op == OP_EQ);
            break;
        case OP_IN:
        case OP_NOT_IN:
            holds = jinja_contains(run, b, a) == (o->op == OP_IN);
            break;
        default:
            if (a.kind == JINJA_UNDEFINED || b.kind == JINJA_UNDEFINED)
                return undefined_used(run, n, a.kind == JINJA_UNDEFINED ? a : b);
            holds = o->op == OP_LT   ? jinja_compare(run, a, b) < 0
                    : o->op == OP_LE ? jinja_compare(run, a, b) <= 0
                    : o->op == OP_GT ? jinja_compare(run, a, b) > 0
                                     : jinja_compare(run, a, b) >= 0;
            break;
        }
        a = b;
    }
    return jinja_bool(holds);
}

static struct jinja_value negate(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_value v = eval(run, n->a);

    if (run->rc < 0)
        return v;
    if (!is_number(v))
        return jinja_fail(run, ERR_INVALID, "chat template, line %d: a sign before a %s", n->line,
                          jinja_kind_name(v));
    if (v.kind == JINJA_FLOAT)
        return jinja_float(n->kind == NODE_NEGATE ? -v.real : v.real);
    return n->kind == NODE_NEGATE
               ? int_arithmetic(run, OP_SUB, 0, v.kind == JINJA_BOOL ? v.truth : v.number)
               : v;
}

/*
 * Expressions.
 */

static struct jinja_value literal_list(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_value out =
        n->kind == NODE_DICT ? jinja_dict_new(run)
                             : jinja_list_new(run, n->kind == NODE_LIST ? JINJA_LIST : JINJA_TUPLE);

    for (const struct jinja_node *at = n->list; at && run->rc == 0; at = at->next) {
        struct jinja_value a = eval(run, at->a);

        if (n->kind == NODE_DICT)
            jinja_dict_put(run, out.dict, a, eval(run, at->b));
        else
            jinja_list_add(run, out.list, a);
    }
    return out;
}

static struct jinja_value apply_filter(struct jinja_run *run, const struct jinja_node *n,
                                       struct jinja_value v)
{
    struct jinja_call_args args = eval_args(run, n->list);

    return run->rc < 0 ? jinja_undefined(NULL) : jinja_filter(run, n->text, v, &args);
}

static struct jinja_value eval_kind(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_call_args args;
    struct jinja_value a;

    switch (n->kind) {
    case NODE_LITERAL:
        return n->value;
    case NODE_NAME:
        return look_up(run, n->text);
    case NODE_NOT:
        return jinja_bool(!jinja_is_true(eval(run, n->a)));
    case NODE_NEGATE:
    case NODE_PLUS:
        return negate(run, n);
    case NODE_AND:
        a = eval(run, n->a);
        return jinja_is_true(a) ? eval(run, n->b) : a;
    case NODE_OR:
        a = eval(run, n->a);
        return jinja_is_true(a) ? a : eval(run, n->b);
    case NODE_BINARY:
        return binary(run, n);
    case NODE_COMPARE:
        return compare(run, n);
    case NODE_COND:
        if (jinja_is_true(eval(run, n->b)))
            return eval(run, n->a);
        return n->c ? eval(run, n->c) : jinja_undefined(NULL);
    case NODE_LIST:
    case NODE_TUPLE:
    case NODE_DICT:
        return literal_list(run, n);
    default:
        break;
    }
    a = eval(run, n->a);
    if (run->rc < 0)
        return a;
    switch (n->kind) {
    case NODE_ATTR:
        return attribute(run, n, a);
    case NODE_ITEM: {
        struct jinja_value key = eval(run, n->b);

        return run->rc < 0 ? key : item(run, n, a, key);
    }
    case NODE_SLICE:
        return slice(run, n, a);
    case NODE_FILTER:
        return apply_filter(run, n, a);
    case NODE_CALL:
        args = eval_args(run, n->list);
        return jinja_call_value(run, a, &args);
    case NODE_TEST:
        args = eval_args(run, n->list);
        return run->rc < 0 ? a : jinja_bool(jinja_test(run, n->text, a, &args));
    default:
        return jinja_fail(run, ERR_PARSE, "chat template, line %d: not an expression", n->line);
    }
}

static struct jinja_value eval(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_value v;

    if (!step(run, n))
        return jinja_undefined(NULL);
    if (++run->depth > JINJA_MAX_DEPTH)
        return jinja_fail(run, ERR_LIMIT, "chat template, line %d: nested too deeply", n->line);
    v = eval_kind(run, n);
    run->depth--;
    return v;
}

/*
 * Statements.
 */

/* The items that a loop goes over: with a filter, those for which it holds. */
static struct jinja_list *loop_items(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_list *all = jinja_iterate(run, eval(run, n->a));
    struct jinja_value out;

    if (!n->b || run->rc < 0)
        return all;
    out = jinja_list_new(run, JINJA_LIST);
    for (size_t i = 0; i < all->n && run->rc == 0; i++) {
        struct jinja_scope scope;

        scope_open(run, &scope);
        assign(run, n->target, all->items[i]);
        if (jinja_is_true(eval(run, n->b)))
            jinja_list_add(run, out.list, all->items[i]);
        scope_close(run, &scope);
    }
    return run->rc < 0 ? all : out.list;
}

static int loop_depth(struct jinja_run *run)
{
    struct jinja_value outer = look_up(run, "loop");

    return outer.kind == JINJA_LOOP ? outer.loop->depth + 1 : 1;
}

static enum flow run_for(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_loop *loop = jinja_alloc(run, 1, sizeof(*loop));
    struct jinja_list *all = loop_items(run, n);

    if (run->rc < 0)
        return FLOW_ON;
    if (!all->n)
        return run_body(run, n->other);
    loop->items = all;
    loop->depth = loop_depth(run);
    for (loop->at = 0; loop->at < all->n && run->rc == 0; loop->at++) {
        struct jinja_scope scope;
        enum flow flow;

        scope_open(run, &scope);
        bind(run, "loop", (struct jinja_value){.kind = JINJA_LOOP, .loop = loop});
        assign(run, n->target, all->items[loop->at]);
        flow = run_body(run, n->body);
        scope_close(run, &scope);
        if (flow == FLOW_BREAK)
            break;
    }
    return FLOW_ON;
}

/* What body prints, as a value. */
static struct jinja_value capture(struct jinja_run *run, const struct jinja_node *body)
{
    struct jinja_builder text, *outer = run->out;
    struct jinja_scope scope;

    jinja_build_init(&text, run);
    run->out = &text;
    scope_open(run, &scope);
    run_body(run, body);
    scope_close(run, &scope);
    run->out = outer;
    return jinja_build_done(&text);
}

static void run_call_block(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_call_args args = eval_args(run, n->a->list);
    struct jinja_value callee = eval(run, n->a->a);

    if (run->rc == 0 && !args.named)
        args.named = jinja_dict_new(run).dict;
    if (run->rc < 0)
        return;
    jinja_dict_put(run, args.named, jinja_text(run, "caller", 6),
                   (struct jinja_value){.kind = JINJA_MACRO, .macro = n->other});
    jinja_build_value(run->out, jinja_call_value(run, callee, &args));
}

static enum flow run_statement(struct jinja_run *run, const struct jinja_node *n)
{
    struct jinja_value v;

    switch (n->kind) {
    case NODE_TEXT:
        jinja_build_add(run->out, n->text, n->text_len, NULL);
        break;
    case NODE_OUTPUT:
        v = eval(run, n->a);
        if (run->rc == 0)
            jinja_build_value(run->out, v);
        break;
    case NODE_IF:
        v = eval(run, n->a);
        return run->rc < 0 ? FLOW_ON : run_body(run, jinja_is_true(v) ? n->body : n->other);
    case NODE_FOR:
        return run_for(run, n);
    case NODE_SET:
        v = n->a ? eval(run, n->a) : capture(run, n->body);
        if (n->b && run->rc == 0)
            v = apply_filter(run, n->b, v);
        assign(run, n->target, v);
        break;
    case NODE_MACRO:
        bind(run, n->text, (struct jinja_value){.kind = JINJA_MACRO, .macro = n});
        break;
    case NODE_FILTER_BLOCK:
        v = apply_filter(run, n->b, capture(run, n->body));
        if (run->rc == 0)
            jinja_build_value(run->out, v);
        break;
    case NODE_CALL_BLOCK:
        run_call_block(run, n);
        break;
    case NODE_BREAK:
        return FLOW_BREAK;
    case NODE_CONTINUE:
        return FLOW_CONTINUE;
    default:
        jinja_fail(run, ERR_PARSE, "chat template, line %d: not a statement", n->line);
        break;
    }
    return FLOW_ON;
}

static enum flow run_body(struct jinja_run *run, const struct jinja_node *n)
{
    enum flow flow = FLOW_ON;

    if (++run->depth > JINJA_MAX_DEPTH) {
        jinja_fail(run, ERR_LIMIT, "chat template: nested too deeply");
        return FLOW_ON;
    }
    for (; n && flow == FLOW_ON && step(run, n); n = n->next)
        flow = run_statement(run, n);
    run->depth--;
    return flow;
}

int jinja_render(const struct jinja_node *root, struct jinja_run *run, struct jinja_dict *variables,
                 struct jinja_builder *out)
{
    struct jinja_scope top = {.names = variables};

    run->scope = &top;
    run->out = out;
    run_body(run, root);
    run->scope = NULL;
    run->out = NULL;
    if (run->rc == 0 && out->len > JINJA_MAX_OUTPUT)
        jinja_fail(run, ERR_LIMIT, "chat template: more than %u MB of text",
                   JINJA_MAX_OUTPUT >> 20);
    return run->rc;
}
