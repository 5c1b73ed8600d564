/* The part of onnxruntime's C API that runner.c uses, declared by position.

   The runtime's library exports OrtGetApiBase, which gives a table of functions. Newer versions only add functions at
   the end of the table, so the position of a function never changes, and one program runs with every runtime that
   supports version ORT_VERSION. The order is that of onnxruntime's
   include/onnxruntime/core/session/onnxruntime_c_api.h. Enumerations are passed as int, which is their type in the
   C ABI of all supported processors. */

#ifndef TOOLCHAIN_ORT_H
#define TOOLCHAIN_ORT_H

#include <stddef.h>
#include <stdint.h>

enum { ORT_VERSION = 16 }; /* onnxruntime 1.16, of 2023 */
enum { ORT_LOG_ERROR = 3 };
enum { ORT_TENSOR = 1 }; /* the kind of a value; others are sequences, maps, ... */
enum {
    ORT_FLOAT = 1, ORT_UINT8, ORT_INT8, ORT_UINT16, ORT_INT16, ORT_INT32, ORT_INT64, ORT_STRING, ORT_BOOL, ORT_FLOAT16,
    ORT_DOUBLE, ORT_UINT32, ORT_UINT64
};

typedef struct OrtStatus OrtStatus; /* NULL is success */
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtShape OrtShape; /* element type and shape of a tensor */
typedef struct OrtAllocator OrtAllocator;
typedef void (*OrtUnused)(void);

typedef struct {
    OrtUnused before_2[2];
    const char *(*GetErrorMessage)(const OrtStatus *);
    OrtStatus *(*CreateEnv)(int severity, const char *name, OrtEnv **);
    OrtUnused before_6[2];
    OrtStatus *(*DisableTelemetryEvents)(const OrtEnv *);
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **);
    OrtUnused before_9[1];
    OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *names, const OrtValue *const *inputs,
                      size_t count, const char *const *output_names, size_t output_count, OrtValue **outputs);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);
    OrtUnused before_19[8];
    OrtStatus *(*DisableCpuMemArena)(OrtSessionOptions *);
    OrtUnused before_22[2];
    OrtStatus *(*SetSessionLogSeverityLevel)(OrtSessionOptions *, int severity);
    OrtUnused before_24[1];
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);
    OrtStatus *(*SetInterOpNumThreads)(OrtSessionOptions *, int);
    OrtUnused before_30[4];
    OrtStatus *(*SessionGetInputCount)(const OrtSession *, size_t *);
    OrtStatus *(*SessionGetOutputCount)(const OrtSession *, size_t *);
    OrtUnused before_33[1];
    OrtStatus *(*SessionGetInputTypeInfo)(const OrtSession *, size_t index, OrtTypeInfo **);
    OrtUnused before_36[2];
    OrtStatus *(*SessionGetInputName)(const OrtSession *, size_t index, OrtAllocator *, char **);
    OrtStatus *(*SessionGetOutputName)(const OrtSession *, size_t index, OrtAllocator *, char **);
    OrtUnused before_48[10];
    OrtStatus *(*CreateTensorAsOrtValue)(OrtAllocator *, const int64_t *shape, size_t rank, int type, OrtValue **);
    OrtUnused before_50[1];
    OrtStatus *(*IsTensor)(const OrtValue *, int *);
    OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);
    OrtUnused before_55[3];
    OrtStatus *(*CastTypeInfoToTensorInfo)(const OrtTypeInfo *, const OrtShape **);
    OrtStatus *(*GetOnnxTypeFromTypeInfo)(const OrtTypeInfo *, int *);
    OrtUnused before_60[3];
    OrtStatus *(*GetTensorElementType)(const OrtShape *, int *);
    OrtStatus *(*GetDimensionsCount)(const OrtShape *, size_t *);
    OrtStatus *(*GetDimensions)(const OrtShape *, int64_t *, size_t rank);
    OrtStatus *(*GetSymbolicDimensions)(const OrtShape *, const char **names, size_t rank);
    OrtStatus *(*GetTensorShapeElementCount)(const OrtShape *, size_t *);
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *, OrtShape **);
    OrtUnused before_78[12];
    OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);
    OrtUnused before_93[14];
    void (*ReleaseStatus)(OrtStatus *);
    OrtUnused before_96[2];
    void (*ReleaseValue)(OrtValue *);
    OrtUnused before_98[1];
    void (*ReleaseTypeInfo)(OrtTypeInfo *);
    void (*ReleaseShape)(OrtShape *);
    OrtUnused before_130[30];
    OrtStatus *(*AddSessionConfigEntry)(OrtSessionOptions *, const char *key, const char *value);
} OrtApi;

_Static_assert(offsetof(OrtApi, AddSessionConfigEntry) == 130 * sizeof(void *), "a function is not at its position");

typedef struct {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

#endif
