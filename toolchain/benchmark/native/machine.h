/* Services of the kernel: clocks, memory, processors, and the lock that reserves a device for one benchmark. */

#ifndef TOOLCHAIN_MACHINE_H
#define TOOLCHAIN_MACHINE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "lines.h"

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int64_t nanoseconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* As in runner.py: wait until idle threads have stopped spinning, two seconds at most. */
static void wait_for_idle_threads(void) {
    const struct timespec pause = {0, 20000000};
    for (int i = 0; i < 100; i++) {
        double used = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
        nanosleep(&pause, NULL);
        if (seconds_of(CLOCK_PROCESS_CPUTIME_ID) - used < 0.002) return;
    }
}

/* Read a field in kB from a file of /proc and return it in bytes; -1 where it does not exist. */
static long long field_bytes(const char *path, const char *field) {
    char line[256];
    long long bytes = -1;
    FILE *file = fopen(path, "r");
    while (bytes < 0 && file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, field, strlen(field)) == 0 && line[strlen(field)] == ':')
            bytes = strtoll(line + strlen(field) + 1, NULL, 10) * 1024;
    if (file != NULL) fclose(file);
    return bytes;
}

/* Read VmRSS, the resident memory now, or VmHWM, its peak; in bytes. */
static long long status_bytes(const char *field) {
    return field_bytes("/proc/self/status", field);
}

/* Bind this process to the processors of a list like 0-3,6, before the runtime counts the processors.
   False where the process may not use all of these. */
static bool bind_to(const char *list, cpu_set_t *wanted) {
    cpu_set_t allowed;
    CPU_ZERO(wanted);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
    for (const char *at = list;; at++) {
        char *end = NULL;
        if (*at < '0' || *at > '9') return false;
        long first = strtol(at, &end, 10), last = first;
        if (*end == '-' && (end[1] < '0' || end[1] > '9')) return false;
        if (*end == '-') last = strtol(end + 1, &end, 10);
        if (last < first || last >= CPU_SETSIZE) return false;
        for (long cpu = first; cpu <= last; cpu++) {
            if (!CPU_ISSET((size_t)cpu, &allowed)) return false;
            CPU_SET((size_t)cpu, wanted);
        }
        at = end;
        if (*at == '\0') return sched_setaffinity(0, sizeof *wanted, wanted) == 0;
        if (*at != ',') return false;
    }
}

/* Set VmHWM to the resident memory of now; false where that is not permitted. */
static bool reset_peak(void) {
    int file = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    bool done = file >= 0 && write(file, "5", 1) == 1;
    if (file >= 0) close(file);
    return done;
}

/* Kill every other process whose program lies below `folder`; with the lock held, they are left from earlier benchmarks
   or belong to this one. */
static void kill_others(const char *folder) {
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes != NULL && (entry = readdir(processes)) != NULL;) {
        char link[300], program[4096];
        long number = strtol(entry->d_name, NULL, 10);
        snprintf(link, sizeof link, "/proc/%s/exe", entry->d_name);
        ssize_t length = number > 0 && number != getpid() ? readlink(link, program, sizeof program - 1) : -1;
        program[length > 0 ? length : 0] = '\0';
        if (strncmp(program, folder, strlen(folder)) == 0 && program[strlen(folder)] == '/')
            kill((pid_t)number, SIGKILL);
    }
    if (processes != NULL) closedir(processes);
}

/* Lock `path`, answer {} or {"busy": the other benchmark}, and wait for the end of stdin, which is the end of the
   benchmark or of the connection. Before and after, every process started from the lock's folder is killed. */
static void hold(char *path) {
    char who[128] = "", *slash = strrchr(path, '/'), folder[4096];
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || slash == NULL) die("%s: %s", path, strerror(errno));
    if (flock(file, LOCK_EX | LOCK_NB) != 0) {
        ssize_t length = read(file, who, sizeof who - 1);
        fputs("{\"busy\": ", answers);
        write_string(length > 0 ? who : "another benchmark");
        fputs("}\n", answers);
        return;
    }
    *slash = '\0';
    if (realpath(path, folder) == NULL || ftruncate(file, 0) != 0) die("%s: %s", path, strerror(errno));
    time_t now = time(NULL);
    struct tm parts;
    strftime(who, sizeof who, "since %Y-%m-%d %H:%M:%S", localtime_r(&now, &parts));
    dprintf(file, "process %ld %s", (long)getpid(), who);
    signal(SIGHUP, SIG_IGN); /* Only the end of stdin ends this process, because there is work to do after it. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    kill_others(folder);
    fputs("{}\n", answers);
    fflush(answers);
    while (read(STDIN_FILENO, who, sizeof who) > 0) continue;
    kill_others(folder);
}

#endif
