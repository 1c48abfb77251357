/*
 * log - one line an event, to stderr. See log.h.
 *
 * A line is built in memory and leaves in one write(), so lines of several threads do not mix.
 * The level and the format are set before threads start and only read afterwards.
 */
#include "base/log.h"

#include "base/clock.h"
#include "base/strbuf.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static enum log_level max_level = LOG_INFO;
static enum log_format line_format = LOG_TEXT;
static bool to_journal;

/* systemd says in $JOURNAL_STREAM which stream it reads; a redirected one is another. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;

    return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
           fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void log_configure(enum log_level level, enum log_format format)
{
    to_journal = stderr_is_journal();
    max_level = level;
    line_format = format;
}

bool log_wants(enum log_level level)
{
    return level <= max_level;
}

static const char *level_name(enum log_level level)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};

    return names[level];
}

static void add_time(struct strbuf *line)
{
    int64_t ms = clock_unix_ms();
    time_t s = ms / 1000;
    struct tm tm;
    char text[32];

    gmtime_r(&s, &tm);
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    strbuf_addf(line, "%s.%03dZ", text, (int)(ms % 1000));
}

/* Control characters (C0, DEL and C1 as UTF-8) become \xNN: a value cannot forge a line. */
static void add_escaped(struct strbuf *line, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        bool c1 = c == 0xc2 && i + 1 < len && (unsigned char)s[i + 1] < 0xa0;

        if (c < 0x20 || c == 0x7f)
            strbuf_addf(line, "\\x%02x", c);
        else if (c1)
            strbuf_addf(line, "\\x%02x", (unsigned char)s[++i]);
        else
            strbuf_addch(line, c);
    }
}

/* A bare word where that is unambiguous, a quoted string elsewhere. */
static void add_text_value(struct strbuf *line, const char *s)
{
    bool bare = *s != '\0';

    for (const char *p = s; *p && bare; p++)
        bare = *p > 0x20 && *p < 0x7f && *p != '"' && *p != '=' && *p != '\\';
    if (bare)
        strbuf_addstr(line, s);
    else
        strbuf_add_json(line, s, strlen(s));
}

static void add_number(struct strbuf *line, double num)
{
    if (!isfinite(num))
        strbuf_addstr(line, line_format == LOG_JSON ? "null" : isnan(num) ? "nan" : "inf");
    else if (num == floor(num) && fabs(num) < 9007199254740992.0) /* 2^53: still exact */
        strbuf_addf(line, "%.0f", num);
    else
        strbuf_addf(line, "%.6g", num);
}

static void add_field(struct strbuf *line, const struct log_field *field)
{
    if (line_format == LOG_JSON) {
        strbuf_addch(line, ',');
        strbuf_add_json(line, field->key, strlen(field->key));
        strbuf_addch(line, ':');
        if (field->str)
            strbuf_add_json(line, field->str, strlen(field->str));
        else
            add_number(line, field->num);
        return;
    }
    strbuf_addf(line, " %s=", field->key);
    if (field->str)
        add_text_value(line, field->str);
    else
        add_number(line, field->num);
}

static void begin_line(struct strbuf *line, enum log_level level)
{
    static const int priorities[] = {3, 4, 6, 7}; /* as syslog counts */

    if (to_journal)
        strbuf_addf(line, "<%d>", priorities[level]);
    if (line_format == LOG_JSON) {
        strbuf_addstr(line, "{\"time\":\"");
        add_time(line);
        strbuf_addf(line, "\",\"level\":\"%s\"", level_name(level));
        return;
    }
    if (to_journal)
        return; /* it has the time and shows the priority */
    add_time(line);
    strbuf_addf(line, " %-5s ", level_name(level));
}

static void end_line(struct strbuf *line)
{
    static const char lost[] = "log: a line was lost, out of memory\n";
    const char *p = lost;
    size_t left = sizeof(lost) - 1;

    strbuf_addstr(line, line_format == LOG_JSON ? "}\n" : "\n");
    if (!line->failed) {
        p = line->buf;
        left = line->len;
    }
    while (left > 0) {
        ssize_t n = write(STDERR_FILENO, p, left);

        if (n <= 0)
            break; /* nowhere to report that the log is gone */
        p += n;
        left -= n;
    }
    strbuf_release(line);
}

void log_write(enum log_level level, const char *fmt, ...)
{
    struct strbuf line = STRBUF_INIT;
    struct strbuf text = STRBUF_INIT;
    va_list ap;

    if (!log_wants(level))
        return;
    va_start(ap, fmt);
    strbuf_vaddf(&text, fmt, ap);
    va_end(ap);
    begin_line(&line, level);
    if (line_format == LOG_JSON) {
        strbuf_addstr(&line, ",\"message\":");
        strbuf_add_json(&line, text.buf, text.len);
    } else {
        add_escaped(&line, text.buf, text.len);
    }
    line.failed |= text.failed;
    strbuf_release(&text);
    end_line(&line);
}

void log_event(enum log_level level, const char *event, const struct log_field *fields,
               int n_fields)
{
    struct strbuf line = STRBUF_INIT;

    if (!log_wants(level))
        return;
    begin_line(&line, level);
    if (line_format == LOG_JSON) {
        strbuf_addstr(&line, ",\"event\":");
        strbuf_add_json(&line, event, strlen(event));
    } else {
        add_escaped(&line, event, strlen(event));
    }
    for (int i = 0; i < n_fields; i++)
        add_field(&line, &fields[i]);
    end_line(&line);
}
