/*
 * build_info - which source this binary was built from.
 */
#ifndef BUILD_INFO_H
#define BUILD_INFO_H

/* The content of the file VERSION, "0.1.0" say. */
const char *build_version(void);

/* The first 12 hex digits of the commit, or "unknown" outside a git checkout. */
const char *build_commit(void);

#endif
