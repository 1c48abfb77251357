/*
 * log - one line an event, to stderr, as text or as JSON lines. Any thread.
 *
 * Libraries do not log; main, the engine thread and the loop thread do. Control characters in
 * values are escaped, so nothing that a client sends can forge a line.
 */
#ifndef LOG_H
#define LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR = 0, LOG_WARN = 1, LOG_INFO = 2, LOG_DEBUG = 3 };
enum log_format { LOG_TEXT = 0, LOG_JSON = 1 };

/*
 * Where stderr is systemd's journal ($JOURNAL_STREAM), each line begins with its priority as <6>,
 * and text lines leave out what the journal adds.
 *
 * Before threads start. The default is LOG_INFO as text. */
void log_configure(enum log_level level, enum log_format format);
bool log_wants(enum log_level level);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

/* A named field of a structured event; str is used when it is not NULL, else num. */
struct log_field {
    const char *key;
    const char *str;
    double num;
};

/* `event` and its fields on one line: text as key=value, JSON as members. */
void log_event(enum log_level level, const char *event, const struct log_field *fields,
               int n_fields);

#endif
