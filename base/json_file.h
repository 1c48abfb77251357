/*
 * json_file - a JSON document from a file, with its size bounded and duplicate keys refused.
 */
#ifndef JSON_FILE_H
#define JSON_FILE_H

#include <jansson.h>
#include <stddef.h>

struct err;

/*
 * *out is owned by the caller (json_decref). ERR_NOT_FOUND and ERR_IO from the file, ERR_INVALID
 * when it is larger than max_bytes, ERR_PARSE with line and column. Strings hold no NUL.
 */
int json_file_load(json_t **out, const char *path, size_t max_bytes, struct err *err);

#endif
