/*
 * crash - the report.
 *
 * First what cannot fail: text that was made at start, and the stack. The engine's own account
 * needs memory and locks that may be what is broken, so it comes last, and an alarm ends the report
 * when it does not return. A thread that crashes while another reports waits for the end.
 */
#include "server/crash.h"

#include "base/build_info.h"
#include "base/strbuf.h"
#include "config/config.h"
#include "engine/engine.h"

#include <execinfo.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MAX_FRAMES    64
#define ENGINE_WAIT_S 3
#define STACK_BYTES   65536

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
static char *intro; /* made at start */
static struct engine *_Atomic engine_to_ask;
static atomic_flag reporting = ATOMIC_FLAG_INIT;
static volatile sig_atomic_t crash_signal;
static volatile pid_t reporter;

static void say(const char *text)
{
    size_t left = strlen(text);

    while (left > 0) {
        ssize_t n = write(STDERR_FILENO, text, left);

        if (n <= 0)
            return;
        text += n;
        left -= (size_t)n;
    }
}

static void end_report(int signo)
{
    say("\n=== SPAND CRASH REPORT END ===\n");
    signal(signo, SIG_DFL);
    raise(signo);
    _exit(128 + signo); /* when the signal is blocked here */
}

static void on_alarm(int signo)
{
    (void)signo;
    say("\nengine: does not answer");
    end_report(crash_signal);
}

static void say_head(int signo, const siginfo_t *info)
{
    char text[256], thread[16] = "?";

    prctl(PR_GET_NAME, thread);
    say("\n=== SPAND CRASH REPORT START ===\n");
    snprintf(text, sizeof(text),
             "signal: %d (%s), code %d, address %p, sent by pid %d\nthread: %s\n", signo,
             strsignal(signo), info->si_code, signo == SIGABRT ? NULL : info->si_addr,
             info->si_code <= 0 ? (int)info->si_pid : 0, thread);
    say(text);
    say(intro ? intro : "");
}

static void say_stack(void)
{
    void *frames[MAX_FRAMES];
    int n = backtrace(frames, MAX_FRAMES);

    say("stack:\n");
    backtrace_symbols_fd(frames, n, STDERR_FILENO);
}

static void say_engine(void)
{
    struct engine *e = atomic_load(&engine_to_ask);
    struct strbuf text = STRBUF_INIT;

    if (!e)
        return;
    signal(SIGALRM, on_alarm);
    alarm(ENGINE_WAIT_S);
    engine_dump(e, &text);
    alarm(0);
    say("engine: ");
    say(text.failed ? "out of memory" : text.buf);
}

static void on_crash(int signo, siginfo_t *info, void *context)
{
    (void)context;
    if (atomic_flag_test_and_set(&reporting)) {
        if (gettid() == reporter)
            end_report(signo); /* the report itself crashed */
        for (;;)
            pause();
    }
    reporter = gettid();
    crash_signal = signo;
    say_head(signo, info);
    say_stack();
    say_engine();
    end_report(signo);
}

static void make_intro(const struct config *config)
{
    struct strbuf text = STRBUF_INIT;

    strbuf_addf(&text, "build: spand %s (%s)\nconfig: ", build_version(), build_commit());
    config_print_json(config, &text);
    strbuf_addch(&text, '\n');
    intro = text.failed ? NULL : strbuf_detach(&text, NULL);
    if (!intro)
        strbuf_release(&text);
}

void crash_install(const struct config *config)
{
    static char stack[STACK_BYTES]; /* for a loop thread that ran out of its own */
    stack_t alternative = {.ss_sp = stack, .ss_size = sizeof(stack)};
    struct sigaction sa = {.sa_sigaction = on_crash,
                           .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    void *frame;

    make_intro(config);
    backtrace(&frame, 1); /* loads the unwinder now: later it may need memory that is not there */
    sigaltstack(&alternative, NULL);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &sa, NULL);
}

void crash_set_engine(struct engine *engine)
{
    atomic_store(&engine_to_ask, engine);
}
