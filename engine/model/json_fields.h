/*
 * json_fields - reads the members of one JSON object with type and bounds checked.
 *
 * The first thing that is wrong is kept in rc and err, every later call returns its fallback: a
 * reader may take all its fields and ask once. null counts as absent, as in the files that
 * transformers writes; json_fields_has() tells the two apart where they differ.
 */
#ifndef JSON_FIELDS_H
#define JSON_FIELDS_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>

struct err;

struct json_fields {
    const json_t *obj; /* borrowed */
    const char *where; /* borrowed: file, or file and object, in front of every message */
    int rc;            /* 0 until something is wrong */
    struct err *err;
};

#define JSON_FIELD_REQUIRED INT_MIN /* as the fallback of an int: absent is an error */

/* True when the key is there, null or not. */
bool json_fields_has(const struct json_fields *f, const char *key);

/* An integer in lo..hi. */
int json_fields_int(struct json_fields *f, const char *key, int lo, int hi, int fallback);

/* A finite number in lo..hi, written as integer or real. */
double json_fields_num(struct json_fields *f, const char *key, double lo, double hi,
                       double fallback);

bool json_fields_bool(struct json_fields *f, const char *key, bool fallback);

/* Borrowed from the object. */
const char *json_fields_str(struct json_fields *f, const char *key, const char *fallback);

/* The object under key, or NULL when it is absent. */
const json_t *json_fields_obj(struct json_fields *f, const char *key);

/* The array under key, or NULL when it is absent. */
const json_t *json_fields_array(struct json_fields *f, const char *key);

/* Writes a short rendering of v for messages: numbers and strings as they are, else the kind. */
void json_describe(char *buf, size_t size, const json_t *v);

#endif
