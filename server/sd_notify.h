/*
 * sd_notify - tells systemd what the daemon is doing, by datagrams to $NOTIFY_SOCKET.
 *
 * Without that variable every call does nothing. No library is needed for four lines of protocol.
 */
#ifndef SD_NOTIFY_H
#define SD_NOTIFY_H

#include <stdint.h>

/* A message that may drop is lost when nobody reads; one that must arrive is waited for, 5 s. */
enum sd_notify_kind { SD_NOTIFY_MAY_DROP, SD_NOTIFY_MUST_ARRIVE };

/* "READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=...": several lines may go at once. */
void sd_notify_send(enum sd_notify_kind kind, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* How often systemd wants a sign of life, in ms; 0 when it does not. */
int64_t sd_notify_watchdog_ms(void);

#endif
