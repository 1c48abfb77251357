/*
 * http_framing - the ends of a head's lines, which libmicrohttpd 0.9.75 does not report.
 *
 * It takes a lone LF for the end of a line, keeps a lone CR inside a value, and joins folded
 * headers. A proxy in front that reads them otherwise sees other headers than we do, so both are
 * refused. Releases from 1.0 on refuse them by themselves (MHD_OPTION_CLIENT_DISCIPLINE_LVL); there
 * this always says yes.
 */
#ifndef HTTP_FRAMING_H
#define HTTP_FRAMING_H

#include <stdbool.h>

struct MHD_Connection;

/*
 * At the first call of the access handler, with the very pointers that it got: do all lines of the
 * head end in CR LF, is CR nowhere else, and does one space lie between method and target?
 */
bool http_framing_is_plain(struct MHD_Connection *conn, const char *method, const char *target,
                           const char *version);

#endif
