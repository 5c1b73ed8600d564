/* A strict reader of one line of JSON (RFC 8259), for commands of a few kilobytes.

   json_parse decodes in place: the strings of its nodes lie in the given text. All nodes lie in one block, whose size
   is known before parsing, because each value but the first follows one of  , : [ {  in the text.
   Stricter than the standard, it refuses duplicate keys, \u0000, unpaired surrogates, and nesting deeper than
   JSON_DEPTH. */

#ifndef TOOLCHAIN_JSON_H
#define TOOLCHAIN_JSON_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_DEPTH = 8 };

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_LIST, JSON_OBJECT } JsonKind;

typedef struct Json {
    JsonKind kind;
    const char *key;  /* in an object */
    const char *text; /* of a string */
    double number;    /* of a number; 0 or 1 of a bool */
    struct Json *child, *next;
} Json;

typedef struct {
    char *at;
    Json *nodes;
    size_t used;
    int depth;
} JsonReader;

static bool json_value(JsonReader *reader, Json *node);

static void json_space(JsonReader *reader) {
    reader->at += strspn(reader->at, " \t\r\n");
}

/* Skip `text` where it comes next; false where it does not. */
static bool json_take(JsonReader *reader, const char *text) {
    size_t length = strlen(text);
    if (strncmp(reader->at, text, length) != 0) return false;
    reader->at += length;
    return true;
}

static bool json_hex(JsonReader *reader, unsigned long *code) {
    char digits[5] = {0};
    if (strspn(reader->at, "0123456789abcdefABCDEF") < 4) return false;
    memcpy(digits, reader->at, 4);
    *code = strtoul(digits, NULL, 16);
    reader->at += 4;
    return true;
}

/* Read the code point after \u and write it as UTF-8, which is shorter than the escape. */
static char *json_unicode(JsonReader *reader, char *out) {
    unsigned long code = 0, low = 0;
    if (!json_hex(reader, &code) || code == 0 || (code >= 0xdc00 && code < 0xe000)) return NULL;
    if (code >= 0xd800 && code < 0xdc00) {
        if (!json_take(reader, "\\u") || !json_hex(reader, &low) || low < 0xdc00 || low >= 0xe000) return NULL;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code < 0x80) {
        *out++ = (char)code;
        return out;
    }
    int tail = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *out++ = (char)((0xff00UL >> (tail + 1) & 0xffUL) | code >> 6 * tail);
    while (tail-- > 0) *out++ = (char)(0x80UL | (code >> 6 * tail & 0x3fUL));
    return out;
}

static const char *json_string(JsonReader *reader) {
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    if (!json_take(reader, "\"")) return NULL;
    char *start = reader->at, *out = start;
    while (*reader->at != '"') {
        if ((unsigned char)*reader->at < 0x20) return NULL; /* also the end of the text */
        if (!json_take(reader, "\\")) {
            *out++ = *reader->at++;
        } else if (json_take(reader, "u")) {
            out = json_unicode(reader, out);
            if (out == NULL) return NULL;
        } else {
            const char *found = *reader->at ? strchr(escapes, *reader->at) : NULL;
            if (found == NULL) return NULL;
            *out++ = meant[found - escapes];
            reader->at++;
        }
    }
    reader->at++;
    *out = '\0';
    return start;
}

static bool json_number(JsonReader *reader, double *number) {
    static const char digits[] = "0123456789";
    char *start = reader->at;
    json_take(reader, "-");
    size_t whole = strspn(reader->at, digits);
    if (whole == 0 || (whole > 1 && *reader->at == '0')) return false;
    reader->at += whole;
    if (json_take(reader, ".")) {
        size_t part = strspn(reader->at, digits);
        if (part == 0) return false;
        reader->at += part;
    }
    if (json_take(reader, "e") || json_take(reader, "E")) {
        if (!json_take(reader, "-")) json_take(reader, "+");
        size_t exponent = strspn(reader->at, digits);
        if (exponent == 0) return false;
        reader->at += exponent;
    }
    *number = strtod(start, NULL);
    return true;
}

/* Read the members after [ or {, up to its end. */
static bool json_members(JsonReader *reader, Json *node, const char *end) {
    Json **link = &node->child;
    json_space(reader);
    if (json_take(reader, end)) return true;
    do {
        Json *member = &reader->nodes[reader->used++];
        json_space(reader);
        if (node->kind == JSON_OBJECT) {
            member->key = json_string(reader);
            if (member->key == NULL) return false;
            for (const Json *other = node->child; other != NULL; other = other->next)
                if (strcmp(other->key, member->key) == 0) return false;
            json_space(reader);
            if (!json_take(reader, ":")) return false;
        }
        *link = member;
        link = &member->next;
        if (!json_value(reader, member)) return false;
    } while (json_take(reader, ","));
    return json_take(reader, end);
}

/* Read a value and the space around it. */
static bool json_value(JsonReader *reader, Json *node) {
    bool fine = false;
    json_space(reader);
    if (*reader->at == '"') {
        node->kind = JSON_STRING;
        node->text = json_string(reader);
        fine = node->text != NULL;
    } else if (*reader->at == '{' || *reader->at == '[') {
        node->kind = *reader->at++ == '{' ? JSON_OBJECT : JSON_LIST;
        fine = ++reader->depth <= JSON_DEPTH && json_members(reader, node, node->kind == JSON_OBJECT ? "}" : "]");
        reader->depth--;
    } else if (json_take(reader, "null")) {
        fine = true;
    } else if (json_take(reader, "true") || json_take(reader, "false")) {
        node->kind = JSON_BOOL;
        node->number = reader->at[-2] == 'u'; /* tr-u-e, fal-s-e */
        fine = true;
    } else {
        node->kind = JSON_NUMBER;
        fine = json_number(reader, &node->number);
    }
    json_space(reader);
    return fine;
}

/* Parse `text`; NULL where it is not one JSON value. The result is freed with free; `text` must live longer. */
static Json *json_parse(char *text) {
    size_t values = 1;
    for (const char *at = text; *at; at++) values += strchr(",:[{", *at) != NULL;
    Json *nodes = calloc(values, sizeof *nodes);
    JsonReader reader = {text, nodes, 1, 0};
    if (nodes != NULL && (!json_value(&reader, nodes) || *reader.at != '\0')) {
        free(nodes);
        nodes = NULL;
    }
    return nodes;
}

/* Return the member of that name, or NULL. */
static const Json *json_get(const Json *object, const char *key) {
    const Json *member = object->kind == JSON_OBJECT ? object->child : NULL;
    while (member != NULL && strcmp(member->key, key) != 0) member = member->next;
    return member;
}

#endif
