/*
 * build_info - which source this binary was built from. The Makefile defines both macros for
 * this file alone, so that a new commit recompiles nothing else.
 */
#include "base/build_info.h"

#ifndef SPAND_VERSION
#define SPAND_VERSION "0.0.0"
#endif
#ifndef SPAND_COMMIT
#define SPAND_COMMIT "unknown"
#endif

const char *build_version(void)
{
    return SPAND_VERSION;
}

const char *build_commit(void)
{
    return SPAND_COMMIT;
}
