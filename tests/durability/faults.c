/* Counts the file operations below one folder, and lets one of them kill the process or fail.
 *
 * cc -shared -fPIC -o faults.so faults.c -ldl      LD_PRELOAD=faults.so python ...
 *
 * Count and log lie in memory that is shared with forked children, so that a parent reads how far
 * a killed child came. A process of its own is armed by the environment: FAULTS_FOLDER, FAULTS_AT,
 * FAULTS_MODE, FAULTS_ERRNO.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum mode { COUNT, KILL_BEFORE, KILL_HALF, KILL_AFTER, FAIL_ONCE, FAIL_ON, WRITE_SHORT, STOP_BEFORE };

#define LOG_BYTES (1 << 18)

static struct shared {
    long count, log_length;
    char log[LOG_BYTES];
} *shared;

static char folder[PATH_MAX];
static long armed_at;
static int armed_mode, armed_errno;

/* Count from 0 on; nothing is counted while the folder is empty. */
void faults_arm(const char *below, long at, int mode, int error)
{
    shared->count = shared->log_length = 0;
    shared->log[0] = '\0';
    armed_at = at, armed_mode = mode, armed_errno = error;
    snprintf(folder, sizeof folder, "%s", below);
}

long faults_count(void) { return shared->count; }

const char *faults_log(void) { return shared->log; }

__attribute__((constructor)) static void start(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        abort();
    const char *below = getenv("FAULTS_FOLDER"), *at = getenv("FAULTS_AT");
    const char *mode = getenv("FAULTS_MODE"), *error = getenv("FAULTS_ERRNO");
    if (below && at && mode && error)
        faults_arm(below, atol(at), atoi(mode), atoi(error));
}

static int is_below(const char *path)
{
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int below_fd(int fd, char *path)
{
    char link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = *folder ? readlink(link, path, PATH_MAX - 1) : -1;
    errno = saved;
    if (length < 0)
        return 0;
    path[length] = '\0';
    return is_below(path);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void record(const char *name, const char *path)
{
    long room = LOG_BYTES - shared->log_length;
    int length = snprintf(shared->log + shared->log_length, room, "%s %s\n", name, path);
    if (length < room)
        shared->log_length += length;
}

/* What is to happen to this operation: its mode if it is the armed one, else COUNT. */
static int next(const char *name, const char *path)
{
    long number = ++shared->count;
    int armed = number == armed_at || (armed_mode == FAIL_ON && number > armed_at && armed_at);
    if (armed && armed_mode == KILL_BEFORE)
        die();
    if (armed && armed_mode == STOP_BEFORE)
        kill(getpid(), SIGSTOP);
    if (!(armed && (armed_mode == FAIL_ONCE || armed_mode == FAIL_ON)))
        record(name, path);
    return armed ? armed_mode : COUNT;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(real))dlsym(RTLD_NEXT, #name)

#define FAILS(mode) ((mode) == FAIL_ONCE || (mode) == FAIL_ON)

#define WATCHED(name, path, relevant, call) \
    do { \
        if (!(relevant)) \
            return call; \
        int mode = next(name, path); \
        if (FAILS(mode)) \
            return errno = armed_errno, -1; \
        __typeof__(call) result = call; \
        if (mode == KILL_AFTER) \
            die(); \
        return result; \
    } while (0)

#define WRITING(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))

#define MODE_ARGUMENT \
    mode_t permissions = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        permissions = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...)
{
    REAL(open);
    MODE_ARGUMENT
    WATCHED("open", path, WRITING(flags) && is_below(path), real(path, flags, permissions));
}

int open64(const char *path, int flags, ...)
{
    REAL(open64);
    MODE_ARGUMENT
    WATCHED("open", path, WRITING(flags) && is_below(path), real(path, flags, permissions));
}

int openat(int at, const char *path, int flags, ...)
{
    REAL(openat);
    MODE_ARGUMENT
    WATCHED("open", path, WRITING(flags) && is_below(path), real(at, path, flags, permissions));
}

int openat64(int at, const char *path, int flags, ...)
{
    REAL(openat64);
    MODE_ARGUMENT
    WATCHED("open", path, WRITING(flags) && is_below(path), real(at, path, flags, permissions));
}

#define WATCHED_WRITE(call_of) \
    do { \
        char path[PATH_MAX]; \
        if (!below_fd(fd, path)) \
            return call_of(size); \
        int mode = next("write", path); \
        if (FAILS(mode)) \
            return errno = armed_errno, -1; \
        ssize_t written = call_of(mode == KILL_HALF || (mode == WRITE_SHORT && size > 1) ? size / 2 : size); \
        if (mode == KILL_HALF || mode == KILL_AFTER) \
            die(); \
        return written; \
    } while (0)

ssize_t write(int fd, const void *bytes, size_t size)
{
    REAL(write);
#define CALL(n) real(fd, bytes, n)
    WATCHED_WRITE(CALL);
#undef CALL
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t place)
{
    REAL(pwrite);
#define CALL(n) real(fd, bytes, n, place)
    WATCHED_WRITE(CALL);
#undef CALL
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place)
{
    REAL(pwrite64);
#define CALL(n) real(fd, bytes, n, place)
    WATCHED_WRITE(CALL);
#undef CALL
}

#define BY_HANDLE(function, declared, arguments) \
    int function declared \
    { \
        REAL(function); \
        char path[PATH_MAX]; \
        WATCHED(#function, path, below_fd(fd, path), real arguments); \
    }

BY_HANDLE(fsync, (int fd), (fd))
BY_HANDLE(fdatasync, (int fd), (fd))
BY_HANDLE(ftruncate, (int fd, off_t size), (fd, size))
BY_HANDLE(ftruncate64, (int fd, off64_t size), (fd, size))

#define BY_PATH(function, shown, declared, arguments) \
    int function declared \
    { \
        REAL(function); \
        WATCHED(#function, shown, is_below(shown), real arguments); \
    }

BY_PATH(rename, to, (const char *from, const char *to), (from, to))
BY_PATH(renameat, to, (int at, const char *from, int at_too, const char *to), (at, from, at_too, to))
BY_PATH(link, to, (const char *from, const char *to), (from, to))
BY_PATH(linkat, to, (int at, const char *from, int at_too, const char *to, int flags), (at, from, at_too, to, flags))
BY_PATH(unlink, path, (const char *path), (path))
BY_PATH(unlinkat, path, (int at, const char *path, int flags), (at, path, flags))
BY_PATH(mkdir, path, (const char *path, mode_t permissions), (path, permissions))
BY_PATH(mkdirat, path, (int at, const char *path, mode_t permissions), (at, path, permissions))
BY_PATH(rmdir, path, (const char *path), (path))
BY_PATH(truncate, path, (const char *path, off_t size), (path, size))
BY_PATH(utimensat, path, (int at, const char *path, const struct timespec times[2], int flags), (at, path, times, flags))
