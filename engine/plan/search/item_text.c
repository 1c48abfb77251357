/*
 * item_text - made-up calibration texts. See item_text.h.
 */
#include "engine/plan/search/item_text.h"

#include "base/rng.h"
#include "base/strbuf.h"

#include <stdio.h>
#include <string.h>

#define N_OF(list) (sizeof(list) / sizeof((list)[0]))

static const char *const adjectives[] = {
    "able",    "amber",  "ancient", "bitter", "blue",    "bold",   "brave",  "brief",  "bright",
    "broad",   "calm",   "careful", "cheap",  "clean",   "clear",  "clever", "cold",   "common",
    "curious", "dark",   "deep",    "dry",    "early",   "eager",  "fair",   "famous", "fierce",
    "fine",    "firm",   "flat",    "formal", "fresh",   "gentle", "golden", "grand",  "green",
    "happy",   "heavy",  "hollow",  "honest", "humble",  "jolly",  "large",  "late",   "lively",
    "lonely",  "loud",   "lucky",   "modern", "narrow",  "noble",  "plain",  "proud",  "quick",
    "quiet",   "rapid",  "rare",    "rough",  "round",   "royal",  "sharp",  "silent", "simple",
    "slow",    "smooth", "solid",   "steady", "strange", "strong", "sweet",  "tall",   "tender",
    "thick",   "tiny",   "tired",   "true",   "vast",    "warm",   "wide",   "wild"};
static const char *const nouns[] = {
    "anchor", "apple",  "arrow",  "basket", "beach",  "bell",   "bird",     "boat",   "bottle",
    "bridge", "brush",  "button", "cabin",  "camera", "candle", "castle",   "chair",  "circle",
    "clock",  "cloud",  "coast",  "coin",   "corner", "cotton", "desert",   "door",   "dream",
    "engine", "farm",   "field",  "flame",  "flower", "forest", "garden",   "glass",  "guitar",
    "hammer", "harbor", "hill",   "horse",  "island", "kettle", "lake",     "lamp",   "ladder",
    "letter", "lemon",  "market", "meadow", "mirror", "moon",   "mountain", "needle", "ocean",
    "orange", "paper",  "pencil", "piano",  "planet", "pocket", "river",    "road",   "rocket",
    "saddle", "salt",   "school", "shadow", "ship",   "silver", "stone",    "storm",  "street",
    "summer", "table",  "temple", "tower",  "train",  "valley", "window",   "winter"};
static const char *const people[] = {"Anders",  "Bello",    "Chen",   "Dubois", "Eriksen",
                                     "Fischer", "Gomez",    "Haddad", "Ito",    "Jansen",
                                     "Kovac",   "Lindgren", "Moreau", "Nowak",  "Okafor",
                                     "Petrov",  "Quinn",    "Rossi",  "Silva",  "Tanaka"};
static const char *const places[] = {"Ashford",  "Brackwell", "Corden",   "Dunmore",   "Elsing",
                                     "Fairholm", "Grenton",   "Hartwick", "Ilmouth",   "Kelby",
                                     "Larkhill", "Merrow",    "Norwood",  "Ostbridge", "Penfield",
                                     "Redcliff", "Stanmoor",  "Thornby",  "Upwell",    "Westerly"};
static const char *const works[] = {"a new bridge over the river",
                                    "the repair of the old mill",
                                    "a second school",
                                    "lights along the harbour",
                                    "a line of buses",
                                    "the dam above the town",
                                    "a library",
                                    "a market hall",
                                    "the drainage of the meadows",
                                    "a hospital wing"};
static const char *const fates[] = {
    "was approved without a vote against it", "was put off until the spring",
    "was refused after a long debate",        "will be paid for by a tax on tourists",
    "needs the consent of the county first",  "is to be finished within two years"};

struct dice {
    uint64_t seed;
    uint32_t stream;
    uint64_t n;
};

static uint32_t roll(struct dice *d, size_t n)
{
    return (uint32_t)(rng_u64(d->seed, d->stream, d->n++) % n);
}

#define PICK(dice, list) ((list)[roll(dice, N_OF(list))])

/*
 * The key of line i: pairs are walked by a step that has no divisor in common with their number,
 * so no key comes twice.
 */
static void line_key(char *out, size_t size, uint32_t start, uint32_t step, int i)
{
    uint32_t n = (uint32_t)(N_OF(adjectives) * N_OF(nouns));
    uint32_t at = (start + (uint32_t)i * step) % n;

    snprintf(out, size, "%s-%s", adjectives[at % N_OF(adjectives)], nouns[at / N_OF(adjectives)]);
}

static void make_retrieval(struct strbuf *text, struct strbuf *answer, struct dice *d, int n_lines,
                           double position)
{
    static const uint32_t steps[] = {1237, 2371, 3191, 4079, 5147}; /* primes */
    uint32_t start = roll(d, N_OF(adjectives) * N_OF(nouns)), step = PICK(d, steps);
    int asked = (int)(position * n_lines);
    char key[64];

    asked = asked < n_lines ? asked : n_lines - 1;
    strbuf_addstr(text,
                  "Below is a record of lines I want you to remember. Each line begins with 'line "
                  "<line index>' and contains a '<REGISTER_CONTENT>' at the end of the line as a "
                  "numerical value. For each line index, memorize its corresponding "
                  "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the "
                  "corresponding <REGISTER_CONTENT> of a certain line index. Now the record "
                  "start:\n\n");
    for (int i = 0; i < n_lines; i++) {
        uint32_t value = 1 + roll(d, 50000);

        line_key(key, sizeof(key), start, step, i);
        strbuf_addf(text, "line %s: REGISTER_CONTENT is <%u>\n", key, value);
        if (i == asked)
            strbuf_addf(answer, "The <REGISTER_CONTENT> in line %s is <%u>.", key, value);
    }
    line_key(key, sizeof(key), start, step, asked);
    strbuf_addf(text,
                "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line %s? I "
                "need the number.",
                key);
}

static void make_summary(struct strbuf *text, struct dice *d, int n_reports)
{
    strbuf_addstr(text, "Here are reports from the councils of a county. Read all of them, then "
                        "write a summary.\n\n");
    for (int i = 0; i < n_reports; i++) {
        const char *place = PICK(d, places), *person = PICK(d, people);

        strbuf_addf(text,
                    "Report %d, %s. The council met under %s. On the table was %s, at a cost "
                    "of %u crowns; the proposal %s. ",
                    i + 1, place, person, PICK(d, works), 1000 * (1 + roll(d, 900)),
                    PICK(d, fates));
        strbuf_addf(text,
                    "%s spoke of %u households that wait for it since %u. The next meeting "
                    "takes up %s.\n\n",
                    PICK(d, people), 10 + roll(d, 4000), 1960 + roll(d, 60), PICK(d, works));
    }
    strbuf_addstr(text, "These were all the reports. Write a one-page summary of them: which towns "
                        "decided what, at what cost.");
}

void item_text_make(struct strbuf *text, struct strbuf *answer, enum item_kind kind, uint64_t seed,
                    int idx, int n_units, double position)
{
    struct dice d = {.seed = seed, .stream = (uint32_t)idx};

    if (kind == ITEM_RETRIEVAL)
        make_retrieval(text, answer, &d, n_units, position);
    else
        make_summary(text, &d, n_units);
}
