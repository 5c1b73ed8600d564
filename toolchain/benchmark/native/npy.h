/* Tensors in files: .npy members (format 1.0 to 3.0 of numpy.lib.format), one after the other. */

#ifndef TOOLCHAIN_NPY_H
#define TOOLCHAIN_NPY_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ort.h"

enum { NPY_RANK = 32, NPY_HEADER = 4096 };

typedef struct {
    int type;
    const char *name;  /* the name that runner.py uses in messages */
    const char *descr; /* in the file, little-endian */
    size_t size;
} NpyType;

static const NpyType npy_types[] = {
    {ORT_FLOAT, "float", "<f4", 4},   {ORT_UINT8, "uint8", "|u1", 1},   {ORT_INT8, "int8", "|i1", 1},
    {ORT_UINT16, "uint16", "<u2", 2}, {ORT_INT16, "int16", "<i2", 2},   {ORT_INT32, "int32", "<i4", 4},
    {ORT_INT64, "int64", "<i8", 8},   {ORT_BOOL, "bool", "|b1", 1},     {ORT_FLOAT16, "float16", "<f2", 2},
    {ORT_DOUBLE, "double", "<f8", 8}, {ORT_UINT32, "uint32", "<u4", 4}, {ORT_UINT64, "uint64", "<u8", 8},
};

/* Return the type of that number, or NULL. */
static const NpyType *npy_type(int type) {
    for (size_t i = 0; i < sizeof npy_types / sizeof *npy_types; i++)
        if (npy_types[i].type == type) return &npy_types[i];
    return NULL;
}

/* Read a member up to its data; false where it is not a member, or its type, order or rank is not supported. */
static bool npy_read_header(FILE *file, const NpyType **type, int64_t *shape, size_t *rank) {
    unsigned char start[12];
    char header[NPY_HEADER + 1], descr[16];
    if (fread(start, 1, 8, file) != 8 || memcmp(start, "\x93NUMPY", 6) != 0 || start[6] < 1 || start[6] > 3)
        return false;
    size_t wide = start[6] == 1 ? 2 : 4, length = 0;
    if (fread(start + 8, 1, wide, file) != wide) return false;
    for (size_t i = wide; i-- > 0;) length = length << 8 | start[8 + i];
    if (length > NPY_HEADER || fread(header, 1, length, file) != length) return false;
    header[length] = '\0';

    const char *at = strstr(header, "'descr': '");
    if (at == NULL || sscanf(at, "'descr': '%15[^']'", descr) != 1) return false;
    *type = NULL;
    for (size_t i = 0; i < sizeof npy_types / sizeof *npy_types; i++)
        if (strcmp(npy_types[i].descr, descr) == 0) *type = &npy_types[i];
    if (*type == NULL || strstr(header, "'fortran_order': False") == NULL) return false;

    at = strstr(header, "'shape': (");
    if (at == NULL) return false;
    at += strlen("'shape': (");
    for (*rank = 0; *at != ')'; (*rank)++) {
        char *end = NULL;
        if (*rank == NPY_RANK || *at < '0' || *at > '9') return false;
        shape[*rank] = strtoll(at, &end, 10);
        at = end + strspn(end, ", ");
    }
    return true;
}

/* Write a member; false where the disk is full. */
static bool npy_write(FILE *file, const NpyType *type, const int64_t *shape, size_t rank, const void *data,
                      size_t count) {
    char header[NPY_HEADER];
    int used = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (", type->descr);
    for (size_t i = 0; i < rank; i++)
        used += snprintf(header + used, sizeof header - (size_t)used, "%" PRId64 ",", shape[i]);
    used += snprintf(header + used, sizeof header - (size_t)used, ")}");
    int padded = (10 + used + 1 + 63) / 64 * 64 - 10; /* the data begins at a multiple of 64 bytes */
    unsigned char start[10] = "\x93NUMPY\x01";
    start[8] = (unsigned char)(padded & 0xff);
    start[9] = (unsigned char)(padded >> 8);
    bool fine = fwrite(start, 1, 10, file) == 10;
    return fprintf(file, "%s%*s\n", header, padded - used - 1, "") == padded && fine
           && fwrite(data, type->size, count, file) == count;
}

#endif
