/*
 * json_in - a request body as JSON: bounded in depth, without duplicate keys, without NUL in a key.
 */
#ifndef JSON_IN_H
#define JSON_IN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct api_error;

/*
 * *root is a JSON object owned by the caller (json_decref). A 400 in *e otherwise. max_depth bounds
 * the nesting before the recursive parser sees the text.
 */
int json_in_parse(json_t **root, const char *body, size_t len, int max_depth, struct api_error *e);

/* An integer, or a real without a fraction: clients in Python do send 1.0. */
bool json_in_int(const json_t *v, int64_t *out);

/* The text of a string that holds no NUL: names, words, whatever is compared. NULL for others. */
const char *json_in_word(const json_t *v);

/* "a string", "an array", ...: for messages. */
const char *json_in_kind(const json_t *v);

#endif
