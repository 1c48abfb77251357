/*
 * Records extend while nobody looks, and never mix what was handed out with what came since.
 */
#include "engine/outbox.h"
#include "tests/lib/test.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_TOKENS 2000

static struct outbox outbox;

static void record_init(struct outbox_record *r, uint64_t id)
{
    struct err err = {0};

    ck_assert_int_eq(outbox_record_init(r, id, NULL, 3, N_TOKENS, NULL, &err), 0);
}

/* Appends token i with the text "<i>". */
static void add(struct outbox_record *r, int i, enum finish_reason finish)
{
    struct engine_token token = {.id = i};
    char text[32];

    token.text_len = snprintf(text, sizeof(text), "<%d>", i);
    outbox_add(&outbox, r,
               &(struct outbox_news){.text = text,
                                     .text_len = (size_t)token.text_len,
                                     .tokens = &token,
                                     .n_tokens = 1,
                                     .n_completion_tokens = i + 1,
                                     .finish = finish,
                                     .stop_token = finish ? 9 : -1});
}

/* Three additions become one event whose tokens point into its text. */
START_TEST(outbox__extends_a_record_nobody_took)
{
    struct outbox_record r;
    struct engine_event event;

    outbox_init(&outbox);
    record_init(&r, 5);
    for (int i = 0; i < 3; i++)
        add(&r, i, FINISH_NONE);
    ck_assert_int_eq(outbox_n_listed(&outbox), 1);
    ck_assert_ptr_eq(outbox_take(&outbox, &event), &r);
    ck_assert_str_eq(event.text, "<0><1><2>");
    ck_assert_int_eq(event.n_tokens, 3);
    ck_assert_int_eq(event.tokens[2].text_at, 6);
    ck_assert_int_eq(event.n_prompt_tokens, 3);
    ck_assert_int_eq(event.stop_token, -1);
    ck_assert_ptr_null(outbox_take(&outbox, &event));
    outbox_taken(&outbox, &r);
    outbox_record_release(&r);
    outbox_release(&outbox);
}
END_TEST

/* A poller that stays away finds every token later, and each with its own text. */
START_TEST(outbox__keeps_all_for_a_late_poller)
{
    struct outbox_record r;
    struct engine_event event;

    outbox_init(&outbox);
    record_init(&r, 5);
    for (int i = 0; i < N_TOKENS; i++)
        add(&r, i, i == N_TOKENS - 1 ? FINISH_LENGTH : FINISH_NONE);
    ck_assert_ptr_eq(outbox_take(&outbox, &event), &r);
    ck_assert_int_eq(event.n_tokens, N_TOKENS);
    for (int i = 0; i < N_TOKENS; i++) {
        ck_assert_int_eq(event.tokens[i].id, i);
        ck_assert_int_eq(atoi(event.text + event.tokens[i].text_at + 1), i);
    }
    outbox_record_release(&r);
    outbox_release(&outbox);
}
END_TEST

/* What is added while an event is being read goes into the next one. */
START_TEST(outbox__writes_beside_the_reader)
{
    struct outbox_record r;
    struct engine_event event, next;

    outbox_init(&outbox);
    record_init(&r, 5);
    add(&r, 0, FINISH_NONE);
    ck_assert_ptr_eq(outbox_take(&outbox, &event), &r);
    add(&r, 1, FINISH_NONE);
    add(&r, 2, FINISH_STOP);
    ck_assert_str_eq(event.text, "<0>");
    ck_assert_int_eq(event.n_tokens, 1);
    ck_assert_int_eq(event.finish, FINISH_NONE);
    outbox_taken(&outbox, &r);
    ck_assert_ptr_eq(outbox_take(&outbox, &next), &r);
    ck_assert_str_eq(next.text, "<1><2>");
    ck_assert_int_eq(next.tokens[0].text_at, 0);
    ck_assert_int_eq(next.finish, FINISH_STOP);
    ck_assert_int_eq(next.stop_token, 9);
    outbox_record_release(&r);
    outbox_release(&outbox);
}
END_TEST

/* Records come in the order in which they got news, each once. */
START_TEST(outbox__lists_records_in_order)
{
    struct outbox_record r[3];
    struct engine_event event;

    outbox_init(&outbox);
    for (int i = 0; i < 3; i++)
        record_init(&r[i], (uint64_t)i);
    add(&r[2], 0, FINISH_NONE);
    add(&r[0], 0, FINISH_NONE);
    add(&r[2], 1, FINISH_NONE);
    add(&r[1], 0, FINISH_NONE);
    ck_assert_int_eq(outbox_n_listed(&outbox), 3);
    ck_assert_ptr_eq(outbox_take(&outbox, &event), &r[2]);
    ck_assert_ptr_eq(outbox_take(&outbox, &event), &r[0]);
    ck_assert_ptr_eq(outbox_take(&outbox, &event), &r[1]);
    for (int i = 0; i < 3; i++)
        outbox_record_release(&r[i]);
    outbox_release(&outbox);
}
END_TEST

static void *writer(void *arg)
{
    for (int i = 0; i < N_TOKENS; i++) {
        add(arg, i, i == N_TOKENS - 1 ? FINISH_LENGTH : FINISH_NONE);
        if (i % 7 == 0)
            outbox_signal(&outbox);
    }
    outbox_signal(&outbox);
    return NULL;
}

/* A writer and a reader at full speed: every token once, in order, with its own text. */
START_TEST(outbox__loses_nothing_between_threads)
{
    struct outbox_record r;
    struct engine_event event = {.finish = FINISH_NONE};
    pthread_t thread;
    int next = 0;

    outbox_init(&outbox);
    record_init(&r, 1);
    ck_assert_int_eq(pthread_create(&thread, NULL, writer, &r), 0);
    while (event.finish == FINISH_NONE) {
        if (!outbox_wait(&outbox, 5000000000) || !outbox_take(&outbox, &event))
            ck_abort_msg("no news behind token %d", next);
        for (int i = 0; i < event.n_tokens; i++, next++) {
            const struct engine_token *t = &event.tokens[i];
            char want[32];

            snprintf(want, sizeof(want), "<%d>", next);
            if (t->id != next || t->text_len != (int)strlen(want) ||
                memcmp(event.text + t->text_at, want, strlen(want)) != 0)
                ck_abort_msg("token %d is %d", next, (int)t->id);
        }
        if (event.finish == FINISH_NONE)
            outbox_taken(&outbox, &r);
    }
    pthread_join(thread, NULL);
    ck_assert_int_eq(next, N_TOKENS);
    outbox_record_release(&r);
    outbox_release(&outbox);
}
END_TEST

/* Waiting ends when the time is up. */
START_TEST(outbox__waits_no_longer_than_told)
{
    outbox_init(&outbox);
    ck_assert(!outbox_wait(&outbox, 0));
    ck_assert(!outbox_wait(&outbox, 2000000));
    outbox_release(&outbox);
}
END_TEST

TEST_SUITE(outbox)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, outbox__extends_a_record_nobody_took);
    tcase_add_test(tc, outbox__keeps_all_for_a_late_poller);
    tcase_add_test(tc, outbox__writes_beside_the_reader);
    tcase_add_test(tc, outbox__lists_records_in_order);
    tcase_add_test(tc, outbox__loses_nothing_between_threads);
    tcase_add_test(tc, outbox__waits_no_longer_than_told);
}
