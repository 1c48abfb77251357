/*
 * sd_listen - sockets that a service manager has opened already ("socket activation").
 *
 * They are descriptors from 3 on, counted in $LISTEN_FDS for the process in $LISTEN_PID. No library
 * is needed for two variables.
 */
#ifndef SD_LISTEN_H
#define SD_LISTEN_H

struct err;

#define SD_LISTEN_FIRST 3

/*
 * How many there are for this process; 0 when there are none. They are closed on exec from now on,
 * and the variables are gone, so that no child takes them for its own. ERR_INVALID when a
 * descriptor is no listening stream socket.
 */
int sd_listen_take(struct err *err);

#endif
