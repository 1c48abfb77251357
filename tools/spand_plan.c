/*
 * spand_plan - the program that finds a MoA plan for a model. What it does is in
 * engine/plan/search; here is what it is asked for.
 */
#include "base/build_info.h"
#include "base/err.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/plan/search/search_run.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_LISTED 256

struct flags {
    const char *output, *report, *lengths, *caps, *calibration, *template_text, *source, *answers;
    const char *loss, *objective, *sums, *grid, *alphas, *betas, *until;
    double density, gap, limit_tflops;
    int items, validate_items, validate_length, validate_best, answer_tokens, rules_per_layer;
    int intervals;
    int64_t max_nodes, seed, profile_memory;
    bool raw_prompts, per_query_head, baselines, cbc, focus, scale_layers;
    double alpha_list[MAX_LISTED], beta_list[MAX_LISTED];
};

static struct flags asked = {.output = NULL,
                             .source = "both",
                             .answers = "model",
                             .loss = "answer",
                             .objective = "cross_entropy",
                             .sums = "abs",
                             .grid = "eighth",
                             .until = "all",
                             .gap = 1e-4,
                             .items = 50,
                             .validate_items = 50,
                             .validate_best = 4,
                             .answer_tokens = 128,
                             .intervals = 4,
                             .max_nodes = 200,
                             .seed = 1,
                             .baselines = true,
                             .cbc = true};

static const struct config_extra extras[] = {
    {"output", CONFIG_PATH, &asked.output, "The plan's file; -o for short.", 0, 0},
    {"density", CONFIG_DOUBLE, &asked.density,
     "The share of a dense cache that may be kept, at every length with a cap.", 1e-6, 1},
    {"report", CONFIG_PATH, &asked.report,
     "The directory for the report and for what each stage leaves, so that a run that was "
     "stopped goes on. Default: the plan's name with .search.",
     0, 0},
    {"lengths", CONFIG_STRING, &asked.lengths,
     "Profile lengths in tokens, ascending. Default: a quarter, half and all of 8192, or of "
     "half of the context where that is less.",
     0, 0},
    {"caps", CONFIG_STRING, &asked.caps,
     "Lengths with a density cap, each with a density of its own behind a colon if it has one. "
     "Default: the profile lengths and twice the longest.",
     0, 0},
    {"items", CONFIG_INT, &asked.items, "Items profiled at each length.", 1, 100000},
    {"calibration", CONFIG_PATH, &asked.calibration,
     "Texts to calibrate on, one JSON object a line: {\"text\": ...} for the template, or "
     "{\"prompt\": ..., \"answer\": ...}. Default: made-up ones.",
     0, 0},
    {"template", CONFIG_STRING, &asked.template_text,
     "The prompt around a text, with {text} in it. Default: asks for a summary.", 0, 0},
    {"source", CONFIG_STRING, &asked.source,
     "The kind of made-up texts: retrieval, summary or both in turn.", 0, 0},
    {"answers", CONFIG_STRING, &asked.answers,
     "model: the dense model writes the answers; given: they come with the texts.", 0, 0},
    {"loss", CONFIG_STRING, &asked.loss,
     "answer: only the answer's tokens bear loss; whole: all tokens do.", 0, 0},
    {"objective", CONFIG_STRING, &asked.objective,
     "Whose gradient tells what matters: cross_entropy, or log_odds, by which all tokens of an "
     "answer count alike, however sure the model is of them.",
     0, 0},
    {"sums", CONFIG_STRING, &asked.sums,
     "How influence adds up: abs, by the absolute value of every key's; block, by that of a row's "
     "keys of one block together; signed, by that of all rows at one distance together.",
     0, 0},
    {"focus", CONFIG_BOOL, &asked.focus,
     "Only those answer tokens bear loss that uniform spans of the density make at most half as "
     "likely: what depends on the far context.",
     0, 0},
    {"scale_layers", CONFIG_BOOL, &asked.scale_layers,
     "Measures what uniform spans in each layer alone cost, and scales the layer's influence to "
     "it.",
     0, 0},
    {"answer_tokens", CONFIG_INT, &asked.answer_tokens, "The most tokens of an answer.", 1, 65536},
    {"raw_prompts", CONFIG_BOOL, &asked.raw_prompts, "Leaves the model's chat template out.", 0, 0},
    {"seed", CONFIG_INT64, &asked.seed, "Of the made-up texts.", 0, 0},
    {"profile_memory", CONFIG_BYTES, &asked.profile_memory,
     "The most that the profile may take beside the weights; with less, layers are computed again. "
     "0: what is free.",
     0, 0},
    {"limit_tflops", CONFIG_DOUBLE, &asked.limit_tflops,
     "The device's TFLOP/s, for the fraction of it that the profile reaches. 0: what the model's "
     "largest product alone reaches, where that can be measured.",
     0, 1e9},
    {"per_query_head", CONFIG_BOOL, &asked.per_query_head,
     "A rule for each query head instead of each key-value head; densities then count query "
     "heads.",
     0, 0},
    {"grid", CONFIG_STRING, &asked.grid,
     "The rules to choose from: eighth (alpha in eighths of the longest profile length), "
     "paper, "
     "or the step of alpha in tokens.",
     0, 0},
    {"alphas", CONFIG_STRING, &asked.alphas, "A grid of one's own, with --betas.", 0, 0},
    {"betas", CONFIG_STRING, &asked.betas, "See --alphas.", 0, 0},
    {"rules_per_layer", CONFIG_INT, &asked.rules_per_layer,
     "At most 1 or 2 different rules in a layer; 0: any number.", 0, 2},
    {"intervals", CONFIG_INT, &asked.intervals,
     "Into how many parts each loss's range is cut for the set of plans.", 1, 32},
    {"gap", CONFIG_DOUBLE, &asked.gap, "How near to the bound each plan must come, relative.", 0,
     1},
    {"max_nodes", CONFIG_INT64, &asked.max_nodes,
     "The search's effort on a program whose gap is wider.", 0, 1e9},
    {"cbc", CONFIG_BOOL, &asked.cbc, "Asks CBC, where it is built in, about what stays open.", 0,
     0},
    {"validate_best", CONFIG_INT, &asked.validate_best,
     "How many plans are validated, the best by prediction first; 0: none.", 0, 60},
    {"validate_length", CONFIG_INT, &asked.validate_length,
     "Their length. Default: one and a half of the longest profile length.", 0, 1 << 24},
    {"validate_items", CONFIG_INT, &asked.validate_items, "Items to validate on.", 1, 100000},
    {"baselines", CONFIG_BOOL, &asked.baselines,
     "Validates dense, uniform and streaming of the same density as well.", 0, 0},
    {"until", CONFIG_STRING, &asked.until, "Stops behind calibrate, profile or optimise.", 0, 0},
};

#define N_EXTRAS (int)(sizeof(extras) / sizeof(extras[0]))

static int usage_error(const struct err *err)
{
    fprintf(stderr, "spand-plan: %s\n", err->msg);
    return 2;
}

/* "1,2.5,3" to numbers in lo..hi. */
static int read_numbers(double *out, int max, int *n, const char *text, const char *flag, double lo,
                        double hi, struct err *err)
{
    const char *at = text;

    for (*n = 0; *at;) {
        char *end;
        double v = strtod(at, &end);

        if (end == at || (*end && *end != ',') || !(v >= lo && v <= hi))
            return err_set(err, ERR_INVALID, "--%s %s: want numbers in %g..%g, with commas between",
                           flag, text, lo, hi);
        if (*n == max)
            return err_set(err, ERR_INVALID, "--%s %s: more than %d numbers", flag, text, max);
        out[(*n)++] = v;
        at = *end ? end + 1 : end;
    }
    return *n ? 0 : err_set(err, ERR_INVALID, "--%s is empty", flag);
}

/* Which of the words; -1 and an error if none. */
static int pick_word(const char *text, const char *flag, const char *const *words, int n,
                     struct err *err)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(text, words[i]))
            return i;
    err_set(err, ERR_INVALID, "--%s %s: want %s%s%s%s%s%s%s", flag, text, words[0],
            n > 1 ? (n > 2 ? ", " : " or ") : "", n > 1 ? words[1] : "",
            n > 2 ? (n > 3 ? ", " : " or ") : "", n > 2 ? words[2] : "", n > 3 ? " or " : "",
            n > 3 ? words[3] : "");
    return -1;
}

/* The default: a quarter, a half and all of the longest length that the context holds twice. */
static int read_lengths(struct search_options *o, const struct flags *f, struct err *err)
{
    int context = o->model->max_seq_len, longest = context / 2 < 8192 ? context / 2 : 8192;
    double list[SEARCH_MAX_LENGTHS];
    int n = 0, rc;

    longest = longest / 512 * 512;
    if (!f->lengths) {
        if (longest < 512)
            return err_set(err, ERR_INVALID, "the context of %d is short: give --lengths", context);
        o->n_lengths = 3;
        for (int i = 0; i < 3; i++)
            o->length[i] = longest >> (2 - i);
        return 0;
    }
    rc = read_numbers(list, SEARCH_MAX_LENGTHS, &n, f->lengths, "lengths", 128, 1 << 24, err);
    if (rc < 0)
        return rc;
    o->n_lengths = n;
    for (int i = 0; i < n; i++) {
        o->length[i] = (int)list[i];
        if (i > 0 && o->length[i] <= o->length[i - 1])
            return err_set(err, ERR_INVALID, "--lengths %s: want them ascending", f->lengths);
        if (o->length[i] > context)
            return err_set(err, ERR_INVALID, "--lengths %s: the model's context is %d tokens",
                           f->lengths, context);
    }
    return 0;
}

/* "2048,16384:0.4": lengths, each with a density of its own if it has one. */
static int read_caps(struct search_options *o, const struct flags *f, struct err *err)
{
    struct search_caps *caps = &o->caps;
    const char *at = f->caps;
    int longest = o->length[o->n_lengths - 1];

    for (int i = 0; !at && i <= o->n_lengths && i < SEARCH_MAX_LENGTHS; i++) {
        caps->length[i] = i < o->n_lengths ? o->length[i] : 2 * longest;
        caps->density[i] = o->density;
        caps->n++;
    }
    while (at && *at) {
        char *end;
        long n = strtol(at, &end, 10);
        double d = o->density;

        if (end != at && *end == ':') {
            at = end + 1;
            d = strtod(at, &end);
        }
        if (end == at || (*end && *end != ',') || n < 128 || n > (1 << 24) || !(d > 0 && d <= 1) ||
            caps->n == SEARCH_MAX_LENGTHS)
            return err_set(err, ERR_INVALID,
                           "--caps %s: want at most %d of LENGTH or LENGTH:DENSITY, with commas "
                           "between",
                           f->caps, SEARCH_MAX_LENGTHS);
        caps->length[caps->n] = (int)n;
        caps->density[caps->n++] = d;
        at = *end ? end + 1 : end;
    }
    return caps->n ? 0 : err_set(err, ERR_INVALID, "--caps is empty");
}

static int read_grid(struct search_options *o, struct flags *f, struct err *err)
{
    struct rule_grid_params *g = &o->grid;
    char *end;
    int rc = 0;

    g->shortest = o->length[0];
    g->longest = o->length[o->n_lengths - 1];
    g->longest_cap = g->longest;
    for (int i = 0; i < o->caps.n; i++)
        g->longest_cap = o->caps.length[i] > g->longest_cap ? o->caps.length[i] : g->longest_cap;
    if ((f->alphas != NULL) != (f->betas != NULL))
        return err_set(err, ERR_INVALID, "--alphas and --betas go together");
    if (f->alphas) {
        g->kind = GRID_LIST;
        g->alphas = f->alpha_list;
        g->betas = f->beta_list;
        rc = read_numbers(f->alpha_list, MAX_LISTED, &g->n_alphas, f->alphas, "alphas", -(1 << 24),
                          1 << 24, err);
        return rc < 0 ? rc
                      : read_numbers(f->beta_list, MAX_LISTED, &g->n_betas, f->betas, "betas", 0, 1,
                                     err);
    }
    if (!strcmp(f->grid, "paper")) {
        g->kind = GRID_PAPER;
    } else if (strcmp(f->grid, "eighth")) {
        g->step = strtod(f->grid, &end);
        if (end == f->grid || *end || !(g->step >= 1))
            return err_set(err, ERR_INVALID,
                           "--grid %s: want eighth, paper or the step of alpha in tokens", f->grid);
    }
    return 0;
}

static int read_source(struct search_options *o, const struct flags *f, struct err *err)
{
    static const char *const sources[] = {"both", "retrieval", "summary"};
    static const char *const answers[] = {"model", "given"}, *const losses[] = {"answer", "whole"};
    static const char *const objectives[] = {"cross_entropy", "log_odds"};
    static const char *const sums[] = {"abs", "block", "signed"};
    int source = pick_word(f->source, "source", sources, 3, err);
    int answer = pick_word(f->answers, "answers", answers, 2, err);
    int loss = pick_word(f->loss, "loss", losses, 2, err);
    int objective = pick_word(f->objective, "objective", objectives, 2, err);
    int sum = pick_word(f->sums, "sums", sums, 3, err);

    if (source < 0 || answer < 0 || loss < 0 || objective < 0 || sum < 0)
        return err->code;
    if (f->template_text && !strstr(f->template_text, "{text}"))
        return err_set(err, ERR_INVALID, "--template has no {text} in it");
    o->source = f->calibration ? SOURCE_FILE : (enum search_source)source;
    o->answers = (enum search_answers)answer;
    o->whole_context_loss = loss == 1;
    o->log_odds = objective == 1;
    o->sums = sum;
    o->focus = f->focus;
    o->scale_layers = f->scale_layers;
    if (o->focus && o->whole_context_loss)
        return err_set(err, ERR_INVALID, "--focus true and --loss whole exclude each other");
    o->input = f->calibration;
    o->template_text = f->template_text;
    return 0;
}

static int read_validation(struct search_options *o, const struct flags *f, struct err *err)
{
    int longest = o->length[o->n_lengths - 1], context = o->model->max_seq_len;

    o->validate_length = f->validate_length;
    if (!o->validate_length) {
        o->validate_length = longest + longest / 2;
        if (o->validate_length > context)
            o->validate_length = context;
    }
    if (o->validate_length > context)
        return err_set(err, ERR_INVALID, "--validate-length %d: the model's context is %d tokens",
                       o->validate_length, context);
    for (int i = 0; i < o->n_lengths && o->validate_best > 0; i++)
        if (o->length[i] == o->validate_length)
            return err_set(err, ERR_INVALID,
                           "--validate-length %d is one of the profile lengths: want an unseen one",
                           o->validate_length);
    return 0;
}

/* The report lies beside the plan unless it was put elsewhere: plan.json has plan.search. */
static void read_dir(struct search_options *o, const struct flags *f)
{
    size_t len = strlen(f->output);

    if (f->report) {
        snprintf(o->dir, sizeof(o->dir), "%s", f->report);
        return;
    }
    if (len > 5 && !strcmp(f->output + len - 5, ".json"))
        len -= 5;
    snprintf(o->dir, sizeof(o->dir), "%.*s.search", (int)len, f->output);
}

static int read_options(struct search_options *o, struct flags *f, struct err *err)
{
    int rc;

    o->output = f->output;
    o->density = f->density;
    o->limit_tflops = f->limit_tflops;
    o->items = f->items;
    o->validate_items = f->validate_items;
    o->validate_best = f->validate_best;
    o->answer_tokens = f->answer_tokens;
    o->max_rules_per_layer = f->rules_per_layer;
    o->n_intervals = f->intervals;
    o->gap = f->gap;
    o->max_nodes = f->max_nodes;
    o->seed = f->seed;
    o->profile_memory = f->profile_memory;
    o->raw_prompts = f->raw_prompts;
    o->per_query_head = f->per_query_head;
    o->baselines = f->baselines;
    o->use_cbc = f->cbc;
    read_dir(o, f);
    rc = read_source(o, f, err);
    if (rc == 0)
        rc = read_lengths(o, f, err);
    if (rc == 0)
        rc = read_caps(o, f, err);
    if (rc == 0)
        rc = read_grid(o, f, err);
    if (rc == 0)
        rc = read_validation(o, f, err);
    if (rc == 0 && strcmp(o->config->plan, "dense"))
        rc = err_set(err, ERR_INVALID, "--plan %s: a search starts from the dense model",
                     o->config->plan);
    return rc;
}

static void show(const struct config *config)
{
    struct strbuf text = STRBUF_INIT;

    if (config->action == CONFIG_SHOW_VERSION) {
        strbuf_addf(&text, "spand-plan %s (%s)\n", build_version(), build_commit());
    } else if (config->action == CONFIG_SHOW_CONFIG) {
        config_print_json(config, &text);
    } else {
        strbuf_addstr(&text, "usage: spand-plan --model DIR --density D -o plan.json [flags]\n\n");
        config_print_help(extras, N_EXTRAS, &text);
    }
    fwrite(text.buf, 1, text.len, stdout);
    strbuf_release(&text);
}

static int run(struct config *config, struct flags *f, const char *command)
{
    static const char *const stages[] = {"calibrate", "profile", "optimise", "all"};
    struct search_options *o = calloc(1, sizeof(*o));
    struct model_config *model = calloc(1, sizeof(*model));
    struct err err = {0};
    int until = pick_word(f->until, "until", stages, 4, &err), rc = err.code;

    if (!o || !model) {
        rc = err_set(&err, ERR_NO_ROOM, "out of memory");
        goto out;
    }
    o->config = config;
    o->model = model;
    if (rc == 0)
        rc = model_config_load(model, config->model, &err);
    if (rc == 0)
        rc = read_options(o, f, &err);
    if (rc == 0) {
        search_catch_signals();
        rc = search_run(o, (enum search_stage)until, command, &err);
    }
out:
    free(model);
    free(o);
    if (rc == 0)
        return 0;
    usage_error(&err);
    if (rc == ERR_CLOSED)
        fprintf(stderr, "spand-plan: the same command goes on from there\n");
    return rc == ERR_INVALID || rc == ERR_PARSE || rc == ERR_NOT_FOUND || rc == ERR_UNSUPPORTED ||
                   rc == ERR_CONTEXT
               ? 2
               : 1;
}

/* Words that a shell would split are quoted. */
static void join(struct strbuf *out, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        bool plain = *argv[i] && !strpbrk(argv[i], " \t\n\"'$&|;<>*?(){}[]\\");

        strbuf_addstr(out, i ? " " : "");
        strbuf_addstr(out, plain ? "" : "'");
        strbuf_addstr(out, argv[i]);
        strbuf_addstr(out, plain ? "" : "'");
    }
}

int main(int argc, char **argv)
{
    static char output_flag[] = "--output";
    int rc;
    struct config_sources from = {.envp = environ,
                                  .argc = argc - 1,
                                  .argv = argv + 1,
                                  .extras = extras,
                                  .n_extras = N_EXTRAS};
    struct strbuf command = STRBUF_INIT;
    struct config config;
    struct err err = {0};

    json_object_seed(0);
    join(&command, argc, argv);
    for (int i = 1; i < argc; i++)
        argv[i] = strcmp(argv[i], "-o") ? argv[i] : output_flag;
    if (config_load(&config, &from, &err) < 0) {
        strbuf_release(&command);
        return usage_error(&err);
    }
    log_configure(config.log_level, config.log_format);
    if (config.action != CONFIG_RUN) {
        show(&config);
        rc = 0;
    } else if (!asked.output || !(asked.density > 0)) {
        fprintf(stderr, "spand-plan: want --density D and -o FILE; --help lists all flags\n");
        rc = 2;
    } else {
        rc = run(&config, &asked, command.buf);
    }
    config_release(&config);
    strbuf_release(&command);
    return rc;
}
