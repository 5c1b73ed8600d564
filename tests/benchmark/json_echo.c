/* Reads lines and writes each as `json_parse` understood it, or "refused". */

#include <stdio.h>

#include "json.h"

static void show_text(const char *text) {
    putchar('"');
    for (; *text; text++) printf("%02x", (unsigned char)*text);
    putchar('"');
}

static void show(const Json *node) {
    if (node->kind == JSON_NULL) printf("null");
    if (node->kind == JSON_BOOL) printf(node->number != 0 ? "true" : "false");
    if (node->kind == JSON_NUMBER) printf("%.17g", node->number);
    if (node->kind == JSON_STRING) show_text(node->text);
    if (node->kind < JSON_LIST) return;
    putchar(node->kind == JSON_LIST ? '[' : '{');
    for (const Json *member = node->child; member != NULL; member = member->next) {
        if (member != node->child) putchar(',');
        if (node->kind == JSON_OBJECT) {
            show_text(member->key);
            putchar(':');
        }
        show(member);
    }
    putchar(node->kind == JSON_LIST ? ']' : '}');
}

int main(void) {
    static char line[1 << 16];
    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        Json *node = json_parse(line);
        if (node == NULL) printf("refused");
        else show(node);
        putchar('\n');
        if (node != NULL && json_get(node, "no such key") != NULL) return 1;
        free(node);
        fflush(stdout);
    }
    return 0;
}
