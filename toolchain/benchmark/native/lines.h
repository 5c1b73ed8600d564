/* Lines of JSON: commands from stdin, answers to the original stdout; and the error line on stderr that ends the
   process. */

#ifndef TOOLCHAIN_LINES_H
#define TOOLCHAIN_LINES_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

enum { LINE_BYTES = 1 << 20 };

static FILE *answers;

static _Noreturn void die(const char *format, ...) {
    char message[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *at = message; *at; at++)
        if (*at == '\n' || *at == '\r') *at = ' ';
    fprintf(stderr, "%s\n", message);
    exit(1);
}

static void *grown(void *old, size_t bytes) {
    void *new = realloc(old, bytes ? bytes : 1);
    if (new == NULL) die("out of memory");
    return new;
}

static const Json *need(const Json *object, const char *key, JsonKind kind) {
    const Json *member = json_get(object, key);
    if (member == NULL || member->kind != kind) die("the command has no %s, or its type is wrong", key);
    return member;
}

static double need_number(const Json *object, const char *key, double most) {
    double number = need(object, key, JSON_NUMBER)->number;
    if (!(number >= 0 && number <= most)) die("%s is not between 0 and %g", key, most);
    return number;
}

/* Read the next line of stdin and parse it, in memory of its own; NULL at the end. */
static Json *read_command(void) {
    static char line[LINE_BYTES];
    if (fgets(line, sizeof line, stdin) == NULL) return NULL;
    size_t length = strlen(line);
    if (length == 0 || line[length - 1] != '\n') die("a command is too long or incomplete");
    char *text = grown(NULL, length + 1);
    memcpy(text, line, length + 1);
    Json *command = json_parse(text);
    if (command == NULL || command->kind != JSON_OBJECT) die("a command is no object of JSON");
    return command; /* A few hundred bytes each, a few dozen of them: never freed. */
}

static void write_string(const char *text) {
    fputc('"', answers);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', answers);
        if ((unsigned char)*text < 0x20) fprintf(answers, "\\u%04x", (unsigned)*text);
        else fputc(*text, answers);
    }
    fputc('"', answers);
}

#endif
