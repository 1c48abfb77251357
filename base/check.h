/*
 * check - assertions that stay in release builds.
 *
 * For states that only our own bug can cause, never for what a client or a file can cause. A
 * failure prints condition, file and line, calls the hook (the daemon's crash report) and aborts.
 */
#ifndef BASE_CHECK_H /* CHECK_H belongs to the test library Check */
#define BASE_CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

void check_failed(const char *cond, const char *file, int line) __attribute__((noreturn));

/* Called once before the abort; NULL removes it. Set at boot, before threads start. */
void check_set_hook(void (*hook)(const char *cond, const char *file, int line));

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (__builtin_expect(!(cond), 0))                                                          \
            check_failed(#cond, __FILE__, __LINE__);                                               \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
