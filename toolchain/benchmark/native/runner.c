/* Run one model in a process of its own, controlled line by line: ../runner.py for devices without Python.

       runner LIBRARY       speaks the lines that ../runner.py describes; LIBRARY is a libonnxruntime.so
       runner --hold FILE   reserves a device for one benchmark; see `hold`

   It reads and writes the same lines, and warms up, waits and times in the same way. The differences:

       the feed's "path" is a file of .npy members one after the other, in the order of its "names"
       generated noise has the same distribution, but other values
       "cpus" is a list like 0-3,6 or null; there is no {"do": "profile"}
       {"do": "answers", "feed": as in the first line, "path": p} -> {"outputs": [name, ...]}
           runs one inference and writes its outputs to p as such members (not part of a benchmark)

   A failure ends the process with exit code 1 and one line on stderr that names it. It needs a C11 compiler, POSIX and
   Linux' /proc, but no file of onnxruntime when it is compiled: the library is opened when the program runs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>

#include "lines.h"
#include "machine.h"
#include "npy.h"
#include "ort.h"

/* Warm-up is complete when the medians of two windows differ by at most this share. */
static const double WARMUP_TOLERANCE = 0.05;
/* Warm-up ends after this many times the requested time, even if it is not steady. */
static const double MAX_WARMUP_FACTOR = 8;
enum { MAX_SAMPLES = 1 << 28 };

typedef struct {
    double *values, *computed; /* milliseconds: elapsed, and processor time of this thread */
    size_t count, room;
} Samples;

static const OrtApi *ort;
static OrtSession *session;
static OrtAllocator *allocator;
static char **input_names, **output_names;
static OrtValue **inputs, **outputs;
static size_t input_count, output_count;

/* ------------------------------------------------------------------------------------------------ the model */

static void check(OrtStatus *status) {
    if (status != NULL) die("%s", ort->GetErrorMessage(status));
}

static const char *open_library(const char *path, OrtEnv **env) {
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) die("%s", dlerror());
    const OrtApiBase *(*base)(void);
    *(void **)&base = dlsym(library, "OrtGetApiBase");
    if (base == NULL) die("%s is no library of onnxruntime", path);
    ort = base()->GetApi(ORT_VERSION);
    if (ort == NULL) die("onnxruntime %s is too old, 1.%d is needed", base()->GetVersionString(), ORT_VERSION);
    check(ort->CreateEnv(ORT_LOG_ERROR, "runner", env));
    check(ort->DisableTelemetryEvents(*env));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    return base()->GetVersionString();
}

/* Create the session with exactly the requested threads and options. */
static void load(const OrtEnv *env, const Json *job) {
    OrtSessionOptions *options = NULL;
    check(ort->CreateSessionOptions(&options));
    const Json *arena = json_get(job, "arena");
    if (arena != NULL && arena->kind == JSON_BOOL && arena->number == 0) check(ort->DisableCpuMemArena(options));
    check(ort->SetIntraOpNumThreads(options, (int)need_number(job, "threads", 4096)));
    check(ort->SetInterOpNumThreads(options, 1));
    check(ort->SetSessionLogSeverityLevel(options, ORT_LOG_ERROR));
    for (const Json *entry = need(job, "session_options", JSON_OBJECT)->child; entry != NULL; entry = entry->next) {
        if (entry->kind != JSON_STRING) die("session option %s is no string", entry->key);
        check(ort->AddSessionConfigEntry(options, entry->key, entry->text));
    }
    check(ort->CreateSession(env, need(job, "model", JSON_STRING)->text, options, &session));
}

/* Read the names of inputs and outputs, and allocate their values; not part of the load time. */
static void read_ports(void) {
    check(ort->SessionGetInputCount(session, &input_count));
    check(ort->SessionGetOutputCount(session, &output_count));
    input_names = grown(NULL, input_count * sizeof *input_names);
    output_names = grown(NULL, output_count * sizeof *output_names);
    inputs = grown(NULL, input_count * sizeof *inputs);
    outputs = grown(NULL, output_count * sizeof *outputs);
    for (size_t i = 0; i < input_count; i++) {
        check(ort->SessionGetInputName(session, i, allocator, &input_names[i]));
        inputs[i] = NULL;
    }
    for (size_t i = 0; i < output_count; i++) {
        check(ort->SessionGetOutputName(session, i, allocator, &output_names[i]));
        outputs[i] = NULL;
    }
}

/* Fill with normal noise (Box and Muller, Ann. Math. Statist. 29, 1958) from the generator splitmix64. */
static void make_noise(int type, void *data, size_t count, uint64_t *state) {
    for (size_t i = 0; i < count; i++) {
        double uniform[2];
        for (int k = 0; k < 2; k++) {
            uint64_t mixed = *state += 0x9e3779b97f4a7c15;
            mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
            mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
            uniform[k] = ((double)((mixed ^ mixed >> 31) >> 11) + 0.5) * 0x1p-53;
        }
        double value = sqrt(-2 * log(uniform[0])) * cos(6.283185307179586 * uniform[1]);
        float single = (float)value;
        if (type == ORT_DOUBLE) ((double *)data)[i] = value;
        if (type == ORT_FLOAT) ((float *)data)[i] = single;
        if (type == ORT_FLOAT16) { /* truncated; subnormal values of half precision become zero */
            uint32_t bits;
            memcpy(&bits, &single, sizeof bits);
            uint32_t half = (bits & 0x7fffffff) < 0x38800000 ? 0 : (bits & 0x7fffffff) - 0x38000000;
            ((uint16_t *)data)[i] = (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(half >> 13);
        }
    }
}

/* As `make_feed` of runner.py: noise for floats, zeros for integers and strings, true for bools; unknown axes have
   size 1. */
static void make_input(size_t i, const Json *dims, uint64_t *state) {
    OrtTypeInfo *info = NULL;
    const OrtShape *about = NULL;
    const char *axes[NPY_RANK];
    int64_t shape[NPY_RANK];
    int kind = 0, type = 0;
    size_t rank = 0, count = 1;
    check(ort->SessionGetInputTypeInfo(session, i, &info));
    check(ort->GetOnnxTypeFromTypeInfo(info, &kind));
    if (kind != ORT_TENSOR) die("no values can be generated for input '%s', which is no tensor", input_names[i]);
    check(ort->CastTypeInfoToTensorInfo(info, &about));
    check(ort->GetTensorElementType(about, &type));
    check(ort->GetDimensionsCount(about, &rank));
    if (rank > NPY_RANK) die("input '%s' has %zu axes", input_names[i], rank);
    check(ort->GetDimensions(about, shape, rank));
    check(ort->GetSymbolicDimensions(about, axes, rank));
    for (size_t axis = 0; axis < rank; axis++) {
        const Json *size = json_get(dims, axes[axis]);
        if (shape[axis] < 0) shape[axis] = size == NULL ? 1 : (int64_t)need_number(dims, axes[axis], 1e12);
        count *= (size_t)shape[axis];
    }
    const NpyType *known = npy_type(type);
    if (known == NULL && type != ORT_STRING)
        die("no values can be generated for input '%s' of type %d", input_names[i], type);
    check(ort->CreateTensorAsOrtValue(allocator, shape, rank, type, &inputs[i]));
    if (known != NULL) {
        void *data = NULL;
        check(ort->GetTensorMutableData(inputs[i], &data));
        memset(data, type == ORT_BOOL, count * known->size);
        make_noise(type, data, count, state);
    }
    ort->ReleaseTypeInfo(info);
}

/* Read the value of one input from the next member of a feed. */
static void read_input(size_t i, FILE *file, const char *path) {
    const NpyType *type = NULL;
    int64_t shape[NPY_RANK];
    size_t rank = 0, count = 0;
    OrtShape *about = NULL;
    void *data = NULL;
    if (!npy_read_header(file, &type, shape, &rank)) die("input %s cannot be read from %s", input_names[i], path);
    check(ort->CreateTensorAsOrtValue(allocator, shape, rank, type->type, &inputs[i]));
    check(ort->GetTensorTypeAndShape(inputs[i], &about));
    check(ort->GetTensorShapeElementCount(about, &count));
    ort->ReleaseShape(about);
    check(ort->GetTensorMutableData(inputs[i], &data));
    if (fread(data, type->size, count, file) != count)
        die("the feed for input '%s' in %s is too short", input_names[i], path);
}

/* Use the feed of a command instead of the previous one. Without one, it is generated by the job's dims and seed. */
static void take_feed(const Json *command, const Json *job) {
    const Json *feed = json_get(command, "feed");
    uint64_t state = (uint64_t)need_number(job, "seed", 0x1p53);
    for (size_t i = 0; i < input_count; i++) {
        ort->ReleaseValue(inputs[i]);
        inputs[i] = NULL;
    }
    if (feed == NULL || feed->kind == JSON_NULL) {
        for (size_t i = 0; i < input_count; i++) make_input(i, need(job, "dims", JSON_OBJECT), &state);
        return;
    }
    const char *path = need(feed, "path", JSON_STRING)->text;
    FILE *file = fopen(path, "rb");
    if (file == NULL) die("%s: %s", path, strerror(errno));
    for (const Json *name = need(feed, "names", JSON_LIST)->child; name != NULL; name = name->next) {
        size_t i = 0;
        while (i < input_count && (name->kind != JSON_STRING || strcmp(input_names[i], name->text) != 0)) i++;
        if (i == input_count || inputs[i] != NULL)
            die("the feed has '%s', which is no input", name->text ? name->text : "");
        read_input(i, file, path);
    }
    fclose(file);
    for (size_t i = 0; i < input_count; i++)
        if (inputs[i] == NULL) die("input '%s' is missing in the feed", input_names[i]);
}

/* Run one inference; the outputs are kept. */
static void infer(void) {
    check(ort->Run(session, NULL, (const char *const *)input_names, (const OrtValue *const *)inputs, input_count,
                   (const char *const *)output_names, output_count, outputs));
}

/* Release the outputs; in Python that is part of the time of an inference, too. */
static void drop_outputs(void) {
    for (size_t i = 0; i < output_count; i++) {
        ort->ReleaseValue(outputs[i]);
        outputs[i] = NULL;
    }
}

static void write_outputs(const char *path) {
    FILE *file = fopen(path, "wb");
    if (file == NULL) die("%s: %s", path, strerror(errno));
    for (size_t i = 0; i < output_count; i++) {
        OrtShape *about = NULL;
        int64_t shape[NPY_RANK];
        int tensor = 0, number = 0;
        size_t rank = 0, count = 0;
        void *data = NULL;
        check(ort->IsTensor(outputs[i], &tensor));
        if (!tensor) die("output '%s' is no tensor", output_names[i]);
        check(ort->GetTensorTypeAndShape(outputs[i], &about));
        check(ort->GetTensorElementType(about, &number));
        check(ort->GetDimensionsCount(about, &rank));
        check(ort->GetTensorShapeElementCount(about, &count));
        const NpyType *type = npy_type(number);
        if (type == NULL || rank > NPY_RANK)
            die("output '%s' is of type %d with %zu axes", output_names[i], number, rank);
        check(ort->GetDimensions(about, shape, rank));
        ort->ReleaseShape(about);
        check(ort->GetTensorMutableData(outputs[i], &data));
        if (!npy_write(file, type, shape, rank, data, count)) die("%s: %s", path, strerror(errno));
    }
    if (fclose(file) != 0) die("%s: %s", path, strerror(errno));
}

/* ------------------------------------------------------------------------------------------------ time */

/* Time single inferences until both `seconds` and `runs` are reached; they replace the previous samples. */
static void repeat(Samples *samples, double seconds, double runs) {
    double end = seconds_of(CLOCK_MONOTONIC) + seconds;
    samples->count = 0;
    while ((double)samples->count < runs || seconds_of(CLOCK_MONOTONIC) < end) {
        if (samples->count == samples->room) {
            if (samples->room >= MAX_SAMPLES) die("more than %d samples", MAX_SAMPLES);
            samples->room = samples->room ? 2 * samples->room : 1024;
            samples->values = grown(samples->values, samples->room * sizeof *samples->values);
            samples->computed = grown(samples->computed, samples->room * sizeof *samples->computed);
        }
        int64_t before = nanoseconds_of(CLOCK_THREAD_CPUTIME_ID), start = nanoseconds_of(CLOCK_MONOTONIC);
        infer();
        drop_outputs();
        samples->values[samples->count] = (double)(nanoseconds_of(CLOCK_MONOTONIC) - start) / 1e6;
        samples->computed[samples->count++] = (double)(nanoseconds_of(CLOCK_THREAD_CPUTIME_ID) - before) / 1e6;
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Return the median; the samples are sorted. */
static double median(Samples *samples) {
    qsort(samples->values, samples->count, sizeof *samples->values, by_value);
    return (samples->values[(samples->count - 1) / 2] + samples->values[samples->count / 2]) / 2;
}

/* As `warm_up` of runner.py: run for `seconds`, then until the medians of two consecutive windows agree. */
static bool warm_up(Samples *samples, double seconds, size_t *runs) {
    double start = seconds_of(CLOCK_MONOTONIC), last = 0;
    *runs = 0;
    while (seconds > 0) {
        repeat(samples, seconds / 3, 1);
        *runs += samples->count;
        double middle = median(samples), elapsed = seconds_of(CLOCK_MONOTONIC) - start;
        bool settled = fabs(middle - last) <= WARMUP_TOLERANCE * middle;
        last = middle;
        if (elapsed >= seconds && (settled || elapsed >= MAX_WARMUP_FACTOR * seconds)) return settled;
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------ lines */

/* Wait for idle threads, which may still spin; with one thread there are none. */
static void settle(const Json *job) {
    if (need(job, "threads", JSON_NUMBER)->number > 1) wait_for_idle_threads();
}

/* True where processor times are valid: the model uses one thread, and the clock is fine enough. */
static bool is_known(const Samples *samples, const Json *job) {
    bool known = need(job, "threads", JSON_NUMBER)->number == 1;
    for (size_t i = 0; i < samples->count; i++) known = known && samples->computed[i] > 0;
    return known;
}

static void write_numbers(const double *numbers, size_t count) {
    for (size_t i = 0; i < count; i++) fprintf(answers, "%s%.6f", i ? ", " : "[", numbers[i]);
    fputs(count ? "]" : "[]", answers);
}

static void write_cpus(const cpu_set_t *cpus) {
    const char *before = "";
    fputs(", \"cpus\": [", answers);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, cpus)) {
            fprintf(answers, "%s%zu", before, cpu);
            before = ", ";
        }
    fputs("]", answers);
}

static void serve(const char *library) {
    OrtEnv *env = NULL;
    Samples samples = {NULL, NULL, 0, 0};
    cpu_set_t cpus;
    const Json *job = read_command();
    if (job == NULL) return;
    const Json *list = json_get(job, "cpus");
    CPU_ZERO(&cpus);
    if (list != NULL && list->kind != JSON_NULL && !bind_to(need(job, "cpus", JSON_STRING)->text, &cpus)) {
        char why[256];
        snprintf(why, sizeof why, "'%s' are not all among its processors", list->text);
        fputs("{\"refused\": ", answers);
        write_string(why);
        fputs("}\n", answers);
        return;
    }
    const char *version = open_library(library, &env);
    fprintf(answers, "{\"onnxruntime\": \"%s\", \"baseline_bytes\": %lld", version, status_bytes("VmRSS"));
    write_cpus(&cpus);
    fputs("}\n", answers);
    fflush(answers);
    for (const Json *command; (command = read_command()) != NULL;) {
        const char *what = need(command, "do", JSON_STRING)->text;
        if (strcmp(what, "load") == 0) {
            if (session != NULL) die("the model is loaded already");
            bool reset = reset_peak();
            double start = seconds_of(CLOCK_MONOTONIC);
            load(env, job);
            double ms = (seconds_of(CLOCK_MONOTONIC) - start) * 1e3;
            long long peak = status_bytes("VmHWM");
            reset = reset && reset_peak();
            read_ports();
            settle(job);
            fprintf(answers, "{\"load_ms\": %.6f, \"peak_load_bytes\": %lld, \"peak_reset\": %s}\n", ms, peak,
                    reset ? "true" : "false");
        } else if (session == NULL) {
            die("nothing is loaded yet");
        } else if (strcmp(what, "warmup") == 0) {
            size_t runs = 0;
            double seconds = need_number(command, "seconds", 1e6);
            take_feed(job, job);
            repeat(&samples, 0, 1);
            double first = samples.values[0];
            bool settled = warm_up(&samples, seconds, &runs);
            settle(job);
            fprintf(answers, "{\"first_ms\": %.6f, \"runs\": %zu, \"settled\": %s}\n", first, runs,
                    settled ? "true" : "false");
        } else if (strcmp(what, "round") == 0) {
            double seconds = need_number(command, "seconds", 1e6), runs = need_number(command, "runs", MAX_SAMPLES);
            repeat(&samples, fmin(0.05, seconds / 5), 1); /* Other processes have used the caches meanwhile. */
            repeat(&samples, seconds, runs);
            settle(job);
            fputs("{\"samples_ms\": ", answers);
            write_numbers(samples.values, samples.count);
            fputs(", \"cpu_ms\": ", answers);
            write_numbers(samples.computed, is_known(&samples, job) ? samples.count : 0);
            fputs("}\n", answers);
        } else if (strcmp(what, "memory") == 0) {
            long long pss = field_bytes("/proc/self/smaps_rollup", "Pss");
            fprintf(answers, "{\"peak_run_bytes\": %lld, \"pss_run_bytes\": ", status_bytes("VmHWM"));
            if (pss < 0) fputs("null}\n", answers);
            else fprintf(answers, "%lld}\n", pss);
        } else if (strcmp(what, "answers") == 0) {
            take_feed(command, job);
            infer();
            write_outputs(need(command, "path", JSON_STRING)->text);
            drop_outputs();
            fputs("{\"outputs\": [", answers);
            for (size_t i = 0; i < output_count; i++) {
                fputs(i ? ", " : "", answers);
                write_string(output_names[i]);
            }
            fputs("]}\n", answers);
        } else {
            die("unknown command %s", what);
        }
        fflush(answers);
    }
}

int main(int count, char **arguments) {
    answers = fdopen(dup(STDOUT_FILENO), "w");
    if (answers == NULL || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) die("no stdout");
    if (count == 3 && strcmp(arguments[1], "--hold") == 0) hold(arguments[2]);
    else if (count == 2 && arguments[1][0] != '-') serve(arguments[1]);
    else die("usage: runner LIBRARY | runner --hold FILE");
    fclose(answers);
    _Exit(0); /* As in Python, the runtime's destructors do not run. */
}
